"""Requests in, token streams out."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from llama.cache import KVCache
from llama.chat import ChatTemplate, Message
from llama.checkpoint import load_transformer, open_gguf
from llama.errors import LlamaError
from llama.model import Transformer
from llama.sampling import Sampler, SamplingParams, StopText, looping
from llama.tokenizer import Tokenizer

PREFILL_CHUNK = 512  # tokens: a cancelled request stops within one chunk, and memory stays bounded


@dataclass
class Usage:
    """What a request took; seconds are wall time, and wait for other requests counts with the phase it fell in."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    answer_tokens: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    finish_reason: Literal["", "stop", "length", "cancelled"] = ""


class Engine:
    """A loaded model with its tokenizer and chat template. Several threads may generate at once.

    The module holds no state of a request, so requests cannot mix; the lock only makes them take turns, a forward
    each, instead of fighting over the cores.
    """

    def __init__(self, model: Transformer, tokenizer: Tokenizer, template: ChatTemplate | None, name: str) -> None:
        self.model, self.tokenizer, self.template, self.name = model, tokenizer, template, name
        weight = model.embed_tokens.weight
        self.dtype, self.device = weight.dtype, weight.device
        self._turn = threading.Lock()

    @property
    def context_length(self) -> int:
        return self.model.config.context_length

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation, ready for the assistant's turn, by the model's own template."""
        if self.template is None:
            raise LlamaError(f"{self.name} has no chat template, so it cannot hold a conversation; choose a chat model")
        return self.template.encode(messages)

    def generate(
        self, prompt: Sequence[int], params: SamplingParams, cancel: threading.Event | None = None
    ) -> Generation:
        """Starts a request; iterate over the result for pieces of text. Nothing runs before the first piece is asked.

        prompt: token ids. cancel: set it from any thread to end the request at the next token.
        Raises LlamaError when the prompt is empty or leaves no room in the context.
        """
        if not prompt:
            raise LlamaError("the prompt is empty")
        if len(prompt) >= self.context_length:
            raise LlamaError(
                f"the prompt has {len(prompt)} tokens and the model's context is {self.context_length}; shorten it"
            )
        return Generation(self, list(prompt), params, cancel or threading.Event())

    @torch.inference_mode()
    def forward(self, tokens: Sequence[int], cache: KVCache) -> torch.Tensor:
        """Logits [V] after the given tokens of a single row; one turn at the model."""
        with self._turn:
            batch = torch.tensor([tokens], device=self.device)
            return self.model(batch, cache, last=True)[0, 0]  # type: ignore[no-any-return]


class Generation:
    """One running request: an iterator over pieces of text, with `usage` growing along."""

    def __init__(self, engine: Engine, prompt: list[int], params: SamplingParams, cancel: threading.Event) -> None:
        self.usage = Usage(prompt_tokens=len(prompt))
        self.tokens: list[int] = []
        self.text = ""  # what was given out so far; without its repetitions when the model ran in circles
        self._engine, self._prompt, self._params, self._cancel = engine, prompt, params, cancel
        self._pieces = self._run()

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def cancel(self) -> None:
        """Ends the request at the next token; what was generated stays."""
        self._cancel.set()

    def _run(self) -> Iterator[str]:
        engine, usage = self._engine, self.usage
        room = engine.context_length - len(self._prompt)
        budget = min(self._params.max_tokens, room)
        cache = KVCache(engine.model.config, 1, len(self._prompt) + budget, engine.dtype, engine.device)
        stream, stop = engine.tokenizer.stream(), StopText(self._params.stop)
        sampler = Sampler(self._params)
        logits = self._prefill(cache)
        started = time.perf_counter()
        while logits is not None:
            token = sampler(logits)
            if token in engine.tokenizer.eos_ids:
                usage.finish_reason = "stop"
                break
            self.tokens.append(token)
            usage.answer_tokens += 1
            text = stop.push(stream.push(token))
            # Before the yield: a reader that leaves the loop early must find the figures right.
            usage.decode_s = time.perf_counter() - started
            if text:
                self.text += text
                yield text
            if self._params.stop_loops and (repeated := looping(self.tokens)):
                del self.tokens[-repeated:]
                self.text = engine.tokenizer.decode(self.tokens)
                usage.finish_reason = "stop"
                return
            if stop.hit or usage.answer_tokens >= budget or self._cancel.is_set():
                usage.finish_reason = "stop" if stop.hit else "cancelled" if self._cancel.is_set() else "length"
                break
            logits = engine.forward([token], cache)
        usage.decode_s = time.perf_counter() - started
        if rest := stop.push(stream.flush()) + stop.flush():
            self.text += rest
            yield rest

    def _prefill(self, cache: KVCache) -> torch.Tensor | None:
        """Runs the prompt through the model; logits after its last token, or None when cancelled before that."""
        started = time.perf_counter()
        logits = None
        for start in range(0, len(self._prompt), PREFILL_CHUNK):
            if self._cancel.is_set():
                self.usage.finish_reason = "cancelled"
                return None
            logits = self._engine.forward(self._prompt[start : start + PREFILL_CHUNK], cache)
            self.usage.prefill_s = time.perf_counter() - started
        return logits


def fast_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 matrices at least as fast as fp32 ones."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def choose_device(name: str) -> torch.device:
    """'auto' is the GPU if torch sees one. Raises LlamaError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise LlamaError(f"device '{name}' is not available here; use --device auto or cpu") from error
    return device


def load_engine(path: Path, device: str = "auto", dtype: str = "auto") -> Engine:
    """Loads a model file. dtype: 'float32', 'bfloat16', or 'auto' for bf16 where the device computes it fast.

    Raises LlamaError with the file's name when it cannot be used.
    """
    place = choose_device(device)
    checkpoint = open_gguf(path)
    checkpoint.config  # noqa: B018  refuses a foreign architecture before anything is read
    precision = getattr(torch, dtype) if dtype != "auto" else torch.bfloat16 if fast_bfloat16(place) else torch.float32
    try:
        tokenizer = Tokenizer.from_gguf(checkpoint.metadata)
        source = checkpoint.metadata.get("tokenizer.chat_template")
        template = None if source is None else ChatTemplate(source, tokenizer)
    except LlamaError as error:
        raise LlamaError(f"{path.name} cannot be used: {error}") from error
    return Engine(load_transformer(checkpoint, precision, str(place)), tokenizer, template, path.name)
