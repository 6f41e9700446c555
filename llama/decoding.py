"""One request between its prompt and its end: logits in, text out. Alone or as a row of a batch makes no difference."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from llama.sampling import Sampler, SamplingParams, StopText, looping
from llama.tokenizer import Tokenizer


@dataclass
class Usage:
    """What a request took; seconds are wall time, and wait for other requests counts with the phase it fell in."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    answer_tokens: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    finish_reason: Literal["", "stop", "length", "cancelled"] = ""


class Decoding:
    """Tokens and text of one request, growing by a token with every `push`. `usage` grows along."""

    def __init__(self, tokenizer: Tokenizer, params: SamplingParams, prompt_tokens: int, cancel: threading.Event):
        self.usage = Usage(prompt_tokens=prompt_tokens)
        self.tokens: list[int] = []
        self.text = ""  # what was given out so far; without its repetitions when the model ran in circles
        self._tokenizer, self._params, self._cancel = tokenizer, params, cancel
        self._stream, self._stop, self._sampler = tokenizer.stream(), StopText(params.stop), Sampler(params)
        self._started: float | None = None

    @property
    def done(self) -> bool:
        return bool(self.usage.finish_reason)

    def push(self, logits: Tensor, budget: int) -> str:
        """Chooses the next token from logits [V] and gives the text that it completes; may finish the request.

        budget: tokens that the answer may have in all.
        """
        usage = self.usage
        if self._started is None:
            self._started = time.perf_counter()
        token = self._sampler(logits)
        if token in self._tokenizer.eos_ids:
            return self._finish("stop")
        self.tokens.append(token)
        usage.answer_tokens += 1
        piece = self._give(self._stop.push(self._stream.push(token)))
        if self._params.stop_loops and (repeated := looping(self.tokens)):
            del self.tokens[-repeated:]
            self.text = self._tokenizer.decode(self.tokens)
            usage.finish_reason = "stop"
        elif self._stop.hit:
            piece += self._finish("stop")
        elif usage.answer_tokens >= budget:
            piece += self._finish("length")
        elif self._cancel.is_set():
            piece += self._finish("cancelled")
        usage.decode_s = time.perf_counter() - self._started
        return piece

    def _finish(self, reason: Literal["stop", "length"] | Literal["cancelled"]) -> str:
        """Ends the request; gives what was held back as the possible beginning of a stop string."""
        self.usage.finish_reason = reason
        if self._started is not None:
            self.usage.decode_s = time.perf_counter() - self._started
        return self._give(self._stop.push(self._stream.flush()) + self._stop.flush())

    def _give(self, piece: str) -> str:
        self.text += piece
        return piece
