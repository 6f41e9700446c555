"""The fit of P(answerable), and what is said about it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from app.confidence import FEATURES, OF_WORDS
from app.errors import AppError
from app.evaluate import calibrate
from app.evaluate.calibrate import Asked
from app.evaluate.questions import Gold

TRUE = {"constant": 1.0, "held": 2.0, "small": 0.5, "meaning": 3.0, "covered": -1.0, "held_covered": -0.5}


def drawn(n: int, seed: int = 0) -> list[Asked]:
    """Questions whose answers are there by a logistic law."""
    draw = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        evidence = {"constant": 1.0, **{name: float(draw.normal()) for name in FEATURES[1:]}}
        p = 1 / (1 + np.exp(-sum(TRUE[name] * evidence[name] for name in FEATURES)))
        right = bool(draw.random() < p)
        gold = Gold(id=str(i), question=f"q{i}", source=f"article {i // 5}")
        rows.append(Asked(gold, "set", "set", "own" if right else "other", right, evidence))
    return rows


def test_the_fit_finds_the_law() -> None:
    rows = drawn(20_000)
    found = calibrate.fit(rows)
    # Both kinds weigh the same, which moves the constant alone.
    assert [found[name] for name in FEATURES[1:]] == pytest.approx([TRUE[name] for name in FEATURES[1:]], abs=0.2)
    assert set(calibrate.fit(rows, OF_WORDS)) == set(OF_WORDS)


def test_questions_of_one_kind_are_refused() -> None:
    for rows in ([], [each for each in drawn(50) if each.answerable]):
        with pytest.raises(AppError, match="with and without answers"):
            calibrate.fit(rows)


def test_articles_are_held_out_whole_and_nothing_found_is_0() -> None:
    rows = drawn(500)
    assert all(a.fold == b.fold for a, b in pairwise(rows) if a.gold.source == b.gold.source)
    assert len({each.fold for each in rows}) == calibrate.FOLDS
    turned = [replace(each, answerable=not each.answerable) if each.fold == 0 else each for each in rows]
    first = np.array([each.fold == 0 for each in rows])
    before, after = calibrate.out_of_fold(rows), calibrate.out_of_fold(turned)
    assert (before[first] == after[first]).all(), "an article's own questions have no say in its confidence"
    assert (before[~first] != after[~first]).any()
    nothing = Asked(Gold(id="x", question="x"), "set", "other", "other", False, None)
    confidence = calibrate.out_of_fold([*rows, nothing])
    assert confidence[-1] == 0
    assert (confidence[:-1] > 0).all()


def test_the_threshold_refuses_no_more_than_it_may() -> None:
    rows = drawn(2000)
    confidence = calibrate.out_of_fold(rows)
    for most in (0.01, 0.05, 0.2):
        threshold = calibrate.threshold_of(rows, confidence, most)
        (own,) = [each for each in calibrate.figures(rows, confidence, threshold) if each["answerable"]]
        assert most - 0.005 <= own["refused"] <= most


def test_groups_count_the_same_whatever_their_size() -> None:
    rows = drawn(300)
    weights = calibrate.weights(rows)
    right = np.array([each.answerable for each in rows])
    assert weights[right].sum() == pytest.approx(100)
    assert weights[~right].sum() == pytest.approx(100)


def test_the_area_is_that_of_the_pairs() -> None:
    rows = drawn(60)
    confidence = np.round(calibrate.out_of_fold(rows), 1)  # with equals
    right, wrong = (
        [c for c, each in zip(confidence, rows, strict=True) if each.answerable is is_] for is_ in (True, False)
    )
    pairs = [(a > b) + (a == b) / 2 for a in right for b in wrong]
    assert calibrate.area(rows, confidence) == pytest.approx(np.mean(pairs))
    assert calibrate.ablation(rows)["all"] > calibrate.ablation(rows)["words alone"]


def test_curves() -> None:
    rows = drawn(3000)
    confidence = calibrate.out_of_fold(rows)
    curve = calibrate.curve(rows, confidence)
    assert (curve[0]["refused"], curve[0]["false refusals"]) == (0, 0)
    assert all(a["refused"] <= b["refused"] for a, b in pairwise(curve))
    assert all(each["refused"] >= each["false refusals"] for each in curve)
    bins = calibrate.reliability(rows, confidence)
    assert sum(each["n"] for each in bins) == len(rows)
    assert max(abs(each["confidence"] - each["answerable"]) for each in bins) < 0.12
