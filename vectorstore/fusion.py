"""How much each side is worth on a question: a weight between meaning and words, learned from public question sets.

Every candidate is scored by both sides. A candidate's relevance is w * cosine + (1 - w) * BM25, each brought to [0, 1]
among the candidates (convex combination; Bruch, Gai and Ingber, "An Analysis of Fusion Functions for Hybrid Retrieval",
ACM TOIS 2023). Here w is not a constant but a logistic function of what can be seen of the question: how much of it the
embedder can read, how much of its weight the index has words for, and whether meaning agrees with words: how the two
correlate over what was found by words. (Over all candidates they correlate less than they should: what has neither is
not among them.) The parameters lie in fusion.json, for the default embedder those learned with it and for every other
those that hold even where its cosines are chance; scripts/fit_fusion.py learns and tests them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

FEATURES = ("constant", "covered", "correlation", "known")
AGREEING = 50  # candidates of the highest BM25 scores, over which the sides are compared
DATA = Path(__file__).with_name("fusion.json")


@dataclass(frozen=True)
class Candidates:
    """The passages that either side found for a question (n of them), judged by both."""

    cosines: Sequence[float]
    shares: Sequence[float]  # BM25 as a share of the best there could be, see keyword.Hit
    known: float  # share of the question's idf that the index has words for, in [0, 1]
    covered: float  # share of the question's characters that the embedder's vocabulary knows, in [0, 1]

    @property
    def sides(self) -> tuple[Array, Array]:
        """Cosines (n,) and BM25 (n,), each in [0, 1] and 1 for its best; 0 where a side makes no difference."""
        near, words = np.asarray(self.cosines, np.float64), np.asarray(self.shares, np.float64)
        return _scaled(near - near.min(initial=np.inf)), _scaled(words)

    @property
    def features(self) -> Array:
        """What the weight depends on (len(FEATURES),)."""
        near, words = self.sides
        found = [i for i in np.argsort(-words, kind="stable")[:AGREEING] if words[i] > 0]
        near, words = near[found], words[found]
        flat = len(near) < 3 or near.std() == 0 or words.std() == 0
        correlation = 0.0 if flat else float(np.corrcoef(near, words)[0, 1])
        return np.array([1.0, self.covered, correlation, self.known])


def _scaled(values: Array) -> Array:
    most = values.max(initial=0.0)
    return values / most if most > 0 else np.zeros_like(values)


@dataclass(frozen=True)
class Fusion:
    """Parameters, one for each of FEATURES."""

    parameters: tuple[float, ...]

    def weight(self, candidates: Candidates) -> float:
        """What meaning is worth on this question, in (0, 1); words are worth the rest."""
        return float(1 / (1 + np.exp(-candidates.features @ np.asarray(self.parameters))))

    def ranked(self, candidates: Candidates) -> list[tuple[int, float]]:
        """(place among the candidates, relevance in [0, 1]), best first; equals in the order given."""
        near, words = candidates.sides
        weight = self.weight(candidates)
        relevance = weight * near + (1 - weight) * words
        return [(int(i), float(relevance[i])) for i in np.argsort(-relevance, kind="stable")]


@lru_cache(maxsize=8)
def learned(embedder: str | None = None) -> Fusion:
    """The parameters learned with the embedder of this identity; where there are none, those for every embedder."""
    found = {each["embedder"]: each["parameters"] for each in json.loads(DATA.read_text(encoding="utf-8"))}
    parameters = found.get(embedder, found[None])
    return Fusion(tuple(float(parameters[name]) for name in FEATURES))
