"""LLaMA-Adapter (Zhang et al. 2023): prompts that the upper layers look at through a gate, closed at first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from finetune.adapters.base import PEFT_LAYER, Adapter, Method, Options, Peft, Tensors
from finetune.errors import FinetuneError
from llama.config import ModelConfig
from llama.model import Attention, Block, Transformer, attend
from llama.serving import Serving


class AdaptionOptions(Options):
    """`adapter_layers`: how many of the last layers; all but the first two by default.

    `gate`: "head" is the paper's, tanh of one for each head; "scalar" is PEFT's, one for a layer and without tanh.
    """

    adapter_len: int = Field(10, ge=1)
    adapter_layers: int | None = Field(None, ge=1)
    gate: Literal["head", "scalar"] = "head"


class LlamaAdapter(Adapter):
    """Enters behind attention: out + tanh(g) softmax(q a_k^T) a_v, two softmaxes, a_k without rotary positions.

    a_k and a_v are the frozen projections of the layer's prompt. Prompts and gates train; it does not merge.
    """

    cannot_merge = "a LLaMA-Adapter is an attention of its own and cannot be merged into the weights"

    def __init__(self, config: ModelConfig, options: AdaptionOptions) -> None:
        super().__init__()
        layers = options.adapter_layers or max(1, config.n_layers - 2)
        if layers > config.n_layers:
            raise FinetuneError(f"adapter_layers is {layers} and the model has {config.n_layers}; give fewer")
        self.options, self.first, self.count = options, config.n_layers - layers, layers
        self.prompt = nn.Parameter(torch.empty(layers * options.adapter_len, config.dim))
        if not self.prompt.is_meta:
            nn.init.normal_(self.prompt)
        gates = config.n_heads if options.gate == "head" else 1
        self.gate = nn.Parameter(torch.zeros(layers, gates))  # fp32 whatever the model is in
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}  # of a layer, where nothing trains any more

    def attended(self, attention: Attention, q: Tensor, out: Tensor) -> Tensor:
        place = attention.layer - self.first
        if place < 0:
            return out
        k, v = self._kept.get(place) or self._projected(attention, out.dtype)
        k, v = (each.expand(len(q), -1, -1, -1).to(q.dtype) for each in (k, v))
        gate = self.gate[place].view(1, -1, 1, 1)
        gate = gate.tanh() if self.options.gate == "head" else gate
        return out + gate.to(out.dtype) * attend(q, k, v, None, causal=False)

    def _projected(self, attention: Attention, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values [1, G, n, E] of the layer's prompt."""
        size, place = self.options.adapter_len, attention.layer - self.first
        prompt = self.prompt[place * size : (place + 1) * size].to(dtype)
        shape = (1, size, attention.n_kv_heads, attention.head_dim)
        k, v = (linear(prompt).view(shape).transpose(1, 2) for linear in (attention.k_proj, attention.v_proj))
        return k, v

    def serve(self, model: Transformer, tensors: Mapping[str, Tensor]) -> Serving:
        """The prompts' keys and values are computed once."""
        made = super().serve(model, tensors)
        for place, block in enumerate(model.layers[self.first :]):
            assert isinstance(block, Block)
            self._kept[place] = self._projected(block.self_attn, model.norm.weight.dtype)
        return made


def _write(
    options: AdaptionOptions, config: ModelConfig, stored: Mapping[str, Tensor]
) -> tuple[dict[str, Any], Tensors]:
    if options.gate == "head":
        raise FinetuneError('PEFT has one gate a layer and no tanh; train with gate = "scalar" for that form')
    if config.head_dim * config.n_heads != config.dim:  # its number of key heads is wrong for others
        raise FinetuneError(
            f"PEFT's form needs heads as wide as dim / heads = {config.dim / config.n_heads:g}, and the model's have "
            f"{config.head_dim}; keep it as it is"
        )
    gates, size = stored["gate"], options.adapter_len
    tensors = {}
    for place in range(len(gates)):
        at = PEFT_LAYER.format(config.n_layers - len(gates) + place, "self_attn")
        tensors[f"{at}.adaption_gate"] = gates[place]
        tensors[f"{at}.adaption_prompt"] = stored["prompt"][None, place * size : (place + 1) * size]
    return {"adapter_len": size, "adapter_layers": len(gates), "target_modules": "self_attn"}, tensors


def _read(
    given: Mapping[str, Any], config: ModelConfig, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Any], Tensors]:
    layers, size = int(given.get("adapter_layers") or 0), int(given.get("adapter_len") or 0)
    places = [PEFT_LAYER.format(config.n_layers - layers + place, "self_attn") for place in range(layers)]
    wanted = {f"{at}.{part}" for at in places for part in ("adaption_gate", "adaption_prompt")}
    if not layers or wanted != tensors.keys():
        raise FinetuneError(f"its tensors are not those of {layers} of the model's {config.n_layers} layers")
    found = {
        "gate": torch.stack([tensors[f"{at}.adaption_gate"] for at in places]),
        "prompt": torch.cat([tensors[f"{at}.adaption_prompt"][0] for at in places]),
    }
    return {"adapter_len": size, "adapter_layers": layers, "gate": "scalar"}, found


PEFT = Peft("ADAPTION_PROMPT", _write, _read)
METHOD = Method("llama_adapter", "gated prompts in the upper layers' attention", AdaptionOptions, LlamaAdapter, PEFT)
