"""Four-bit NormalFloat (Dettmers et al. 2023, section 3): a frozen matrix at 4.13 bits a weight.

Sixteen values that are equally likely under a normal distribution, a scale for every 64 weights, and those scales in 8
bits with a scale for every 256 of them (double quantization).
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCK, SCALES = 64, 256
OFFSET = 0.9677083  # quantile of the outermost value (the paper's appendix E; its code)


@functools.cache
def code() -> Tensor:
    """The sixteen values, ascending: quantiles of a normal distribution, scaled to [-1, 1], one of them 0."""
    # On the CPU whatever the default device is: a model built on meta needs the numbers, too.
    zero = torch.zeros(1, dtype=torch.float64, device="cpu")
    above = torch.special.ndtri(torch.linspace(OFFSET, 0.5, 9, dtype=torch.float64, device="cpu")[:-1])
    below = -torch.special.ndtri(torch.linspace(OFFSET, 0.5, 8, dtype=torch.float64, device="cpu")[:-1])
    values = torch.cat((above, below, zero)).sort().values
    return (values / values.abs().max()).float()


class NF4Linear(nn.Module):
    """x W^T for a frozen W [out, in] in NF4. Nothing in full precision is kept, nor saved for the backward pass."""

    codes: Tensor  # uint8, two weights each, the first in the high bits
    scales: Tensor  # uint8 [blocks]
    factors: Tensor  # fp32 [blocks / SCALES]
    mean: Tensor  # fp32, of the scales before they were rounded

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        for name, value in _pack(weight.detach()).items():
            self.register_buffer(name, value)

    def dense(self) -> Tensor:
        """The fp32 matrix [out, in] that the codes stand for."""
        numbers = torch.stack((self.codes >> 4, self.codes & 15), 1).view(-1, BLOCK)
        scales = (self.scales.float() - 128) * self.factors.repeat_interleave(SCALES)[: len(self.scales)] + self.mean
        flat = code().to(self.codes.device)[numbers.int()] * scales[:, None]
        return flat.view(-1)[: self.out_features * self.in_features].view(self.out_features, self.in_features)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = _Product.apply(x, self)  # type: ignore[no-untyped-call]
        return out


class _Product(torch.autograd.Function):
    """The matrix is unpacked for the moment, once each way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: NF4Linear) -> Tensor:
        ctx.linear = linear
        return F.linear(x, linear.dense().to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        return grad @ ctx.linear.dense().to(grad.dtype), None


def _pack(weight: Tensor) -> dict[str, Tensor]:
    """The buffers of a matrix, each weight the nearest of the sixteen values times its block's largest magnitude."""
    flat = F.pad(weight.float().reshape(-1), (0, -weight.numel() % BLOCK)).view(-1, BLOCK)
    largest = flat.abs().amax(1)
    mean = largest.mean()
    groups = F.pad(largest - mean, (0, -len(largest) % SCALES)).view(-1, SCALES)
    factors = groups.abs().amax(1) / 127
    rounded = (groups / factors.clamp(min=1e-30)[:, None]).round().clamp(-127, 127)
    scales = (rounded + 128).to(torch.uint8).view(-1)[: len(largest)]
    known = (scales.float() - 128) * factors.repeat_interleave(SCALES)[: len(scales)] + mean
    values = code().to(weight.device)
    edges = (values[1:] + values[:-1]) / 2
    numbers = torch.bucketize(flat / known.clamp(min=1e-30)[:, None], edges).to(torch.uint8).view(-1, 2)
    return {"codes": numbers[:, 0] << 4 | numbers[:, 1], "scales": scales, "factors": factors, "mean": mean}
