"""A tiny random LLaMA and what to train it on; one thread, as more would only wait for each other."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from finetune.adapters import METHODS
from finetune.adapters.base import Adapter
from finetune.data.samples import Example
from llama.config import ModelConfig
from llama.model import Transformer

# Heads wider than dim / heads, and fewer for keys: n_rep must come from the configuration.
TINY = ModelConfig(
    dim=48, n_layers=4, n_heads=4, n_kv_heads=2, head_dim=16, ffn_dim=64, vocab_size=96, context_length=512, tied=True
)
# Small values of every method's options, so that all can be made for the tiny model.
SMALL: dict[str, dict[str, Any]] = {
    "lora": {"lora_rank": 4},
    "qlora": {"lora_rank": 4},
    "llama_adapter": {"adapter_len": 5, "adapter_layers": 3},
    "prefix_tuning": {"num_virtual_tokens": 6},
    "prompt_tuning": {"num_virtual_tokens": 6},
    "bottleneck": {"bottleneck_dim": 8},
    "freeze": {},
    "llama_pro": {"num_new_layers": 2},
    "full": {},
}
# Further forms of a method, by a name of their own.
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, options) for name, options in SMALL.items()},
    "rslora": ("lora", {"lora_rank": 4, "use_rslora": True, "lora_target": ["q_proj", "v_proj"]}),
    "dora": ("lora", {"lora_rank": 4, "use_dora": True}),
    "scalar gates": ("llama_adapter", {"adapter_len": 5, "adapter_layers": 3, "gate": "scalar"}),
    "prefix by a network": ("prefix_tuning", {"num_virtual_tokens": 6, "prefix_projection": True, "prefix_hidden": 12}),
    "p-tuning mlp": ("prompt_tuning", {"num_virtual_tokens": 6, "prompt_encoder": "mlp", "prompt_hidden": 12}),
    "p-tuning lstm": ("prompt_tuning", {"num_virtual_tokens": 6, "prompt_encoder": "lstm", "prompt_hidden": 12}),
    "freeze first": ("freeze", {"freeze_trainable_layers": -1}),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny_model(config: ModelConfig = TINY, seed: int = 1) -> Transformer:
    """Weights large enough that attention is not even."""
    generator = torch.Generator().manual_seed(seed)
    model = Transformer(config)
    with torch.no_grad():
        for parameter in model.parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(drawn * 0.3 if parameter.ndim > 1 else 1 + 0.2 * drawn)
    return model.eval().requires_grad_(False)


def encode(text: str) -> list[int]:
    return [ord(character) % TINY.vocab_size for character in text]


def adapted(form: str, model: Transformer | None = None, seed: int = 3) -> tuple[Transformer, Adapter]:
    """The model that a method runs in, and the fresh adapter."""
    name, options = FORMS[form]
    torch.manual_seed(seed)
    model = model or tiny_model()
    method = METHODS[name]
    adapter = method.make(model.config, method.options(**options))
    model = adapter.enter(model)
    adapter.begin(model, encode)
    return model, adapter


def shaken(model: Transformer, adapter: Adapter, seed: int = 5, by: float = 0.1) -> None:
    """Moves every trained value, so that gates are open and low-rank products are not zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.trained(model).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * by)


def examples(count: int = 16, groups: int = 8, seed: int = 0) -> list[Example]:
    """Random words, and six ids that follow from the first of them."""
    draw = random.Random(seed)
    made = []
    for i in range(count):
        size = draw.randint(5, 20)
        words = [draw.randrange(96) for _ in range(size)]
        ids = (*words, *((words[0] + k) % 96 for k in range(6)))
        made.append(Example(ids, (False,) * size + (True,) * 6, f"g{i % groups}", f"s{i}"))
    return made
