"""Full fine-tuning: every parameter of the model trains."""

from __future__ import annotations

from finetune.adapters.base import Method, Options
from finetune.adapters.weights import OwnWeights
from llama.config import ModelConfig


class Full(OwnWeights):
    def __init__(self, config: ModelConfig, options: Options) -> None:
        super().__init__()
        self.options = options

    def chosen(self, name: str) -> bool:
        return True


METHOD = Method("full", "all weights of the model", Options, Full)
