"""The weight between meaning and words, and what is ranked by it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vectorstore.fusion import FEATURES, Candidates, Fusion, learned


def judged(cosines: list[float], shares: list[float], known: float = 1.0, covered: float = 1.0) -> Candidates:
    return Candidates(cosines, shares, known=known, covered=covered)


def order(candidates: Candidates, fusion: Fusion | None = None) -> list[int]:
    return [place for place, _ in (fusion or learned()).ranked(candidates)]


ONLY_MEANING, ONLY_WORDS = Fusion((50.0, 0.0, 0.0, 0.0)), Fusion((-50.0, 0.0, 0.0, 0.0))


def test_the_ends_are_the_sides_themselves() -> None:
    candidates = judged([0.1, 0.9, 0.5], [0.3, 0.0, 0.2])
    assert order(candidates, ONLY_MEANING) == [1, 2, 0]
    assert order(candidates, ONLY_WORDS) == [0, 2, 1]


def test_each_feature_moves_the_weight_as_it_should() -> None:
    """Less is left to meaning where the embedder cannot read, and where both sides disagree."""
    fusion = learned()
    agreeing, against = judged([0.9, 0.5, 0.1], [0.3, 0.2, 0.1]), judged([0.9, 0.5, 0.1], [0.1, 0.2, 0.3])
    assert fusion.weight(agreeing) > fusion.weight(against)
    readable = judged([0.9, 0.5, 0.1], [0.1, 0.2, 0.3], covered=1.0)
    assert fusion.weight(readable) > fusion.weight(judged([0.9, 0.5, 0.1], [0.1, 0.2, 0.3], covered=0.2))


def test_agreement_is_that_over_what_words_found() -> None:
    """What only the vectors found is near and has no words: that says nothing about whether they can be trusted."""
    found = judged([0.9, 0.7, 0.6, 0.5], [0.4, 0.3, 0.2, 0.1])
    beside = judged([0.9, 0.7, 0.6, 0.5, 0.89, 0.88, 0.87, 0.86], [0.4, 0.3, 0.2, 0.1, 0, 0, 0, 0])
    assert beside.features == pytest.approx(found.features)
    assert found.features[FEATURES.index("correlation")] > 0.9


def test_an_embedder_that_knows_nothing_is_trusted_less() -> None:
    random = np.random.default_rng(0)
    shares = list(np.linspace(0.5, 0.01, 50))
    good = [0.3 + 0.5 * share + 0.03 * random.standard_normal() for share in shares]
    chance = list(0.8 + 0.02 * random.standard_normal(50))
    assert learned().weight(judged(good, shares)) > learned().weight(judged(chance, shares)) + 0.2


def test_one_side_alone() -> None:
    assert order(judged([0.2, 0.8, 0.5], [0.0, 0.0, 0.0], known=0.0)) == [1, 2, 0]
    assert order(judged([0.4, 0.4, 0.4], [0.1, 0.3, 0.2])) == [1, 2, 0]
    assert order(judged([], [])) == []
    assert order(judged([0.3], [0.0])) == [0]


@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(0, 1)), max_size=20), st.floats(0, 1), st.floats(0, 1))
def test_never_fails_and_gives_each_once(pairs: list[tuple[float, float]], known: float, covered: float) -> None:
    candidates = judged([near for near, _ in pairs], [words for _, words in pairs], known, covered)
    ranked = learned().ranked(candidates)
    assert sorted(place for place, _ in ranked) == list(range(len(pairs)))
    relevance = [each for _, each in ranked]
    assert relevance == sorted(relevance, reverse=True)
    assert all(0.0 <= each <= 1.0 + 1e-9 for each in relevance)


@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(0, 1)), min_size=2, max_size=20))
def test_what_both_sides_prefer_is_preferred(pairs: list[tuple[float, float]]) -> None:
    best = (max(near for near, _ in pairs) + 0.1, max(words for _, words in pairs) + 0.1)
    candidates = judged([near for near, _ in [*pairs, best]], [words for _, words in [*pairs, best]])
    assert order(candidates)[0] == len(pairs)


def test_the_scale_of_an_embedder_does_not_matter() -> None:
    """Some models have all their cosines between 0.7 and 0.9."""
    shares = [0.3, 0.0, 0.2, 0.1]
    wide, narrow = [0.1, 0.9, 0.5, 0.2], [0.71, 0.79, 0.75, 0.72]
    fusion = learned()
    assert fusion.weight(judged(wide, shares)) == pytest.approx(fusion.weight(judged(narrow, shares)))
    assert order(judged(wide, shares)) == order(judged(narrow, shares))


OURS = "all-MiniLM-L6-v2@0b40d68aaba8"


@pytest.mark.parametrize("embedder", [OURS, None])
def test_parameters_are_complete(embedder: str | None) -> None:
    assert len(learned(embedder).parameters) == len(FEATURES)


def test_an_embedder_that_was_learned_with_has_its_own_parameters() -> None:
    assert learned(OURS) != learned()
    assert learned("another@1") == learned()
