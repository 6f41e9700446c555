"""Ordinary text beside a small knowledge base."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from vectorstore import analyze, background
from vectorstore.keyword import KeywordIndex


def test_the_counts_are_of_the_terms_that_are_made_now() -> None:
    assert json.loads(background.DATA.read_text(encoding="utf-8"))["terms"] == analyze.VERSION
    shares = background.shares()
    assert all(0 < share <= 1 for share in shares.values())
    for common in ("the of and is", "的 是", "der die und", "what", "什么"):
        assert all(shares[term] > 0.1 for term in analyze.terms(common)), common
    assert not {"llama", "羊驼", "paddock"} & set(shares)


def test_a_large_knowledge_base_speaks_for_itself() -> None:
    alone = math.log(1 + (1_000_000 - 2_000 + 0.5) / (2_000 + 0.5))
    assert background.idf("llama", 2_000, 1_000_000) == pytest.approx(alone, rel=1e-3)
    assert background.idf("the", 999_000, 1_000_000) < 0.01
    assert background.share(0) == 1
    assert background.share(1_000_000) < 1e-4


def test_in_a_small_one_the_words_it_is_about_count(tmp_path: Path) -> None:
    index = KeywordIndex(tmp_path / "k", create=True)
    texts = [f"The llama Kusi eats hay on day {n} of the walk." for n in range(4)]
    index.put("d", [(f"d-{n}", text) for n, text in enumerate(texts)])
    index.commit()
    terms = index.analyse("What did the llama Kusi eat on the walk?")
    assert terms.held(texts[0]) > 0.6
    assert terms.held("What did you do then?") < 0.3
    weights = terms.weights
    assert weights["llama"] > weights["what"] > weights["the"]
    index.close()
