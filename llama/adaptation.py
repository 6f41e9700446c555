"""The seams at which fine-tuning enters a forward: an argument of it, like the cache, and never state of the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

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
