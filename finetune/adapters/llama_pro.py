"""LLaMA Pro (Wu et al. 2024): copies of blocks are put between the others, and only the copies train."""

from __future__ import annotations

from dataclasses import replace

import torch
from pydantic import Field

from finetune.adapters.base import Method, Options
from finetune.adapters.weights import OwnWeights
from finetune.errors import FinetuneError
from llama.config import ModelConfig
from llama.model import Transformer

SILENT = ("self_attn.o_proj.weight", "mlp.down_proj.weight")  # at 0, a block adds nothing to the residual


class ProOptions(Options):
    """`num_new_layers` P: a copy comes behind every L / P blocks, so P divides L."""

    num_new_layers: int = Field(8, ge=1)


class LlamaPro(OwnWeights):
    """Enters as a deeper model that computes the same until its new blocks' o_proj and down_proj have learned."""

    def __init__(self, config: ModelConfig, options: ProOptions) -> None:
        super().__init__()
        if config.n_layers % options.num_new_layers:
            fits = [n for n in range(1, config.n_layers + 1) if config.n_layers % n == 0]
            raise FinetuneError(
                f"num_new_layers is {options.num_new_layers}, which does not divide the model's {config.n_layers} "
                f"blocks; give one of {', '.join(map(str, fits))}"
            )
        self.options, self.every = options, config.n_layers // options.num_new_layers
        self.depth = config.n_layers + options.num_new_layers

    def source(self, layer: int) -> int:
        """The block of the base that a block of the deeper model is, or is a copy of."""
        group, place = divmod(layer, self.every + 1)
        return group * self.every + min(place, self.every - 1)

    def order(self, layers: int) -> list[int]:
        return [self.source(layer) for layer in range(self.depth)]

    def chosen(self, name: str) -> bool:
        first, _, rest = name.partition(".")
        return first == "layers" and int(rest.partition(".")[0]) % (self.every + 1) == self.every

    def enter(self, model: Transformer) -> Transformer:
        with torch.device("meta"):
            deeper = Transformer(replace(model.config, n_layers=self.depth))
        old = model.state_dict()
        new = {}
        for name in deeper.state_dict():
            parts = name.split(".")
            if parts[0] == "layers":
                parts[1] = str(self.source(int(parts[1])))
            value = old[".".join(parts)]
            if self.chosen(name):
                value = torch.zeros_like(value) if name.endswith(SILENT) else value.clone()
            new[name] = value
        deeper.load_state_dict(new, assign=True)
        if model.config.tied:
            deeper.lm_head.weight = deeper.embed_tokens.weight
        return super().enter(deeper.train(model.training))


METHOD = Method("llama_pro", "copies of blocks put between the others", ProOptions, LlamaPro)
