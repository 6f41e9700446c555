"""Weights of 8 or 4 bits in place of dense ones: drop-in modules, and how they are made.

Rounding to nearest within groups of GROUP inputs. int8 is symmetric (as GGUF's Q8_0), int4 has a scale and a minimum
(as Q4_1), so that a Q4_1 file is taken over without any loss. Activations stay as they are: nothing is calibrated.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llama import products
from llama.config import ModelConfig
from llama.errors import LlamaError
from llama.model import RMSNorm, Transformer
from llama.team import Team
from llama.vectors import GROUP, LANES

BITS = {"int8": 8, "int4": 4}
FEW_ROWS = 32  # above that, unpacking the matrix once costs less than reading it again for every four rows


@dataclass(frozen=True)
class Packed:
    """A matrix [out, in] as `llama.vectors` describes: blocks of LANES outputs, groups of GROUP inputs."""

    weight: Tensor  # int8 [blocks, in, LANES], or uint8 [blocks, in / 2, LANES]
    scale: Tensor  # fp16 [blocks, in / GROUP, LANES]
    minimum: Tensor  # the same for int4, empty for int8
    outputs: int

    @property
    def bits(self) -> int:
        return 8 if self.weight.dtype == torch.int8 else 4

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
        scale = (groups.abs().amax(-1) / 127).half()
        numbers = (groups / _or_one(scale)).round_().clamp_(-127, 127).to(torch.int8)
        minimum = torch.empty(0, dtype=torch.float16)
        stored = numbers.permute(0, 2, 3, 1).reshape(blocks, inputs, LANES)
    else:
        low = groups.amin(-1)
        scale, minimum = ((groups.amax(-1) - low) / 15).half(), low.half()
        numbers = ((groups - minimum.float()[..., None]) / _or_one(scale)).round_().clamp_(0, 15).to(torch.uint8)
        numbers = numbers.permute(0, 2, 3, 1)  # [blocks, groups, GROUP, LANES]
        stored = (numbers[:, :, :16] | numbers[:, :, 16:] << 4).reshape(blocks, inputs // 2, LANES)
        minimum = minimum.transpose(1, 2).contiguous()
    return Packed(stored.contiguous(), scale.transpose(1, 2).contiguous(), minimum, outputs)


def _or_one(scale: Tensor) -> Tensor:
    """Scales to divide by: a group of equal values has none, and its numbers are all 0."""
    return torch.where(scale == 0, 1, scale).float()[..., None]


def unpack(packed: Packed) -> Tensor:
    """The fp32 matrix [out, in] that a packed one stands for, on its device; plain torch, the oracle of the kernels."""
    blocks, groups, _ = packed.scale.shape
    if packed.bits == 8:
        numbers = packed.weight.view(blocks, groups, GROUP, LANES).float()
        values = numbers * packed.scale.float()[:, :, None]
    else:
        halves = packed.weight.view(blocks, groups, GROUP // 2, LANES)
        numbers = torch.cat((halves & 15, halves >> 4), dim=2).float()
        values = numbers * packed.scale.float()[:, :, None] + packed.minimum.float()[:, :, None]
    return values.reshape(blocks, groups * GROUP, LANES).transpose(1, 2).reshape(-1, groups * GROUP)[: packed.outputs]


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

    def transposed(self) -> Tensor:
        """The matrix [in, out] in the module's dtype; overwritten by the next one that this thread asks for."""
        if self.weight.device.type != "cpu":
            return unpack(self.packed).T.to(self.dtype)
        blocks, groups, _ = self.scale.shape
        out = self.team.scratch(groups * GROUP * blocks * LANES).view(groups * GROUP, blocks * LANES)
        self.team.run(products.unpack, 1, np.array(self.packed.fields), out.numpy())
        return out[:, : self.out_features].to(self.dtype)


class QuantizedLinear(_Quantized):
    """x W^T for a packed W. Many rows are multiplied with the matrix unpacked for the moment, few with it as it is."""

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() // self.in_features <= FEW_ROWS and x.device.type == "cpu":
            return self._few(x.reshape(-1, self.in_features).float().contiguous()).view(*x.shape[:-1], -1).to(x.dtype)
        return torch.matmul(x.to(self.dtype), self.transposed()).to(x.dtype)

    def _few(self, x: Tensor) -> Tensor:
        out = torch.empty(len(x), self.scale.shape[0] * LANES)
        sums = np.empty((self.team.size, len(x), self.scale.shape[1]), np.float32)
        self.team.run(products.product, 1, np.array(self.packed.fields), x.numpy(), sums, out.numpy())
        return out[:, : self.out_features]


class QuantizedEmbedding(_Quantized):
    """Rows of a packed table, in the dtype that activations have."""

    def forward(self, ids: Tensor) -> Tensor:
        block, lane = ids // LANES, ids % LANES
        scale = self.scale[block, :, lane].float().repeat_interleave(GROUP, dim=-1)
        if self.minimum.numel() == 0:
            return self.weight[block, :, lane].float() * scale
        halves = self.weight[block, :, lane].view(*ids.shape, -1, GROUP // 2)
        numbers = torch.cat((halves & 15, halves >> 4), dim=-1).flatten(-2)
        return numbers.float() * scale + self.minimum[block, :, lane].float().repeat_interleave(GROUP, dim=-1)


def bits_of(name: str, kind: str) -> int:
    """Bits of the matrix of that name. kind: a key of BITS.

    The embedding and the output matrix stay at 8: the one is looked at a row at a time, and the rounding of the other
    reaches the logits undiminished.
    """
    return 8 if name in ("embed_tokens", "lm_head") else BITS[kind]


def can_pack(config: ModelConfig) -> bool:
    """Whether all widths are multiples of GROUP."""
    return not any(width % GROUP for width in (config.dim, config.ffn_dim, config.n_heads * config.head_dim))


def quantize(model: Transformer, kind: str, team: Team, dtype: torch.dtype) -> None:
    """Replaces every matrix of a model on the spot, one by one. kind: a key of BITS; dtype: of products with many rows.

    Norms and activations become fp32. Raises LlamaError when a width does not allow it.
    """
    embedding = pack(model.embed_tokens.weight, bits_of("embed_tokens", kind))
    output = embedding if model.config.tied else pack(model.lm_head.weight, bits_of("lm_head", kind))
    model.embed_tokens = QuantizedEmbedding(embedding, team, dtype)  # type: ignore[assignment]
    model.lm_head = QuantizedLinear(output, team, dtype)  # type: ignore[assignment]
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                setattr(module, name, QuantizedLinear(pack(child.weight, bits_of(name, kind)), team, dtype))
        if isinstance(module, RMSNorm):
            module.weight = nn.Parameter(module.weight.float(), requires_grad=False)


def quantization_of(model: Transformer) -> str:
    """'int8', 'int4' or 'none'."""
    first = next((each for each in model.layers.modules() if isinstance(each, QuantizedLinear)), None)
    return "none" if first is None else next(kind for kind, bits in BITS.items() if bits == first.packed.bits)
