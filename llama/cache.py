"""The key/value cache: an argument of `forward`, never state of a module."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llama.config import ModelConfig
from llama.errors import LlamaError


class KVCache:
    """Keys and values of every layer for a batch of rows, each row with a length of its own.

    `k` and `v` are [layers, batch, kv_heads, capacity, head_dim]; keys are stored after the rotary embedding.
    Row b holds `lengths[b]` tokens, at positions 0 to lengths[b] - 1. The first `front` of them are virtual ones of an
    adapter, which no text has.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (config.n_layers, batch, config.n_kv_heads, capacity, config.head_dim)
        # What lies behind a row's end is multiplied with 0 where other rows are longer, and must not be NaN then.
        make = torch.zeros if batch > 1 else torch.empty
        self.k, self.v = make(shape, dtype=dtype, device=device), make(shape, dtype=dtype, device=device)
        self.lengths, self.front = [0] * batch, 0

    @property
    def capacity(self) -> int:
        """Tokens that a row can hold."""
        return self.k.shape[3]

    @property
    def uniform(self) -> bool:
        """Whether all rows are equally long, so that slices serve instead of indices."""
        return len(set(self.lengths)) <= 1

    def begin(self, k: Tensor, v: Tensor) -> None:
        """Puts virtual tokens in front of every row; k, v: [layers, kv_heads, tokens, head_dim]."""
        self.front = k.shape[2]
        self.k[:, :, :, : self.front], self.v[:, :, :, : self.front] = k.unsqueeze(1), v.unsqueeze(1)
        self.lengths = [self.front] * len(self.lengths)

    def require(self, new: Sequence[int]) -> None:
        """Raises LlamaError when `new[b]` further tokens do not fit into row b."""
        if len(new) != len(self.lengths):
            raise LlamaError(f"the cache holds {len(self.lengths)} rows, the batch has {len(new)}")
        longest = max(length + n for length, n in zip(self.lengths, new, strict=True))
        if longest > self.capacity:
            raise LlamaError(f"{longest} tokens do not fit into a cache of {self.capacity}; shorten the prompt")

    def update(self, layer: int, k: Tensor, v: Tensor, new: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Writes the new keys and values of one layer behind each row's end and returns all up to the longest row.

        k, v: [batch, kv_heads, new tokens, head_dim], of which row b's first `new[b]` count.
        Returns two [batch, kv_heads, longest, head_dim] in the dtype of k and v. Lengths change only by `advance`,
        after all layers.
        """
        size = k.shape[2]
        start = self.lengths[0]
        if self.uniform and all(n == size for n in new):
            self.k[layer, :, :, start : start + size] = k
            self.v[layer, :, :, start : start + size] = v
        else:
            for row, (length, n) in enumerate(zip(self.lengths, new, strict=True)):
                self.k[layer, row, :, length : length + n] = k[row, :, :n]
                self.v[layer, row, :, length : length + n] = v[row, :, :n]
        end = max(length + n for length, n in zip(self.lengths, new, strict=True))
        return self.k[layer, :, :, :end].to(k.dtype), self.v[layer, :, :, :end].to(v.dtype)

    def advance(self, new: Sequence[int]) -> None:
        """Counts the tokens that the last forward wrote."""
        self.lengths = [length + n for length, n in zip(self.lengths, new, strict=True)]


class PackedCache:
    """The caches of several requests whose new tokens stand behind each other in one row: no padding anywhere.

    `caches` are of one row each, `new[i]` says how many of the row's tokens belong to request i.
    """

    def __init__(self, caches: Sequence[KVCache], new: Sequence[int]) -> None:
        self.caches, self.new = list(caches), list(new)

    def require(self) -> None:
        """Raises LlamaError when the tokens do not fit one of the caches."""
        for cache, new in zip(self.caches, self.new, strict=True):
            cache.require([new])

    @property
    def positions(self) -> list[int]:
        """The position of every token."""
        return [cache.lengths[0] + i for cache, new in zip(self.caches, self.new, strict=True) for i in range(new)]

    def advance(self) -> None:
        for cache, new in zip(self.caches, self.new, strict=True):
            cache.advance([new])
