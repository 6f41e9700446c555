"""Requests in, token streams out."""

from __future__ import annotations

import collections
import itertools
import queue
import threading
from collections.abc import Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from numbers import Integral
from pathlib import Path

import torch

from llama import packed_file
from llama.cache import KVCache
from llama.chat import ChatTemplate, Message
from llama.checkpoint import Checkpoint, load_transformer, open_checkpoint
from llama.errors import LlamaError
from llama.model import Transformer
from llama.quantize import QuantizedEmbedding, can_pack, quantization_of
from llama.request import Request
from llama.sampling import SamplingParams
from llama.scheduler import PIECE, ROWS, Scheduler
from llama.scoring import SCORED_ROWS, Scoring, shared_heads
from llama.serving import Adapters, Serving, Variant
from llama.team import Team
from llama.tokenizer import Tokenizer

KV_MEMORY = 384 << 20  # bytes
MOST_ADAPTERS = ROWS  # as many as run at once stay loaded; beyond, the one that was asked longest ago is dropped


class Engine:
    """A loaded model with its tokenizer and chat template, shared by any number of threads.

    The module holds no state of a request. Requests run side by side (`llama.scheduler`), and what else needs the model
    takes a turn at it between two of their forwards. Each request may take an adapter along (`llama.serving`); adapters
    are loaded beside the model when they are first asked for, and stay.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        name: str,
        kv_memory: int = KV_MEMORY,
        adapters: Adapters | None = None,
    ) -> None:
        """kv_memory: bytes for keys and values, of running requests and of prefixes that are kept for later ones.

        adapters: where those are found that requests name.
        """
        self.model, self.tokenizer, self.template, self.name = model, tokenizer, template, name
        self.quant = quantization_of(model)
        self.plain = Variant(Serving(model))
        self.dtype, self.device = self.plain.dtype, self.plain.device
        self._adapters, self._loaded = adapters, dict[str, Variant]()  # asked last stands last
        self._turn, self._held = threading.Lock(), threading.Lock()
        self._loading = collections.defaultdict[str, threading.Lock](threading.Lock)  # one that loads delays no other
        self.scheduler = Scheduler(self, kv_memory)

    @property
    def precision(self) -> str:
        """What results depend on besides the weights: 'float32', 'int4', on a GPU 'int4 in bfloat16' and the like."""
        embedding = self.model.embed_tokens
        dtype = embedding.dtype if isinstance(embedding, QuantizedEmbedding) else self.dtype
        return _told(dtype, self.quant, self.device)

    @property
    def context_length(self) -> int:
        return self.model.config.context_length

    def variant(self, adapter: str | None) -> Variant:
        """The model with an adapter, which is loaded if it is not yet, or has changed; the bare one for None.

        Raises LlamaError, or what those who have the adapters raise.
        """
        if adapter is None:
            return self.plain
        if self._adapters is None:
            raise LlamaError(f"adapter '{adapter}' cannot be used: this engine was made without adapters")
        with self._held:
            loading = self._loading[adapter]
        with loading:
            stamp = self._adapters.stamp(adapter)
            with self._held:
                found = self._loaded.get(adapter)
            if found is None or found.stamp != stamp:
                found = Variant(self._adapters.load(adapter, self.model), self.plain, stamp)
            with self._held:
                before = self._loaded.pop(adapter, None)
                self._loaded[adapter] = found
                gone = [] if before is None or before is found else [before]
                while len(self._loaded) > MOST_ADAPTERS:
                    gone.append(self._loaded.pop(next(iter(self._loaded))))
            for variant in gone:
                variant.current = False
                self.scheduler.forget(variant)
            return found

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation, ready for the assistant's turn, by the model's own template."""
        if self.template is None:
            raise LlamaError(f"{self.name} has no chat template, so it cannot hold a conversation; choose a chat model")
        return self.template.encode(messages)

    def generate(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        cancel: threading.Event | None = None,
        user: Hashable = None,
        adapter: str | None = None,
    ) -> Request:
        """A request; iterate over it for pieces of text. Nothing runs before the first piece is asked.

        prompt: token ids. cancel: set it from any thread to end the request at the next token. user: whose request it
        is, by default nobody else's; users take turns. adapter: by its name; None asks the bare model.
        Raises LlamaError when the prompt is empty or leaves no room in the context, and what `variant` raises.
        """
        variant = self.variant(adapter)
        self.check_prompt(prompt, variant)
        return Request(self, list(prompt), params, cancel or threading.Event(), user, variant)

    def generate_batch(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        rows: int = ROWS,
        cancel: threading.Event | None = None,
        adapters: Sequence[str | None] | None = None,
    ) -> Iterator[tuple[int, Request]]:
        """Decodes all prompts, `rows` of them at once, and yields (index of the prompt, its request) as each ends.

        adapters: each prompt's, by its name. A request that failed is yielded like the others, with its `error`; the
        rest goes on. Raises LlamaError when a prompt is empty or leaves no room in the context, before anything is
        computed. Leaving the iteration early cancels what still runs.
        """
        given = [self.variant(name) for name in (adapters or [None] * len(prompts))]
        for prompt, variant in zip(prompts, given, strict=True):
            self.check_prompt(prompt, variant)
        stop, user = cancel or threading.Event(), object()
        both = zip(prompts, given, strict=True)
        requests = (Request(self, list(prompt), params, stop, user, variant) for prompt, variant in both)
        yield from self._side_by_side(requests, rows)

    def _side_by_side(self, requests: Iterable[Request], rows: int) -> Iterator[tuple[int, Request]]:
        """Runs requests, `rows` at once; yields (its place, the request) as each ends. Leaving cancels the rest.

        They should have one user, however many they are, so that others take turns with them.
        """
        ended: queue.SimpleQueue[Request] = queue.SimpleQueue()
        places: dict[Request, int] = {}
        todo = enumerate(requests)

        def begin() -> None:
            for index, request in itertools.islice(todo, 1):
                request.done, places[request] = ended, index
                try:
                    self.scheduler.submit([request])
                except LlamaError as error:  # it could never be let in
                    request.end(error)

        try:
            for _ in range(rows):
                begin()
            while places:
                request = ended.get()
                begin()
                yield places.pop(request), request
        finally:
            for request in places:
                request.cancel()

    def log_likelihoods(
        self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], adapter: str | None = None
    ) -> list[list[float]]:
        """For each (prompt, continuation) of token ids, ln P of each token of the continuation behind all before it.

        All run side by side, and beside what others ask. What all prompts begin with is read once and kept like other
        prefixes, as is a prompt that several pairs have; nothing else is kept. Raises LlamaError, before anything is
        computed, when a prompt is empty or a pair does not fit into the context; and when one can never fit into the
        memory.
        """
        variant = self.variant(adapter)
        for prompt, continuation in pairs:
            self.check_prompt(prompt, variant)
            if variant.front + len(prompt) + len(continuation) > self.context_length:
                raise LlamaError(
                    f"prompt and continuation have {len(prompt) + len(continuation)} tokens and the model's context is "
                    f"{self.context_length}; shorten them"
                )
        user, found = object(), dict[int, list[float]]()
        heads = [(head, list[int]()) for head in shared_heads([prompt for prompt, _ in pairs])]
        for group, rows, keep in ((heads, 1, True), (pairs, SCORED_ROWS, False)):
            requests = (Scoring(self, prompt, continuation, user, keep, variant) for prompt, continuation in group)
            for index, request in self._side_by_side(requests, rows):
                if request.error is not None:
                    raise request.error
                found[index] = request.logprobs  # those of the heads are none, and are overwritten
        return [found[index] for index in range(len(pairs))]

    def check_prompt(self, prompt: Sequence[int], variant: Variant | None = None) -> None:
        """Raises LlamaError for a prompt that is empty, leaves no room in the context or has ids that do not exist."""
        if not prompt:
            raise LlamaError("the prompt is empty")
        size = self.model.config.vocab_size
        if not all(isinstance(token, Integral) and 0 <= token < size for token in prompt):
            raise LlamaError(f"the prompt holds what is no token id, or one beyond the vocabulary of {size}")
        front = 0 if variant is None else variant.front
        if front + len(prompt) >= self.context_length:
            more = f" beside {front} of the adapter" if front else ""
            raise LlamaError(
                f"the prompt has {len(prompt)} tokens{more} and the model's context is {self.context_length}; "
                "shorten it"
            )

    def answer_budget(self, prompt_tokens: int, params: SamplingParams, variant: Variant | None = None) -> int:
        """Tokens that an answer may have behind a prompt of that length."""
        return min(params.max_tokens, self.context_length - prompt_tokens - (0 if variant is None else variant.front))

    @property
    def cache_bytes_per_token(self) -> int:
        """Memory of one token's keys and values in all layers, without an adapter."""
        return self.plain.bytes_per_token

    @torch.inference_mode()
    def forward(
        self,
        tokens: Sequence[Sequence[int]],
        caches: Sequence[KVCache],
        last: Sequence[int] | None = None,
        variants: Sequence[Variant] | None = None,
    ) -> list[torch.Tensor]:
        """Several requests' next tokens through the model in one turn, their caches advanced.

        tokens: each request's new ids; caches: of one row each; last: behind how many of each request's last tokens the
        logits are wanted, by default one; variants: whom each asks, by default the bare model; they go `together`.
        Returns each request's logits [last, V], fp32 or the weights' dtype.
        """
        counts = [1] * len(tokens) if last is None else list(last)
        asked = [self.plain] * len(tokens) if variants is None else list(variants)
        with self._turn:
            return Variant.forward(asked, tokens, caches, counts)

    def next_logits(self, prompt: Sequence[int], adapter: str | None = None) -> torch.Tensor:
        """Logits [V] of the token behind a prompt. Raises LlamaError when it does not fit, or what `variant` raises."""
        variant = self.variant(adapter)
        self.check_prompt(prompt, variant)
        cache = variant.new_cache(1, len(prompt))
        for start in range(0, len(prompt), PIECE):
            found = self.forward([prompt[start : start + PIECE]], [cache], variants=[variant])
        return found[0][0]


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


def load_engine(
    path: Path,
    device: str = "auto",
    dtype: str = "auto",
    quant: str = "none",
    kv_memory: int = KV_MEMORY,
    cache: Path | None = None,
    adapters: Adapters | None = None,
) -> Engine:
    """Loads a model file or folder.

    dtype: 'float32', 'bfloat16', or 'auto' for bf16 where the device computes it fast. quant: 'none', 'int8', 'int4',
    or 'auto': on a CPU, int4 for files of four bits (nothing is lost) and int8 for others; 'none' on a GPU, and where a
    dtype is asked for. cache: folder in which quantized weights are kept for the next time. adapters: where those are
    found that requests name.
    Raises LlamaError with the file's name when it cannot be used.
    """
    place = choose_device(device)
    checkpoint = open_checkpoint(path)
    checkpoint.config  # noqa: B018  refuses a foreign architecture before anything is read
    precision, quant = _choose(checkpoint, place, dtype, quant)
    with ThreadPoolExecutor(1) as pool:  # the vocabulary is read while the weights are
        spoken = pool.submit(_vocabulary, checkpoint)
        if quant == "none":
            model = load_transformer(checkpoint, precision, str(place))
        else:
            model = _quantized(checkpoint, quant, precision, str(place), cache)
        tokenizer, template = spoken.result()
    return Engine(model, tokenizer, template, path.name, kv_memory, adapters)


def _choose(checkpoint: Checkpoint, place: torch.device, dtype: str, quant: str) -> tuple[torch.dtype, str]:
    """What `auto` stands for: the dtype to compute in, and the quantization."""
    precision = getattr(torch, dtype) if dtype != "auto" else torch.bfloat16 if fast_bfloat16(place) else torch.float32
    if quant == "auto":
        quant = "int4" if checkpoint.four_bits else "int8"
        if place.type != "cpu" or dtype != "auto" or not can_pack(checkpoint.config):
            quant = "none"
    return precision, quant


def _told(dtype: torch.dtype, quant: str, device: torch.device) -> str:
    if quant != "none" and device.type == "cpu":
        return quant  # products are in whole numbers, whatever the dtype
    name = str(dtype).removeprefix("torch.")
    return name if quant == "none" else f"{quant} in {name}"


def precision_of(path: Path, device: str, dtype: str, quant: str) -> str:
    """What `Engine.precision` will be of a model loaded so. Raises LlamaError when it cannot be."""
    place = choose_device(device)
    return _told(*_choose(open_checkpoint(path), place, dtype, quant), place)


def _vocabulary(checkpoint: Checkpoint) -> tuple[Tokenizer, ChatTemplate | None]:
    try:
        tokenizer, source = checkpoint.tokenizer(), checkpoint.chat_template
        return tokenizer, None if source is None else ChatTemplate(source, tokenizer)
    except LlamaError as error:
        raise LlamaError(f"{checkpoint.path.name} cannot be used: {error}") from error


def _quantized(checkpoint: Checkpoint, kind: str, dtype: torch.dtype, device: str, cache: Path | None) -> Transformer:
    team, config = Team(torch.get_num_threads()), checkpoint.config
    place = None if cache is None else packed_file.place_of(cache, checkpoint.path, kind)
    model = packed_file.assemble(config, packed_file.load(place), team, dtype) if place is not None else None
    if model is None:
        state = packed_file.pack_checkpoint(checkpoint, kind)
        model = packed_file.assemble(config, state, team, dtype)
        assert model is not None
        if place is not None:
            packed_file.save(state, place)
    return model.to(device)
