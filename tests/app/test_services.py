"""What the application builds of its settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.config import Settings
from app.services import Services
from llama import packed_file


def test_packed_weights_are_kept_between_starts(
    tmp_path: Path, gguf_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(home=tmp_path, model=str(gguf_path), device="cpu")
    first = Services(settings).engine
    assert [each.suffix for each in (tmp_path / "cache" / "quantized").iterdir()] == [".safetensors"]

    def packed_again(*_: object) -> None:
        raise AssertionError("packed again")

    monkeypatch.setattr(packed_file, "pack_checkpoint", packed_again)
    again = Services(settings).engine
    prompt = first.tokenizer.encode("The refuge stands at")
    assert again.next_logits(prompt).equal(first.next_logits(prompt))
