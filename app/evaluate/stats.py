"""Scores over many questions with bootstrap intervals (Efron 1979). Every score is a ratio of sums over questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

RESAMPLES = 2000
BATCH = 100  # resamples drawn together: memory is this many times the questions

Parts = tuple[float, float]  # what one question adds to numerator and denominator


@dataclass(frozen=True)
class Score:
    """A figure with its 95% interval. `n` counts the questions that it is about; value is None when there are none."""

    value: float | None
    low: float | None
    high: float | None
    n: int

    def to_json(self) -> dict[str, Any]:
        def short(x: float | None) -> float | None:
            return None if x is None else round(x, 5)

        return {"value": short(self.value), "low": short(self.low), "high": short(self.high), "n": self.n}


def ratio(parts: Sequence[Parts], seed: int = 0) -> Score:
    """sum(numerators) / sum(denominators) over questions, with the percentile interval of resampled questions."""
    table = np.asarray(parts, dtype=float).reshape(-1, 2)
    n = int((table[:, 1] > 0).sum())
    if not n:
        return Score(None, None, None, 0)
    value = float(table[:, 0].sum() / table[:, 1].sum())
    sums = _resampled(table, seed)
    with np.errstate(invalid="ignore", divide="ignore"):
        drawn = sums[:, 0] / sums[:, 1]
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return Score(value, float(low), float(high), n)


def _resampled(table: npt.NDArray[np.float64], seed: int) -> npt.NDArray[np.float64]:
    """Column sums [RESAMPLES, columns] of tables of as many rows, drawn with replacement."""
    random = np.random.default_rng(seed)
    rows = len(table)
    sums = [
        random.multinomial(rows, np.full(rows, 1 / rows), size=BATCH).astype(float) @ table
        for _ in range(RESAMPLES // BATCH)
    ]
    return np.concatenate(sums)


@dataclass(frozen=True)
class Difference:
    """B minus A with its 95% interval; `p` is the two-sided bootstrap probability of no difference."""

    a: float
    b: float
    difference: float
    low: float
    high: float
    p: float
    n: int

    def to_json(self) -> dict[str, Any]:
        return {
            name: round(value, 5) if isinstance(value, float) else value
            for name, value in ((name, getattr(self, name)) for name in self.__dataclass_fields__)
        }


def paired(a: Mapping[str, Parts], b: Mapping[str, Parts], seed: int = 0) -> Difference | None:
    """Two runs on the questions that they share; None where neither denominator has any (paired bootstrap)."""
    shared = [id_ for id_ in a if id_ in b]
    table = np.asarray([[*a[id_], *b[id_]] for id_ in shared], dtype=float).reshape(-1, 4)
    totals = table.sum(axis=0)
    if not totals[1] or not totals[3]:
        return None
    value_a, value_b = float(totals[0] / totals[1]), float(totals[2] / totals[3])
    sums = _resampled(table, seed)
    with np.errstate(invalid="ignore", divide="ignore"):
        drawn = sums[:, 2] / sums[:, 3] - sums[:, 0] / sums[:, 1]
    drawn = drawn[~np.isnan(drawn)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    tail = min(float((drawn <= 0).mean()), float((drawn >= 0).mean()))
    n = int(((table[:, 1] > 0) | (table[:, 3] > 0)).sum())
    return Difference(value_a, value_b, value_b - value_a, float(low), float(high), min(1.0, 2 * tail), n)
