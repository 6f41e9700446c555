"""Requests in, token streams out."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from llama.batch import ROWS, generate_batch
from llama.cache import KVCache
from llama.chat import ChatTemplate, Message
from llama.checkpoint import load_transformer, open_checkpoint
from llama.decoding import Decoding, Usage
from llama.errors import LlamaError
from llama.model import Transformer
from llama.sampling import SamplingParams
from llama.tokenizer import Tokenizer

PREFILL_CHUNK = 512  # tokens: a cancelled request stops within one chunk, and memory stays bounded


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
        self.check_prompt(prompt)
        return Generation(self, list(prompt), params, cancel or threading.Event())

    def generate_batch(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        rows: int = ROWS,
        cancel: threading.Event | None = None,
    ) -> Iterator[tuple[int, Decoding]]:
        """Decodes many prompts side by side; see `llama.batch.generate_batch`."""
        return generate_batch(self, prompts, params, rows, cancel)

    def check_prompt(self, prompt: Sequence[int]) -> None:
        """Raises LlamaError when the prompt is empty or leaves no room in the context."""
        if not prompt:
            raise LlamaError("the prompt is empty")
        if len(prompt) >= self.context_length:
            raise LlamaError(
                f"the prompt has {len(prompt)} tokens and the model's context is {self.context_length}; shorten it"
            )

    def answer_budget(self, prompt_tokens: int, params: SamplingParams) -> int:
        """Tokens that an answer may have behind a prompt of that length."""
        return min(params.max_tokens, self.context_length - prompt_tokens)

    @property
    def cache_bytes_per_token(self) -> int:
        """Memory of one token's keys and values in all layers."""
        config = self.model.config
        return 2 * config.n_layers * config.n_kv_heads * config.head_dim * self.dtype.itemsize

    def new_cache(self, rows: int, capacity: int) -> KVCache:
        """An empty cache for `rows` requests of at most `capacity` tokens."""
        return KVCache(self.model.config, rows, capacity, self.dtype, self.device)

    @torch.inference_mode()
    def forward_batch(self, tokens: Sequence[Sequence[int]], cache: KVCache) -> torch.Tensor:
        """Logits [B, V] after the given tokens (equally many in each row); one turn at the model."""
        with self._turn:
            return self.model(torch.tensor(tokens, device=self.device), cache, last=True)[:, 0]  # type: ignore[no-any-return]

    @torch.inference_mode()
    def logits(self, tokens: torch.Tensor, cache: KVCache) -> torch.Tensor:
        """Logits [B, S, V] behind each of the tokens [B, S]; one turn at the model."""
        with self._turn:
            return self.model(tokens, cache)  # type: ignore[no-any-return]

    def prefill(
        self, prompt: Sequence[int], cache: KVCache, usage: Usage, cancel: threading.Event | None = None
    ) -> torch.Tensor | None:
        """Runs a prompt into a cache of one row; logits [V] behind it, or None when cancelled before that."""
        started = time.perf_counter()
        logits = None
        for start in range(0, len(prompt), PREFILL_CHUNK):
            if cancel is not None and cancel.is_set():
                usage.finish_reason = "cancelled"
                return None
            logits = self.forward_batch([prompt[start : start + PREFILL_CHUNK]], cache)[0]
            usage.prefill_s = time.perf_counter() - started
        return logits


class Generation:
    """One running request: an iterator over pieces of text, with `usage` growing along."""

    def __init__(self, engine: Engine, prompt: list[int], params: SamplingParams, cancel: threading.Event) -> None:
        self._decoding = Decoding(engine.tokenizer, params, len(prompt), cancel)
        self._engine, self._prompt, self._params, self._cancel = engine, prompt, params, cancel
        self._pieces = self._run()

    @property
    def usage(self) -> Usage:
        return self._decoding.usage

    @property
    def tokens(self) -> list[int]:
        return self._decoding.tokens

    @property
    def text(self) -> str:
        """What was given out so far; without its repetitions when the model ran in circles."""
        return self._decoding.text

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def cancel(self) -> None:
        """Ends the request at the next token; what was generated stays."""
        self._cancel.set()

    def _run(self) -> Iterator[str]:
        engine, decoding = self._engine, self._decoding
        budget = engine.answer_budget(len(self._prompt), self._params)
        cache = engine.new_cache(1, len(self._prompt) + budget)
        logits = engine.prefill(self._prompt, cache, decoding.usage, self._cancel)
        while logits is not None:
            if piece := decoding.push(logits, budget):
                yield piece
            if decoding.done:
                return
            logits = engine.forward_batch([[decoding.tokens[-1]]], cache)[0]


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
    checkpoint = open_checkpoint(path)
    checkpoint.config  # noqa: B018  refuses a foreign architecture before anything is read
    precision = getattr(torch, dtype) if dtype != "auto" else torch.bfloat16 if fast_bfloat16(place) else torch.float32
    try:
        tokenizer = checkpoint.tokenizer()
        source = checkpoint.chat_template
        template = None if source is None else ChatTemplate(source, tokenizer)
    except LlamaError as error:
        raise LlamaError(f"{path.name} cannot be used: {error}") from error
    return Engine(load_transformer(checkpoint, precision, str(place)), tokenizer, template, path.name)
