"""The shipped model beside its oracle: transformers on the same GGUF file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from llama.engine import Engine, load_engine


@pytest.fixture(scope="session")
def engine(gguf_path: Path) -> Engine:
    return load_engine(gguf_path, device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def oracle_tokenizer(gguf_path: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(gguf_path.parent, gguf_file=gguf_path.name)


@pytest.fixture(scope="session")
def oracle(gguf_path: Path) -> Iterator[Any]:
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        gguf_path.parent, gguf_file=gguf_path.name, dtype=torch.float32
    )
    with torch.inference_mode():
        yield model.eval()
