"""The seams at which fine-tuning enters a forward: an argument of it, like the cache, and never state of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llama.errors import LlamaError

if TYPE_CHECKING:
    from llama.model import Attention


class Adaptation(nn.Module):
    """What a method does inside one forward, seam by seam. This one does nothing, and is what a bare model runs with.

    Shape letters as in `llama.model`. A method overrides the seams that it needs (`finetune/adapters`).
    """

    @property
    def virtual(self) -> Tensor | None:
        """Embeddings [n, D] of virtual tokens that stand before a sequence's first token, at positions 0 to n - 1."""
        return None

    @property
    def prefix_length(self) -> int:
        """Virtual keys and values in front of every sequence; the first real token is at this position."""
        return 0

    def prefix(self, layer: int) -> tuple[Tensor, Tensor]:
        """Those keys and values [G, n, E] of a layer, as if the rotary embedding had been applied."""
        raise NotImplementedError(f"{type(self).__name__} has no prefix")

    def project(self, layer: int, name: str, linear: nn.Module, x: Tensor) -> Tensor:
        """One of a block's seven products, x [B, S, in] -> [B, S, out]. name: as `q_proj`."""
        return linear(x)  # type: ignore[no-any-return]

    def attended(self, attention: Attention, q: Tensor, out: Tensor) -> Tensor:
        """What attention gave, out [B, H, S, E] for queries q [B, H, S, E], before the output projection."""
        return out

    def branch(self, layer: int, place: str, x: Tensor) -> Tensor:
        """What attention or the feed-forward part adds to the residual, x [B, S, D]. place: `self_attn` or `mlp`."""
        return x


NONE = Adaptation()


class Apart(Adaptation):
    """An adaptation of which each of the sequences that stand behind each other in a row takes its own share.

    What they get is to the last bit what they get alone: a product's sums depend on how many rows it has.
    """

    def __init__(self, inner: Adaptation, sizes: Sequence[int]) -> None:
        """sizes: tokens of each sequence of the row [1, S]."""
        super().__init__()
        self._inner, self._sizes = inner, list(sizes)
        self._projects = type(inner).project is not Adaptation.project

    @property
    def virtual(self) -> Tensor | None:
        return self._inner.virtual

    @property
    def prefix_length(self) -> int:
        return self._inner.prefix_length

    def prefix(self, layer: int) -> tuple[Tensor, Tensor]:
        return self._inner.prefix(layer)

    def project(self, layer: int, name: str, linear: nn.Module, x: Tensor) -> Tensor:
        if not self._projects:
            return linear(x)  # type: ignore[no-any-return]
        return torch.cat([self._inner.project(layer, name, linear, part) for part in self._split(x, 1)], 1)

    def attended(self, attention: Attention, q: Tensor, out: Tensor) -> Tensor:
        shares = zip(self._split(q, 2), self._split(out, 2), strict=True)
        return torch.cat([self._inner.attended(attention, *share) for share in shares], 2)

    def branch(self, layer: int, place: str, x: Tensor) -> Tensor:
        return torch.cat([self._inner.branch(layer, place, part) for part in self._split(x, 1)], 1)

    def _split(self, x: Tensor, axis: int) -> list[Tensor]:
        # Laid out as it would be alone, however long the row is.
        return [part.contiguous() for part in torch.split(x, self._sizes, axis)]


@dataclass(frozen=True)
class Delta:
    """What becomes of a product W x: factor * (W x) + b (a x)."""

    a: Tensor  # [r, in]
    b: Tensor  # [out, r], its scale in it
    factor: Tensor | None  # [out]; None is 1


class LowRank(Adaptation):
    """Low-rank matrices beside products, as requests take them along; the compiled step has a way for them."""

    def __init__(self, deltas: Mapping[tuple[int, str], Delta]) -> None:
        """deltas: by layer and product, in the dtype and on the device that is computed in."""
        super().__init__()
        self.deltas = deltas

    def project(self, layer: int, name: str, linear: nn.Module, x: Tensor) -> Tensor:
        whole: Tensor = linear(x)
        delta = self.deltas.get((layer, name))
        if delta is None:
            return whole
        if delta.factor is not None:
            whole = whole * delta.factor
        return whole + F.linear(F.linear(x, delta.a), delta.b)


class Front:
    """Virtual tokens put before each fresh sequence of a forward, and taken away behind the last layer."""

    def __init__(self, virtual: Tensor, lengths: Sequence[int], fresh: Sequence[bool], counted: list[int]) -> None:
        """lengths: of the sequences along a row; for a batch [B, S] of rows that are all fresh or all not, [S].

        counted: for each sequence its tokens, the virtual ones among them.
        """
        self._virtual, self._lengths, self.counted = virtual, list(lengths), counted
        self._added = [len(virtual) * new for new in fresh]

    def put(self, x: Tensor) -> Tensor:
        """Embeddings x [B, S, D] with the virtual ones between them."""
        parts = []
        for part, added in zip(torch.split(x, self._lengths, 1), self._added, strict=True):
            parts += [self._virtual.to(x.dtype).expand(len(x), -1, -1)] * bool(added) + [part]
        return torch.cat(parts, 1)

    def take(self, x: Tensor) -> Tensor:
        """Without them again."""
        whole = [n + added for n, added in zip(self._lengths, self._added, strict=True)]
        return torch.cat(
            [part[:, added:] for part, added in zip(torch.split(x, whole, 1), self._added, strict=True)], 1
        )


def front_of(virtual: Tensor | None, past: Sequence[int], counted: Sequence[int], size: int | None) -> Front | None:
    """What comes before the sequences of a forward; None without virtual tokens.

    past: tokens of each sequence that a cache holds; counted: those that come. size: of a row, where every sequence has
    one to itself; None where they stand behind each other in one. Raises LlamaError for rows of both kinds in a batch.
    """
    if virtual is None:
        return None
    fresh = [length == 0 for length in past]
    whole = [n + len(virtual) * new for n, new in zip(counted, fresh, strict=True)]
    if size is None:
        return Front(virtual, counted, fresh, whole)
    if any(fresh) != all(fresh):
        raise LlamaError("rows that begin and rows that go on cannot share a batch where virtual tokens come first")
    return Front(virtual, [size], fresh[:1], whole)
