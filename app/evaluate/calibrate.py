"""Learns P(answerable) from questions with and without answers, and says how far it can be trusted.

A question is answerable where its own documents are asked, all of the set or its article alone, as somebody does who
has just put in a first file. Asked to another set's documents it is not, nor where those of its own article are left
out, nor where another article stands alone. What is told of the fit comes from folds that leave whole articles out, so
that no figure is of a question whose article was learned from.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from langchain_core.retrievers import BaseRetriever
from numpy.typing import NDArray

from app.confidence import (
    COVERED,
    FEATURES,
    HELD,
    HELD_COVERED,
    MEANING,
    OF_WORDS,
    SMALL,
    Calibration,
    Evidence,
    evidence_of,
    identity,
)
from app.errors import AppError
from app.evaluate.corpus import Alone, Corpus
from app.evaluate.questions import Dataset, Gold
from app.prompt import language_of
from app.services import Services

Array = NDArray[np.float64]
Row = dict[str, Any]
K = 4  # passages; the first of them is judged
DEPTH = 50  # passages among which those of other articles are looked for
FOLDS = 5
RIDGE = 1e-2
STEPS = 50
FALSE_REFUSALS = 0.025  # of the answerable questions, on average over the sets; new ones should stay below 5%
ALONE = 24  # articles of a set that are asked alone
OTHERS = 2  # articles that stand alone, of those that a question is asked to and that do not answer it
SOME = 0.1  # share of a set's questions in a language, from which questions in it are asked to the set


@dataclass(frozen=True)
class Asked:
    """A question as it was asked: `how` is 'own', 'other' or 'without' (its article), 'alone' or 'another' article."""

    gold: Gold
    dataset: str
    documents: str
    how: str
    answerable: bool
    evidence: Evidence | None  # None where nothing was found: that is refused without any parameters

    @property
    def group(self) -> tuple[str, str, bool]:
        """Questions that count together as much as those of any other group."""
        return self.dataset, self.how, self.answerable

    @property
    def fold(self) -> int:
        """The same for all questions of an article."""
        name = f"{self.dataset}/{self.gold.source or self.gold.id}"
        return _digest(name) % FOLDS

    def to_json(self, confidence: float) -> Row:
        return {
            "id": self.gold.id,
            "question": self.gold.question,
            "dataset": self.dataset,
            "documents": self.documents,
            "how": self.how,
            "answerable": self.answerable,
            "evidence": {name: round(value, 4) for name, value in (self.evidence or {}).items()},
            "confidence": round(confidence, 4),
        }


# -- asking ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Set:
    """Questions, the knowledge base of their documents, and those of single articles.

    `similar`: one article may answer the questions of another, so that none of them is unanswerable for its lack.
    """

    dataset: Dataset
    place: Corpus
    alone: Alone
    similar: bool = False

    @property
    def languages(self) -> set[str]:
        return _languages(self.dataset.questions)


def chosen(dataset: Dataset) -> list[str]:
    """The articles that are asked alone: ALONE of those with questions, by chance that is the same every time."""
    of_one = [gold for gold in dataset.questions if gold.answerable and gold.kb is None]
    return sorted({gold.source for gold in of_one if gold.source is not None}, key=_digest)[:ALONE]


def _digest(name: str) -> int:
    return int(hashlib.sha256(name.encode()).hexdigest(), 16)


def ask(sets: Sequence[Set], advance: Callable[[int, str], None]) -> Iterator[Asked]:
    """Every question, to its own documents, all or one, to those without its article, and to others in its language."""
    languages = {each.dataset.name: each.languages for each in sets}
    for each in sets:
        name, alone = each.dataset.name, each.alone.kbs
        single = {
            source: _languages([gold for gold in each.dataset.questions if gold.source == source]) for source in alone
        }
        for gold in each.dataset.questions:
            yield from _of_own(gold, each)
            yield from _of_one(gold, each, single)
            for other in sets:
                if (
                    other is not each
                    and gold.answerable
                    and language_of(gold.question) in languages[other.dataset.name]
                ):
                    found = _evidence(gold, other.place.services, None, K)
                    yield Asked(gold, name, other.dataset.name, "other", False, found)
            advance(1, gold.id)


def _of_own(gold: Gold, asked: Set) -> Iterator[Asked]:
    name, place = asked.dataset.name, asked.place
    found = _evidence(gold, place.services, gold.kb, K)
    yield Asked(gold, name, name, "own", gold.answerable, found)
    if gold.answerable and gold.source is not None and len(place.articles) > 1 and not asked.similar:
        found = _evidence(gold, place.services, gold.kb, DEPTH, leave_out=gold.source)
        yield Asked(gold, name, name, "without", False, found)


def _of_one(gold: Gold, asked: Set, languages: Mapping[str, set[str]]) -> Iterator[Asked]:
    name, alone = asked.dataset.name, asked.alone
    if not gold.answerable or gold.kb is not None or gold.source is None or gold.source not in alone.kbs:
        return
    found = _evidence(gold, alone.services, alone.kbs[gold.source], K)
    yield Asked(gold, name, gold.source, "alone", True, found)
    if asked.similar:
        return
    others = [each for each in alone.kbs if each != gold.source and language_of(gold.question) in languages[each]]
    for other in sorted(others, key=lambda name: _digest(f"{gold.id}/{name}"))[:OTHERS]:
        found = _evidence(gold, alone.services, alone.kbs[other], K)
        yield Asked(gold, name, other, "another", False, found)


def _evidence(gold: Gold, services: Services, kb: str | None, k: int, leave_out: str | None = None) -> Evidence | None:
    retriever = _retriever(services, kb or services.settings.kb, k)
    passages = [] if retriever is None else retriever.invoke(gold.question)
    kept = [each for each in passages if each.metadata["source"] != leave_out]
    return evidence_of(gold.question, kept, services.embedder.coverage)


@lru_cache(maxsize=64)  # to make one, the inbox is looked through
def _retriever(services: Services, kb: str, k: int) -> BaseRetriever | None:
    return services.retriever(kb, k, "hybrid")


def _languages(questions: Sequence[Gold]) -> set[str]:
    counts = Counter(language_of(gold.question) for gold in questions)
    return {language for language, count in counts.items() if count >= SOME * len(questions)}


# -- fitting -----------------------------------------------------------------------------------------------------


def fit(asked: Sequence[Asked], features: Sequence[str] = FEATURES) -> Mapping[str, float]:
    """Logistic regression by Newton's steps on standardized features, a little ridge; questions weighted by `weights`.

    Raises AppError without questions of both kinds.
    """
    asked = [each for each in asked if each.evidence is not None]
    right = np.array([float(each.answerable) for each in asked])
    if not len(asked) or right.min() == right.max():
        raise AppError("a calibration needs questions with and without answers; give two sets, or some of each kind")
    raw, weight = _matrix(asked, features), weights(asked)
    mean, spread = raw.mean(0), raw.std(0)
    mean[0], spread[spread == 0] = 0.0, 1.0
    x = (raw - mean) / spread
    penalty = np.diag([0.0] + [RIDGE] * (len(features) - 1))
    found = np.zeros(len(features))
    for _ in range(STEPS):
        p = 1 / (1 + np.exp(-x @ found))
        slope = x.T @ (weight * (right - p)) - penalty @ found
        curve = (x.T * (weight * p * (1 - p))) @ x + penalty + 1e-9 * np.eye(len(features))
        step = np.linalg.solve(curve, slope)
        found = found + step
        if np.abs(step).max() < 1e-8:
            break
    plain = found / spread
    plain[0] -= float(plain[1:] @ mean[1:])
    return {name: round(float(value), 4) for name, value in zip(features, plain, strict=True)}


def weights(asked: Sequence[Asked]) -> Array:
    """Every group counts the same, and answerable ones together as much as the others; 100 in all for each kind."""
    sizes = Counter(each.group for each in asked)
    kinds = Counter(answerable for _, _, answerable in sizes)
    return np.array([100 / sizes[each.group] / kinds[each.answerable] for each in asked])


def _matrix(asked: Sequence[Asked], features: Sequence[str]) -> Array:
    return np.array([[each.evidence[name] for name in features] for each in asked if each.evidence is not None])


def out_of_fold(asked: Sequence[Asked], features: Sequence[str] = FEATURES) -> Array:
    """P(answerable) of each question by parameters that were learned without its article; 0 if nothing was found."""
    found, folds = np.zeros(len(asked)), np.array([each.fold for each in asked])
    for fold in sorted(set(folds.tolist())):
        others = [each for each in asked if each.fold != fold] or asked
        judge = Calibration(identity(None), fit(others, features), 0.0)
        for i in np.flatnonzero(folds == fold).tolist():
            evidence = asked[i].evidence
            found[i] = 0.0 if evidence is None else judge.probability(evidence)
    return found


def threshold_of(asked: Sequence[Asked], confidence: Array, most: float = FALSE_REFUSALS) -> float:
    """The highest threshold that refuses at most this share of the answerable questions, averaged over the sets."""
    right = np.array([each.answerable for each in asked])
    values, weight = confidence[right], weights(asked)[right]
    order = np.argsort(values)
    refused = np.cumsum(weight[order]) / weight.sum()
    place = int(np.searchsorted(refused, most, side="right"))
    return math.floor(10_000 * float(values[order][min(place, len(order) - 1)])) / 10_000


def calibrate(asked: Sequence[Asked], services: Services, sets: Sequence[str]) -> tuple[list[Calibration], Array]:
    """The calibration for the embedder and the one for any; and the confidences of the first, out of fold."""
    made: list[Calibration] = []
    for embedder, features in ((services.embedder.identity, FEATURES), (None, OF_WORDS)):
        confidence = out_of_fold(asked, features)
        if not made:
            first = confidence
        made.append(Calibration(identity(embedder), fit(asked, features), threshold_of(asked, confidence), tuple(sets)))
    return made, first


# -- figures -----------------------------------------------------------------------------------------------------


def figures(asked: Sequence[Asked], confidence: Array, threshold: float) -> list[Row]:
    """For each group its size and the share that is refused; a right refusal where the question has no answer."""
    groups: dict[tuple[str, str, bool], list[float]] = {}
    for each, value in zip(asked, confidence, strict=True):
        groups.setdefault(each.group, []).append(float(value))
    return [
        {
            "dataset": dataset,
            "how": how,
            "answerable": answerable,
            "n": len(values),
            "refused": round(float(np.mean(np.array(values) < threshold)), 4),
        }
        for (dataset, how, answerable), values in sorted(groups.items())
    ]


def ablation(asked: Sequence[Asked]) -> Row:
    """Area under the curve with all features, and without some that belong together, out of fold."""
    parts = {"held": (HELD, HELD_COVERED), "held * covered": (HELD_COVERED,), "size": (SMALL,)}
    sets = {"all": FEATURES, "words alone": OF_WORDS, "meaning alone": (FEATURES[0], MEANING, COVERED)}
    sets |= {f"without {name}": tuple(f for f in FEATURES if f not in left) for name, left in parts.items()}
    return {name: round(area(asked, out_of_fold(asked, features)), 4) for name, features in sets.items()}


def area(asked: Sequence[Asked], confidence: Array) -> float:
    """Area under the ROC curve, weighted: how often an answerable question is above one that is not."""
    right, weight = np.array([each.answerable for each in asked]), weights(asked)
    order = np.argsort(confidence, kind="stable")
    below = np.cumsum(np.where(right[order], 0.0, weight[order]))
    # Of equals, half counts.
    values = confidence[order]
    first, last = np.searchsorted(values, values, "left"), np.searchsorted(values, values, "right")
    padded = np.concatenate([[0.0], below])
    mean = (padded[first] + padded[last]) / 2
    above = np.where(right[order], weight[order], 0.0)
    return float((above * mean).sum() / above.sum() / below[-1])


def curve(asked: Sequence[Asked], confidence: Array, points: int = 101) -> list[Row]:
    """Share of both kinds of questions that is refused at each threshold, groups counting the same."""
    right, weight = np.array([each.answerable for each in asked]), weights(asked)
    rows = []
    for threshold in np.linspace(0, 1, points):
        refused = weight * (confidence < threshold)
        rows.append(
            {
                "threshold": round(float(threshold), 4),
                "false refusals": float(refused[right].sum() / weight[right].sum()),
                "refused": float(refused[~right].sum() / weight[~right].sum()),
            }
        )
    return rows


def reliability(asked: Sequence[Asked], confidence: Array, bins: int = 10) -> list[Row]:
    """Of the questions in each tenth of confidence: its mean, the share that has an answer (weighted), the number."""
    right, weight = np.array([each.answerable for each in asked], float), weights(asked)
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    rows = []
    for i in range(bins):
        of = place == i
        if of.any():
            mean, share = (float(np.average(values[of], weights=weight[of])) for values in (confidence, right))
            rows.append({"confidence": mean, "answerable": share, "n": int(of.sum())})
    return rows
