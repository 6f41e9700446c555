"""Bottleneck adapters (Houlsby et al. 2019): x + W2 GELU(W1 x) behind attention and behind the feed-forward part."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from finetune.adapters.base import Adapter, Method, Options
from llama.config import ModelConfig

PLACES = ("self_attn", "mlp")


class BottleneckOptions(Options):
    bottleneck_dim: int = Field(64, ge=1)


class Bottleneck(Adapter):
    """Enters before each residual addition; W1, W2 and their biases train. W2 starts at 0, so that nothing changes."""

    cannot_merge = "a bottleneck adapter is not linear and cannot be merged into the weights"

    def __init__(self, config: ModelConfig, options: BottleneckOptions) -> None:
        super().__init__()
        self.options, inner = options, options.bottleneck_dim
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    f"{place}_{end}": nn.Linear(*((config.dim, inner) if end == "down" else (inner, config.dim)))
                    for place in PLACES
                    for end in ("down", "up")
                }
            )
            for _ in range(config.n_layers)
        )
        with torch.no_grad():
            for layer in self.layers:
                for name, linear in layer.items():  # type: ignore[operator]
                    if name.endswith("up"):
                        linear.weight.zero_()
                    linear.bias.zero_()

    def branch(self, layer: int, place: str, x: Tensor) -> Tensor:
        down, up = (self.layers[layer][f"{place}_{end}"] for end in ("down", "up"))  # type: ignore[index]
        inner = F.gelu(F.linear(x, down.weight.to(x.dtype), down.bias.to(x.dtype)))
        return x + F.linear(inner, up.weight.to(x.dtype), up.bias.to(x.dtype))


METHOD = Method("bottleneck", "small networks behind attention and feed-forward", BottleneckOptions, Bottleneck)
