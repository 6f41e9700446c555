"""What one adapter makes of the model that is loaded: several lie beside it, and each request takes one along."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from llama.adaptation import NONE, Adaptation, Apart, LowRank
from llama.cache import KVCache, PackedCache
from llama.fused import CACHED, FusedStep, PackedLowRank, supports, tails
from llama.model import RMSNorm, Transformer
from llama.quantize import QuantizedEmbedding, QuantizedLinear, pack

GRID = 64  # tokens of a prompt that are read at a time where the compiled step cannot be taken


@dataclass(frozen=True)
class Serving:
    """An adapter, ready for requests."""

    model: Transformer  # the base itself, or one that shares with it what the adapter does not change
    adaptation: Adaptation = NONE  # goes along in each forward
    front: tuple[Tensor, Tensor] | None = None  # keys and values [L, G, n, E] that every cache begins with


class Adapters(Protocol):
    """Where an engine gets adapters from."""

    def stamp(self, name: str) -> Hashable:
        """Another value whenever the adapter of that name is another. Raises what tells that it cannot be used."""

    def load(self, name: str, model: Transformer) -> Serving:
        """The adapter for that model, which stays as it is. Raises what tells that it cannot be used."""


class Variant:
    """The model as requests with one adapter see it, or as those with none do."""

    def __init__(self, serving: Serving, base: Variant | None = None, stamp: Hashable = None) -> None:
        """base: the bare model's; an adapter that leaves its weights alone runs through the same compiled step.

        stamp: what `Adapters.stamp` said of it.
        """
        self.stamp = stamp
        self.current = True  # false once the engine has let it go: what still runs with it leaves nothing behind
        self.model, self.adaptation, self._front = serving.model, serving.adaptation, serving.front
        self._fused: FusedStep | None = None
        self._beside: PackedLowRank | None = None
        embedding, low = self.model.embed_tokens, self.adaptation if isinstance(self.adaptation, LowRank) else None
        if self.adaptation is NONE or low is not None:
            if base is not None and base.model is self.model:
                self._fused = base._fused
            elif supports(self.model) and isinstance(embedding, QuantizedEmbedding):
                self._fused = FusedStep(self.model, embedding.team)
        if self._fused is not None and low is not None:
            self._beside = PackedLowRank(low, self.model.config.n_layers)
        weight = self.model.norm.weight
        self.dtype, self.device = weight.dtype, weight.device
        self.cache_dtype = self.dtype if self._fused is None else CACHED
        # Sums of the eager model depend on how many rows there are, in their last digits, which the rounding of
        # activations before a quantized product makes much of. So that an answer is the same whatever runs beside it
        # and whatever is known of its prompt, such a variant takes each sequence apart and reads prompts on a grid.
        quantized = any(isinstance(each, QuantizedLinear) for each in self.model.modules())
        self.grid = GRID if self._fused is None and quantized else 1

    @property
    def front(self) -> int:
        """Virtual tokens that every cache begins with."""
        return 0 if self._front is None else self._front[0].shape[2]

    @property
    def together(self) -> Hashable:
        """Equal for variants whose requests can share a forward."""
        return id(self.model), None if self._fused is not None else id(self.adaptation)

    @property
    def bytes_per_token(self) -> int:
        """Memory of one token's keys and values in all layers."""
        config = self.model.config
        return 2 * config.n_layers * config.n_kv_heads * config.head_dim * self.cache_dtype.itemsize

    def new_cache(self, rows: int, capacity: int) -> KVCache:
        """A cache for `rows` sequences of at most `capacity` tokens, which holds the virtual ones alone."""
        cache = KVCache(self.model.config, rows, self.front + capacity, self.cache_dtype, self.device)
        if self._front is not None:
            cache.begin(*self._front)
        return cache

    @staticmethod
    def forward(
        variants: Sequence[Variant], tokens: Sequence[Sequence[int]], caches: Sequence[KVCache], last: Sequence[int]
    ) -> list[Tensor]:
        """Requests of variants that go `together` through the model; see `Engine.forward`. Else raises ValueError."""
        if len({each.together for each in variants}) > 1:
            raise ValueError("these adapters cannot share a forward; ask for them one after the other")
        first, sizes = variants[0], [len(each) for each in tokens]
        if first._fused is not None:
            return first._fused(tokens, caches, last, [each._beside for each in variants])
        row = torch.tensor([token for each in tokens for token in each], device=first.device)
        wanted = None if list(last) == sizes else torch.tensor(tails(sizes, last), device=first.device)
        adaptation = first.adaptation if first.grid == 1 else Apart(first.adaptation, sizes)
        logits = first.model(row[None], PackedCache(caches, sizes), at=wanted, adaptation=adaptation)[0]
        return list(torch.split(logits, list(last)))


def rebuilt(model: Transformer, order: Sequence[int], weights: Mapping[str, Tensor]) -> Transformer:
    """A model whose block i is block `order[i]` of another one, with some weights of its own; the others are shared.

    weights: fp32, by their names in the new model; where the old one is quantized, they are, too. `model` stays as it
    is.
    """
    with torch.device("meta"):
        made = Transformer(replace(model.config, n_layers=len(order)))
    for name, child in list(made.named_modules()):
        if "weight" not in child._parameters:
            continue
        path = name.split(".")
        if path[0] == "layers":
            path[1] = str(order[int(path[1])])
        old, weight = model.get_submodule(".".join(path)), weights.get(f"{name}.weight")
        parent, _, leaf = name.rpartition(".")
        setattr(made.get_submodule(parent), leaf, old if weight is None else _like(old, weight))
    if made.config.tied and "embed_tokens.weight" in weights:
        embedding = made.embed_tokens
        if isinstance(embedding, QuantizedEmbedding):
            made.lm_head = QuantizedLinear(embedding.packed, embedding.team, embedding.dtype)  # type: ignore[assignment]
        else:
            made.lm_head = _like(model.lm_head, weights["embed_tokens.weight"])  # type: ignore[assignment]
            made.lm_head.weight = embedding.weight
    made.rope = model.rope
    return made.eval().requires_grad_(False)


def _like(old: nn.Module, weight: Tensor) -> nn.Module:
    """A module as `old` is, with another weight."""
    if isinstance(old, QuantizedLinear | QuantizedEmbedding):
        return type(old)(pack(weight, old.packed.bits), old.team, old.dtype).to(old.weight.device)
    known = old.weight
    assert isinstance(known, Tensor)
    outputs, inputs = weight.shape[0], weight.shape[-1]
    new: nn.Module
    with torch.device("meta"):
        if isinstance(old, RMSNorm):
            new = RMSNorm(outputs, old.eps)
        elif isinstance(old, nn.Embedding):
            new = nn.Embedding(outputs, inputs, _weight=torch.empty(outputs, inputs))
        else:
            new = nn.Linear(inputs, outputs, bias=False)
    new.weight = nn.Parameter(weight.to(known.device, known.dtype), requires_grad=False)
    return new
