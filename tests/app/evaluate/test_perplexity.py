"""Perplexity beside transformers' on the same weights and text."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from app.evaluate.perplexity import Perplexity, measure, windows
from llama.engine import Engine, load_engine

TEXT = (
    "Llamas are led in strings of four. Before a trek every animal is weighed, brushed and checked for sores; a load "
    "is never more than a quarter of its weight. 羊驼每天吃两公斤干草，盐砖在星期一更换。\n\n"
) * 6


@pytest.fixture(scope="module")
def engine(gguf_path: Path) -> Engine:
    return load_engine(gguf_path, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def oracle(gguf_path: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModelForCausalLM.from_pretrained(
        gguf_path.parent, gguf_file=gguf_path.name, dtype=torch.float32
    ).eval()


@pytest.mark.parametrize(("window", "stride"), [(4096, 2048), (64, 24)])
def test_equals_transformers(engine: Engine, oracle: Any, window: int, stride: int) -> None:
    ids = torch.tensor([engine.tokenizer.encode(TEXT)])
    loss, scored, done = 0.0, 0, 1
    with torch.inference_mode():
        for start in range(0, ids.shape[1], stride):
            end = min(start + window, ids.shape[1])
            if end > done:
                logits = oracle(ids[:, start:end]).logits[0]
                at = torch.arange(done, end)
                losses = torch.nn.functional.cross_entropy(logits[at - start - 1], ids[0, at], reduction="sum")
                loss, scored, done = loss + float(losses), scored + len(at), end
    found = measure(engine, TEXT, window, stride)
    assert found.tokens == scored == ids.shape[1] - 1
    assert found.perplexity == pytest.approx(math.exp(loss / scored), rel=1e-3)
    first = len(engine.tokenizer.bytes_of(int(ids[0, 0])))
    assert found.bytes == len(TEXT.encode()) - first
    assert found.bits_per_byte == pytest.approx(loss / math.log(2) / found.bytes, rel=1e-3)


def test_how_many_windows_run_together_does_not_matter(engine: Engine) -> None:
    alone, together = measure(engine, TEXT, 64, 16, rows=1), measure(engine, TEXT, 64, 16, rows=5)
    assert together.tokens == alone.tokens
    assert together.loss == pytest.approx(alone.loss, rel=1e-6)


def test_progress_within_a_text(engine: Engine) -> None:
    told: list[int] = []
    measure(engine, TEXT, 64, 16, rows=2, advance=told.append)
    assert sum(told) == len(TEXT)
    assert len(told) > 5
    assert max(told) < len(TEXT) / 3
    assert min(told) >= 0


def test_more_context_helps(engine: Engine) -> None:
    assert measure(engine, TEXT, 256, 128).perplexity < measure(engine, TEXT, 16, 8).perplexity


@given(st.integers(2, 400), st.integers(2, 60), st.data())
def test_every_token_but_the_first_is_scored_once(tokens: int, window: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, window - 1))
    found = list(windows(tokens, window, stride))
    scored = [place for each in found for place in range(each.scored, each.end)]
    assert scored == list(range(1, tokens))
    assert all(each.end - each.start <= window and each.scored > each.start for each in found)


def test_nothing_to_score(engine: Engine) -> None:
    for text in ("", "a"):
        found = measure(engine, text, 64, 32)
        assert (found.tokens, found.to_json()["perplexity"]) == (0, None)
    assert math.isnan(Perplexity().perplexity)
