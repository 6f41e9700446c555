"""Methods that train the model's own weights: each is served as a model of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from finetune.adapters.base import Adapter, same
from llama.model import Transformer
from llama.serving import Serving, rebuilt


class OwnWeights(Adapter):
    """Enters by letting some of the model's parameters train; merging leaves nothing to do, they are in place."""

    def chosen(self, name: str) -> bool:
        """Whether the parameter of that name trains."""
        raise NotImplementedError

    def order(self, layers: int) -> list[int]:
        """For each block of the model that it makes, which of the base's `layers` blocks that is, or is made from."""
        return list(range(layers))

    def enter(self, model: Transformer) -> Transformer:
        model.requires_grad_(False)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(self.chosen(name))
        return model

    def trained(self, model: Transformer) -> dict[str, nn.Parameter]:
        return {name: parameter for name, parameter in model.named_parameters() if self.chosen(name)}

    def serve(self, model: Transformer, tensors: Mapping[str, Tensor]) -> Serving:
        """A second model that shares with the base what did not train; in few bits where the base is."""
        order = self.order(model.config.n_layers)
        with torch.device("meta"):
            same(self.trained(Transformer(replace(model.config, n_layers=len(order)))), tensors)
        return Serving(rebuilt(model, order, tensors))

    def merge(self, model: Transformer) -> dict[str, Tensor]:
        return {}
