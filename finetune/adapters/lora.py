"""LoRA (Hu et al. 2021): W x + s B A x; rank-stabilised scaling (Kalajdzievski 2023), DoRA (Liu et al. 2024)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn

from finetune.adapters.base import (
    PEFT_LAYER,
    PRODUCTS,
    Adapter,
    Method,
    Options,
    Peft,
    Tensors,
    dense,
    only,
    parameter_name,
    products,
)
from finetune.errors import FinetuneError, nearest
from llama.adaptation import Delta, LowRank
from llama.config import ModelConfig
from llama.model import Transformer
from llama.serving import Serving


class LoraOptions(Options):
    """`lora_target` names products of a block; the word "all" stands for all seven."""

    lora_rank: int = Field(16, ge=1)
    lora_alpha: float = Field(32.0, gt=0)
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    lora_target: tuple[str, ...] = tuple(PRODUCTS)
    use_rslora: bool = False
    use_dora: bool = False

    @field_validator("lora_target", mode="before")
    @classmethod
    def _names(cls, given: Any) -> Any:
        names = [given] if isinstance(given, str) else given
        if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
            raise FinetuneError(f"lora_target is {given!r}; give a list of names of: all, {', '.join(PRODUCTS)}")
        names = list(PRODUCTS) if list(names) == ["all"] else names
        for name in names:
            if name not in PRODUCTS:
                raise FinetuneError(
                    f"lora_target has no '{name}'; did you mean '{nearest(name, PRODUCTS)}'? "
                    f"There are: all, {', '.join(PRODUCTS)}"
                )
        if not names:
            raise FinetuneError('lora_target is empty; name at least one product, or say "all"')
        return tuple(name for name in PRODUCTS if name in names)

    @property
    def scale(self) -> float:
        """alpha / r, or alpha / sqrt(r) where the rank is not to change the size of what is learned."""
        return self.lora_alpha / (math.sqrt(self.lora_rank) if self.use_rslora else self.lora_rank)


class Pair(nn.Module):
    """A [r, in] and B [out, r] of one product and, for DoRA, the magnitude [out] of its rows."""

    def __init__(self, inputs: int, outputs: int, rank: int, dora: bool) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(rank, inputs))
        self.B = nn.Parameter(torch.zeros(outputs, rank))
        self.magnitude = nn.Parameter(torch.ones(outputs)) if dora else None
        if not self.A.is_meta:
            nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))


def sizes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of each product."""
    heads, kv = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    return {
        "q_proj": (config.dim, heads),
        "k_proj": (config.dim, kv),
        "v_proj": (config.dim, kv),
        "o_proj": (heads, config.dim),
        "gate_proj": (config.dim, config.ffn_dim),
        "up_proj": (config.dim, config.ffn_dim),
        "down_proj": (config.ffn_dim, config.dim),
    }


class Lora(Adapter):
    """Enters at the products; A and B train; merges into their matrices."""

    options: LoraOptions

    def __init__(self, config: ModelConfig, options: LoraOptions) -> None:
        super().__init__()
        self.options, known = options, sizes(config)
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {name: Pair(*known[name], options.lora_rank, options.use_dora) for name in options.lora_target}
            )
            for _ in range(config.n_layers)
        )

    def begin(self, model: Transformer, encode: Any) -> None:
        with torch.no_grad():
            for layer, name, linear, _ in products(model, self.options.lora_target):
                if (magnitude := self.pair(layer, name).magnitude) is not None:
                    magnitude.copy_(dense(linear).float().norm(dim=1))  # so that DoRA starts at the base

    def weaken(self, share: float) -> None:
        if self.options.use_dora:
            super().weaken(share)
        with torch.no_grad():
            for layer in self.layers:
                for pair in layer.values():  # type: ignore[operator]
                    pair.B.mul_(share)

    def pair(self, layer: int, name: str) -> Pair:
        found: Pair = self.layers[layer][name]  # type: ignore[index]
        return found

    def project(self, layer: int, name: str, linear: nn.Module, x: Tensor) -> Tensor:
        if name not in self.options.lora_target:
            return linear(x)  # type: ignore[no-any-return]
        pair, scale = self.pair(layer, name), self.options.scale
        dropout = self.options.lora_dropout if self.training else 0.0
        if isinstance(linear, nn.Linear) and not dropout and pair.magnitude is None:
            return _beside(linear.weight, pair, x, scale)
        inside = F.dropout(x, dropout) if dropout else x
        low = F.linear(F.linear(inside, pair.A.to(x.dtype)), pair.B.to(x.dtype)) * scale
        whole: Tensor = linear(x) + low
        if pair.magnitude is None:
            return whole
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            # The norm counts as a constant (section 4.3).
            norm = (dense(linear).float() + scale * (pair.B @ pair.A)).norm(dim=1)
        # Near 1 a factor in bf16 has steps of half a per cent; what it is more or less than 1 has not.
        more: Tensor = (pair.magnitude / norm - 1).to(whole.dtype)
        return whole + more * whole

    def serve(self, model: Transformer, tensors: Mapping[str, Tensor]) -> Serving:
        """Scale and norms are taken once. Beside a base in fewer bits, the norms are those of what they stand for."""
        self.restore(model, tensors)
        deltas, dtype = {}, model.norm.weight.dtype
        with torch.no_grad():
            for layer, name, linear, _ in products(model, self.options.lora_target):
                pair, factor = self.pair(layer, name), None
                b = self.options.scale * pair.B
                if pair.magnitude is not None:
                    wide = pair.magnitude / (dense(linear).float() + b @ pair.A).norm(dim=1)
                    b, factor = wide[:, None] * b, wide.to(dtype)
                deltas[layer, name] = Delta(pair.A.detach().to(dtype), b.to(dtype), factor)
        return Serving(model, LowRank(deltas))

    def merge(self, model: Transformer) -> dict[str, Tensor]:
        before = {}
        with torch.no_grad():
            for layer, name, linear, _ in products(model, self.options.lora_target):
                if not isinstance(linear, nn.Linear):
                    raise FinetuneError("LoRA merges into plain weights only; load the base model with --quant none")
                pair, weight = self.pair(layer, name), linear.weight
                before[parameter_name(layer, name)] = weight.clone()
                whole = weight.float() + self.options.scale * (pair.B.float() @ pair.A.float())
                if pair.magnitude is not None:
                    whole *= (pair.magnitude.float() / whole.norm(dim=1))[:, None]
                weight.copy_(whole)
        return before


def _beside(weight: Tensor, pair: Pair, x: Tensor, scale: float) -> Tensor:
    """W x + s B A x as one step of autograd; under autocast in its dtype, as a plain product would be."""
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    with torch.autocast(kind, enabled=False):
        flat = x.reshape(-1, x.shape[-1]).to(dtype)
        out: Tensor = _Beside.apply(flat, weight.to(dtype), pair.A.to(dtype), pair.B.to(dtype), scale)  # type: ignore[no-untyped-call]
    return out.view(*x.shape[:-1], -1)


class _Beside(torch.autograd.Function):
    """The low-rank part is added in place, forward and backward, and the frozen matrix gets no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        inner = x @ a.T
        ctx.save_for_backward(x, weight, a, b, inner)
        ctx.scale = scale
        return (x @ weight.T).addmm_(inner, b.T, alpha=scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, inner = ctx.saved_tensors
        (grad,) = grads
        back = (grad @ b).mul_(ctx.scale)  # [N, r]
        to_x = (grad @ weight).addmm_(back, a) if ctx.needs_input_grad[0] else None
        return to_x, None, back.T @ x, (grad.T @ inner).mul_(ctx.scale), None


PARTS = {"A": "lora_A.weight", "B": "lora_B.weight", "magnitude": "lora_magnitude_vector"}


def _write(options: LoraOptions, config: ModelConfig, stored: Mapping[str, Tensor]) -> tuple[dict[str, Any], Tensors]:
    """Every key, as absent ones silently become the library's defaults."""
    tensors = {}
    for name, tensor in stored.items():
        _, layer, product, part = name.split(".")
        tensors[f"{PEFT_LAYER.format(layer, f'{PRODUCTS[product]}.{product}')}.{PARTS[part]}"] = tensor
    return {
        "r": options.lora_rank,
        "lora_alpha": options.lora_alpha,
        "lora_dropout": options.lora_dropout,
        "target_modules": list(options.lora_target),
        "use_rslora": options.use_rslora,
        "use_dora": options.use_dora,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "rank_pattern": {},
        "alpha_pattern": {},
        "layers_to_transform": None,
        "layers_pattern": None,
        "modules_to_save": None,
    }, tensors


# First values that leave the base as it is. PEFT's other ones (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) put a part of its
# weights into A and B and take it out of the base, which is then another one than ours.
STARTS = ("gaussian", "eva", "orthogonal", "mica")


def _read(
    given: Mapping[str, Any], config: ModelConfig, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Any], Tensors]:
    if missing := sorted({"r", "lora_alpha", "target_modules"} - given.keys()):
        raise FinetuneError(f"its adapter_config.json lacks {missing[0]}")
    plain = ("rank_pattern", "alpha_pattern", "layers_to_transform", "modules_to_save", "fan_in_fan_out", "lora_bias",
             "layer_replication", "trainable_token_indices", "use_qalora", "alora_invocation_tokens", "arrow_config",
             "target_parameters", "use_bdlora", "kasa_config", "velora_config")  # fmt: skip
    only(given, bias="none", **dict.fromkeys(plain))
    start = given.get("init_lora_weights")
    if isinstance(start, str) and start.lower() not in STARTS:
        raise FinetuneError(
            f"its adapter_config.json has init_lora_weights = {start!r}, and only {', '.join(STARTS)} are known to "
            "leave the base's weights alone; let PEFT save it with path_initial_model_for_weight_conversion"
        )
    targets = given["target_modules"]
    if isinstance(targets, str):
        pattern = targets
        targets = [
            p for p in PRODUCTS if pattern == "all-linear" or re.fullmatch(pattern, f"model.layers.0.{PRODUCTS[p]}.{p}")
        ]
    found, parts = {}, {theirs: ours for ours, theirs in PARTS.items()}
    for name, tensor in tensors.items():
        hit = re.fullmatch(r"base_model\.model\.model\.layers\.(\d+)\.(?:self_attn|mlp)\.(\w+)\.(lora_.*)", name)
        if hit is None or hit[3] not in parts or hit[2] not in PRODUCTS:
            raise FinetuneError(f"its {name} is not of a LLaMA's seven products, which alone are supported")
        found[f"layers.{hit[1]}.{hit[2]}.{parts[hit[3]]}"] = tensor
    return {
        "lora_rank": given["r"],
        "lora_alpha": given["lora_alpha"],
        "lora_dropout": given.get("lora_dropout", 0.0),
        "lora_target": [str(each).rpartition(".")[2] for each in targets],
        "use_rslora": bool(given.get("use_rslora")),
        "use_dora": bool(given.get("use_dora")),
    }, found


PEFT = Peft("LORA", _write, _read)
METHOD = Method("lora", "low-rank matrices beside the products; rsLoRA and DoRA", LoraOptions, Lora, PEFT)
