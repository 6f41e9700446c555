"""Fine-tuning methods by name. To add one, write its file and put it into this list."""

from __future__ import annotations

from finetune.adapters import (
    bottleneck,
    freeze,
    full,
    llama_adapter,
    llama_pro,
    lora,
    prefix_tuning,
    prompt_tuning,
    qlora,
)
from finetune.adapters.base import Method
from finetune.errors import FinetuneError, nearest

FILES = (lora, qlora, llama_adapter, prefix_tuning, prompt_tuning, bottleneck, freeze, llama_pro, full)
METHODS: dict[str, Method] = {file.METHOD.name: file.METHOD for file in FILES}


def method(name: str) -> Method:
    """The method of that name. Raises FinetuneError with the nearest one there is."""
    if name not in METHODS:
        near = nearest(name, METHODS)
        raise FinetuneError(f"there is no method '{name}'; did you mean '{near}'? There are: {', '.join(METHODS)}")
    return METHODS[name]
