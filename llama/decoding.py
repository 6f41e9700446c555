"""One request between its prompt and its end: logits in, text out. Alone or beside others makes no difference."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from llama.sampling import Sampler, SamplingParams, StopText, looping
from llama.tokenizer import Tokenizer

FinishReason = Literal["", "stop", "length", "cancelled"]


@dataclass
class Usage:
    """What a request took; seconds are wall time, and wait for other requests counts with the phase it fell in."""

    prompt_tokens: int = 0
    cached_tokens: int = 0  # of the prompt, taken over from earlier requests
    answer_tokens: int = 0
    drafted_tokens: int = 0  # guessed from the prompt's own words
    accepted_tokens: int = 0  # of those, the ones that the model said too
    queue_s: float = 0.0  # before anything was computed
    prefill_s: float = 0.0
    decode_s: float = 0.0
    finish_reason: FinishReason = ""


class Decoding:
    """Tokens and text of one request, growing by a token with every `push`. `usage` grows along."""

    def __init__(
        self, tokenizer: Tokenizer, params: SamplingParams, prompt: Sequence[int], cancel: threading.Event
    ) -> None:
        self.usage = Usage(prompt_tokens=len(prompt))
        self.tokens: list[int] = []
        self.logprobs: list[float] = []  # of each token, where the parameters ask for it
        self.text = ""  # what was given out so far; without its repetitions when the model ran in circles
        self._tokenizer, self._params, self._cancel = tokenizer, params, cancel
        self._stream, self._stop, self._sampler = tokenizer.stream(), StopText(params.stop), Sampler(params, prompt)
        self._started: float | None = None

    @property
    def done(self) -> bool:
        return bool(self.usage.finish_reason)

    @property
    def cancelled(self) -> bool:
        return self._cancel.is_set()

    def push(self, logits: Tensor, budget: int) -> str:
        """Chooses the next token from logits [V] and gives the text that it completes; may finish the request.

        budget: tokens that the answer may have in all.
        """
        usage = self.usage
        if self._started is None:
            self._started = time.perf_counter()
        token = self._sampler(logits)
        if token in self._tokenizer.eos_ids:
            return self.finish("stop")
        self.tokens.append(token)
        if self._params.logprobs:
            self.logprobs.append(self._sampler.logprob)
        usage.answer_tokens += 1
        piece = self._give(self._stop.push(self._stream.push(token)))
        if self._params.stop_loops and (repeated := looping(self.tokens)):
            del self.tokens[-repeated:], self.logprobs[-repeated:]
            self.text = self._tokenizer.decode(self.tokens).rstrip("\ufffd")
            usage.finish_reason = "stop"
        elif self._stop.hit:
            piece += self.finish("stop")
        elif usage.answer_tokens >= budget:
            piece += self.finish("length")
        elif self.cancelled:
            piece += self.finish("cancelled")
        usage.decode_s = time.perf_counter() - self._started
        return piece

    def finish(self, reason: FinishReason) -> str:
        """Ends the request; gives what was held back as the possible beginning of a stop string.

        Bytes of a character that was never finished are left out: half of one is no text.
        """
        self.usage.finish_reason = reason
        if self._started is not None:
            self.usage.decode_s = time.perf_counter() - self._started
        return self._give(self._stop.flush())

    def _give(self, piece: str) -> str:
        self.text += piece
        return piece
