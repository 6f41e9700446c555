"""Weights of 8 or 4 bits in place of dense ones: drop-in modules, and how they are made.

Rounding to nearest within groups of GROUP inputs. int8 is symmetric (as GGUF's Q8_0), int4 has a scale and a minimum
(as Q4_1), so that files of Q4_1 and Q4_0 are taken over without any loss; of other weights, the scale and the minimum
are looked for that lose the least. On a CPU, activations are rounded as well, to twice the weights' bits
(`llama.integers`); nothing is calibrated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llama import products
from llama.config import ModelConfig
from llama.errors import LlamaError
from llama.model import Transformer
from llama.team import Team
from llama.vectors import GROUP, LANES

BITS = {"int8": 8, "int4": 4}
EXACT = 1e-3  # of a scale: what floats are off by that stand on a grid of 16 steps
ON_GRID = 0.02  # of a step, by which values on a grid are off at most: it is known in fp16 only
SHRUNK = (0.95, 0.9, 0.85, 0.8)  # of a group's range, which numbers outside are cut to


@dataclass(frozen=True)
class Packed:
    """A matrix [out, in] as `llama.integers` describes: blocks of LANES outputs, groups of GROUP inputs."""

    weight: Tensor  # uint8 [blocks, in / 4, LANES, 4], or [blocks, in / 8, LANES, 4] for int4
    scale: Tensor  # fp16 [blocks, in / GROUP, LANES]
    minimum: Tensor  # the same for int4, empty for int8
    outputs: int

    @property
    def bits(self) -> int:
        return 4 if self.minimum.numel() else 8

    @property
    def fields(self) -> list[int]:
        """What the compiled functions take a matrix by; valid as long as the tensors live."""
        blocks, groups, _ = self.scale.shape
        return [self.bits, self.weight.data_ptr(), self.scale.data_ptr(), self.minimum.data_ptr(), blocks, groups]


def pack(weight: Tensor, bits: int) -> Packed:
    """Quantizes weight [out, in] to the nearest values. Raises LlamaError when `in` is no multiple of GROUP."""
    outputs, inputs = weight.shape
    if inputs % GROUP:
        raise LlamaError(f"a width of {inputs} cannot be quantized in groups of {GROUP}; use --quant none")
    blocks = -(-outputs // LANES)
    wide = F.pad(weight.float().cpu(), (0, 0, 0, blocks * LANES - outputs))
    groups = wide.view(blocks, LANES, inputs // GROUP, GROUP)
    if bits == 8:
        scale, low = (groups.abs().amax(-1) / 127).half(), torch.empty(0, dtype=torch.float16)
        numbers = (groups / _or_one(scale)).round_().clamp_(-127, 127) + 128
        quads = numbers.to(torch.uint8).view(*scale.shape, GROUP // 4, 4)  # [blocks, LANES, groups, steps, 4]
    else:
        scale, low = _grids(groups)
        halves = _nearest(groups, scale, low).to(torch.uint8).view(*scale.shape, 2, GROUP // 8, 4)
        quads = halves[..., 0, :, :] | halves[..., 1, :, :] << 4
        low = low.transpose(1, 2).contiguous()
    stored = quads.permute(0, 2, 3, 1, 4).reshape(blocks, -1, LANES, 4)
    return Packed(stored.contiguous(), scale.transpose(1, 2).contiguous(), low, outputs)


def _grids(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and minimum of 16 steps for groups [..., GROUP], each [...] in fp16.

    They go from the least value to the greatest, as Q4_1 has them, or have the value of the largest magnitude at one
    end and 0 on the grid, as Q4_0. Where neither is exact, the values may stand on a grid whose ends they do not reach
    (of a file whose scales were searched for), or ranges that leave a few values outside are tried, each fitted to the
    numbers it gives by least squares.
    """
    low, high = groups.amin(-1), groups.amax(-1)
    largest = torch.where(-low > high, low, high)
    scale, minimum = ((high - low) / 15).half(), low.half()
    lost = _lost(groups, scale, minimum)
    _take_better(groups, (scale, minimum, lost), (largest / -8).half(), largest.half())
    open_ = lost > (EXACT * scale.float()).square() * GROUP
    if open_.any():
        some, best = groups[open_], (scale[open_], minimum[open_], lost[open_])
        low, high = low[open_], high[open_]
        _try_steps(some, best, low)
        for share in (1.0, *SHRUNK):
            numbers = _nearest(some, ((high - low) * share / 15).half(), (low * share).half())
            _take_better(some, best, *_fitted(some, numbers))
        scale[open_], minimum[open_] = best[:2]
    return scale, minimum


def _try_steps(groups: Tensor, best: tuple[Tensor, Tensor, Tensor], low: Tensor) -> None:
    """Takes the grid that values [n, GROUP] stand on, where there is one; its step divides their differences."""
    steps = groups.sort(-1).values.diff(dim=-1)
    least = steps.masked_fill(steps <= EXACT * groups.abs().amax(-1, keepdim=True) / 16, math.inf).amin(-1)
    for part in (1, 2, 3):
        step = (least / part).half()
        numbers = (groups - low[:, None]) / _or_one(step)
        on = ((numbers - numbers.round()).abs().amax(-1) < ON_GRID) & (numbers.amax(-1) < 15.5) & step.isfinite()
        if not on.any():
            continue
        found = best[0][on], best[1][on], best[2][on]
        for below in range(16):
            _take_better(groups[on], found, step[on], (low[on] - below * step[on].float()).half())
        for old, new in zip(best, found, strict=True):
            old[on] = new


def _nearest(groups: Tensor, scale: Tensor, low: Tensor) -> Tensor:
    """The numbers 0 to 15 of values [..., GROUP]."""
    return ((groups - low.float()[..., None]) / _or_one(scale)).round_().clamp_(0, 15)


def _lost(groups: Tensor, scale: Tensor, low: Tensor) -> Tensor:
    """The sum of squares [...] that groups are off by on these grids."""
    found = _nearest(groups, scale, low) * scale.float()[..., None] + low.float()[..., None]
    return (groups - found).square().sum(-1)


def _take_better(groups: Tensor, best: tuple[Tensor, Tensor, Tensor], scale: Tensor, low: Tensor) -> None:
    """Puts a grid in the place of the best one (scale, minimum, loss) wherever it loses less."""
    lost = _lost(groups, scale, low)
    better = lost < best[2]
    for old, new in zip(best, (scale, low, lost), strict=True):
        old[better] = new[better]


def _fitted(groups: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and minimum in fp16 that come nearest to values [..., GROUP] with these numbers (linear regression)."""
    mean, middle = numbers.mean(-1, keepdim=True), groups.mean(-1, keepdim=True)
    spread = (numbers - mean).square().sum(-1)
    slope = ((numbers - mean) * (groups - middle)).sum(-1) / torch.where(spread == 0, 1, spread)
    return slope.half(), (middle[..., 0] - slope * mean[..., 0]).half()


def _or_one(scale: Tensor) -> Tensor:
    """Scales to divide by: a group of equal values has none, and its numbers are all 0."""
    return torch.where(scale == 0, 1, scale).float()[..., None]


def unpack(packed: Packed) -> Tensor:
    """The fp32 matrix [out, in] that a packed one stands for, on its device; plain torch, the oracle of the kernels."""
    blocks, groups, _ = packed.scale.shape
    values = _numbers(packed.weight.view(blocks, groups, -1, LANES, 4).transpose(2, 3), packed.bits)
    values = values.flatten(-2) * packed.scale.float()[..., None]  # [blocks, groups, LANES, GROUP]
    if packed.bits == 4:
        values += packed.minimum.float()[..., None]
    return values.transpose(1, 2).reshape(-1, groups * GROUP)[: packed.outputs]


def _numbers(quads: Tensor, bits: int) -> Tensor:
    """The numbers [..., steps, 4] of stored bytes of that shape, of which int4 has twice as many steps; fp32."""
    return quads.float() - 128 if bits == 8 else torch.cat((quads & 15, quads >> 4), dim=-2).float()


def activations(rows: int, inputs: int, planes: int) -> tuple[np.ndarray[Any, Any], ...]:
    """Room for rounded activations: bytes [rows, planes, inputs], scales and sums [rows, inputs / GROUP]."""
    groups = inputs // GROUP
    return (
        np.empty((rows, planes, inputs), np.uint8),
        np.empty((rows, groups), np.float32),
        np.empty((rows, groups), np.float32),
    )


class _Quantized(nn.Module):
    """A packed matrix as buffers, so that it follows `.to(device)`."""

    weight: Tensor
    scale: Tensor
    minimum: Tensor

    def __init__(self, packed: Packed, team: Team, dtype: torch.dtype) -> None:
        super().__init__()
        self.out_features, self.in_features = packed.outputs, packed.scale.shape[1] * GROUP
        self.team, self.dtype = team, dtype
        self.register_buffer("weight", packed.weight)
        self.register_buffer("scale", packed.scale)
        self.register_buffer("minimum", packed.minimum)

    @property
    def packed(self) -> Packed:
        return Packed(self.weight, self.scale, self.minimum, self.out_features)


class QuantizedLinear(_Quantized):
    """x W^T for a packed W. On a CPU in whole numbers, elsewhere with the matrix unpacked for the moment."""

    def dense(self) -> Tensor:
        """The fp32 matrix [out, in] that the packed one stands for."""
        return unpack(self.packed)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return F.linear(x.to(self.dtype), unpack(self.packed).to(self.dtype)).to(x.dtype)
        rows = x.reshape(-1, self.in_features).float().contiguous()
        out = torch.empty(len(rows), self.scale.shape[0] * LANES)
        packed = self.packed
        room = activations(len(rows), self.in_features, packed.bits // 4)
        self.team.run(products.linear, 2, np.array(packed.fields), rows.numpy(), *room, out.numpy())
        return out[:, : self.out_features].view(*x.shape[:-1], -1).to(x.dtype)


class QuantizedEmbedding(_Quantized):
    """Rows of a packed table, in the dtype that activations have."""

    def forward(self, ids: Tensor) -> Tensor:
        block, lane = ids // LANES, ids % LANES
        packed = self.packed
        quads = self.weight[block, :, lane].view(*ids.shape, self.scale.shape[1], -1, 4)  # [..., groups, steps, 4]
        values = _numbers(quads, packed.bits).flatten(-2) * self.scale[block, :, lane].float()[..., None]
        if packed.bits == 4:
            values += self.minimum[block, :, lane].float()[..., None]
        return values.flatten(-2)


def bits_of(name: str, kind: str) -> int:
    """Bits of the matrix of that name. kind: a key of BITS.

    The embedding and the output matrix stay at 8: the one is looked at a row at a time, and the rounding of the other
    reaches the logits undiminished.
    """
    return 8 if name in ("embed_tokens", "lm_head") else BITS[kind]


def can_pack(config: ModelConfig) -> bool:
    """Whether all widths are multiples of GROUP."""
    return not any(width % GROUP for width in (config.dim, config.ffn_dim, config.n_heads * config.head_dim))


def quantization_of(model: Transformer) -> str:
    """'int8', 'int4' or 'none'."""
    first = next((each for each in model.layers.modules() if isinstance(each, QuantizedLinear)), None)
    return "none" if first is None else next(kind for kind, bits in BITS.items() if bits == first.packed.bits)
