"""Bootstrap intervals and paired differences."""

from __future__ import annotations

import numpy as np
import pytest

from app.evaluate.stats import paired, ratio


def test_a_ratio_of_sums_with_its_interval() -> None:
    score = ratio([(1.0, 1.0)] * 50 + [(0.0, 1.0)] * 50)
    assert (score.value, score.n) == (0.5, 100)
    # Binomial: 0.5 +- 1.96 * sqrt(0.25 / 100)
    assert score.low == pytest.approx(0.402, abs=0.015)
    assert score.high == pytest.approx(0.598, abs=0.015)


def test_denominators_count() -> None:
    assert ratio([(1.0, 3.0), (1.0, 1.0)]).value == 0.5, "micro, not the mean of ratios"
    score = ratio([(1.0, 2.0), (0.0, 0.0)])
    assert (score.value, score.n) == (0.5, 1)
    nothing = ratio([(0.0, 0.0)] * 3)
    assert (nothing.value, nothing.low, nothing.high, nothing.n) == (None, None, None, 0)
    assert ratio([]).to_json() == {"value": None, "low": None, "high": None, "n": 0}


def test_rare_denominators_give_an_interval() -> None:
    """Some resamples hold none of the few questions that a precision is about."""
    score = ratio([(1.0, 1.0), (0.0, 1.0)] + [(0.0, 0.0)] * 500)
    assert score.low is not None
    assert not np.isnan(score.low)


def test_the_seed_decides() -> None:
    parts = [(i * i / 1600, 1.0) for i in range(40)]
    assert ratio(parts, 1) == ratio(parts, 1)
    assert ratio(parts, 1) != ratio(parts, 2)


def test_paired_sees_what_two_intervals_do_not() -> None:
    """B wins 12 of 200 questions and loses none: clear when paired, hidden in intervals of +-7 points."""
    a = {str(i): (float(i < 100), 1.0) for i in range(200)}
    b = {str(i): (float(i < 112), 1.0) for i in range(200)}
    found = paired(a, b)
    assert found is not None
    assert (found.a, found.b, found.n) == (0.5, 0.56, 200)
    assert found.difference == pytest.approx(0.06)
    assert 0 < found.low < 0.06 < found.high
    assert found.p < 0.01
    assert ratio(list(a.values())).high > 0.56


def test_no_difference() -> None:
    a = {str(i): (float(i % 2), 1.0) for i in range(50)}
    same = paired(a, a)
    assert same is not None
    assert (same.difference, same.p) == (0.0, 1.0)
    flipped = {id_: (1.0 - value, 1.0) for id_, (value, _) in a.items()}
    found = paired(a, flipped)
    assert found is not None
    assert found.p > 0.5
    assert paired(a, {"other": (1.0, 1.0)}) is None


def test_p_is_two_sided() -> None:
    """One win and no loss among 3 questions: a resample misses it with (2/3)^3 = 0.296; both tails, twice that."""
    a = {str(i): (0.0, 1.0) for i in range(3)}
    b = {**a, "0": (1.0, 1.0)}
    for one, other in ((a, b), (b, a)):
        found = paired(one, other)
        assert found is not None
        assert found.p == pytest.approx(2 * (2 / 3) ** 3, abs=0.04)
