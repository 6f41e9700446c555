"""Freeze tuning: the last blocks train, or the first ones, and all others stay (as LLaMA-Factory names it)."""

from __future__ import annotations

from typing import Any

from finetune.adapters.base import Method, Options
from finetune.adapters.weights import OwnWeights
from finetune.errors import FinetuneError
from llama.config import ModelConfig


class FreezeOptions(Options):
    """How many of the last blocks train; below 0, how many of the first."""

    freeze_trainable_layers: int = 2


class Freeze(OwnWeights):
    def __init__(self, config: ModelConfig, options: FreezeOptions) -> None:
        super().__init__()
        count, layers = options.freeze_trainable_layers, config.n_layers
        if not 1 <= abs(count) <= layers:
            raise FinetuneError(
                f"freeze_trainable_layers is {count}; the model has {layers} blocks, give 1 to {layers}"
            )
        self.options: Any = options
        self.layers = range(layers - count, layers) if count > 0 else range(-count)

    def chosen(self, name: str) -> bool:
        first, _, rest = name.partition(".")
        return first == "layers" and int(rest.partition(".")[0]) in self.layers


METHOD = Method("freeze", "the last blocks' own weights, or the first ones'", FreezeOptions, Freeze)
