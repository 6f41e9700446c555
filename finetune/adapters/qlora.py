"""QLoRA (Dettmers et al. 2023): LoRA beside a base whose products are kept in four bits while it trains."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from finetune.adapters.base import PRODUCTS, Method, products
from finetune.adapters.lora import PEFT, Lora, LoraOptions
from finetune.nf4 import NF4Linear
from llama.model import Transformer


class QloraOptions(LoraOptions):
    """`merge_into`: the weights that a merge starts from, as they were before training or as the four bits stand for.

    The adapter has seen the latter, and corrects for what rounding did; the former are nearer to what the base was.
    """

    merge_into: Literal["original", "dequantized"] = "original"


class Qlora(Lora):
    """Enters as LoRA, after the seven products of every block were packed into NF4; norms and embeddings are not."""

    options: QloraOptions

    def enter(self, model: Transformer) -> Transformer:
        for _, name, linear, block in products(model, tuple(PRODUCTS)):
            if isinstance(linear, nn.Linear):
                setattr(block.get_submodule(PRODUCTS[name]), name, NF4Linear(linear.weight))
        return super().enter(model)

    def merge(self, model: Transformer) -> dict[str, Tensor]:
        for _, name, linear, block in products(model, tuple(PRODUCTS)):
            if isinstance(linear, NF4Linear):
                plain = nn.Linear(linear.in_features, linear.out_features, bias=False)
                plain.weight = nn.Parameter(linear.dense(), requires_grad=False)
                setattr(block.get_submodule(PRODUCTS[name]), name, plain)
        return super().merge(model)


METHOD = Method("qlora", "LoRA beside a base in four bits (NF4)", QloraOptions, Qlora, PEFT)
