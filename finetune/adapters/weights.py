"""Methods that train the model's own weights: each is served as a model of its own."""

from __future__ import annotations

from torch import Tensor, nn

from finetune.adapters.base import Adapter
from llama.model import Transformer


class OwnWeights(Adapter):
    """Enters by letting some of the model's parameters train; merging leaves nothing to do, they are in place."""

    per_request = False

    def chosen(self, name: str) -> bool:
        """Whether the parameter of that name trains."""
        raise NotImplementedError

    def enter(self, model: Transformer) -> Transformer:
        model.requires_grad_(False)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(self.chosen(name))
        return model

    def trained(self, model: Transformer) -> dict[str, nn.Parameter]:
        return {name: parameter for name, parameter in model.named_parameters() if self.chosen(name)}

    def merge(self, model: Transformer) -> dict[str, Tensor]:
        return {}
