"""Learns the parameters of vectorstore/fusion.json, and tests them on sets that they were not learned on.

    python scripts/fit_fusion.py SET.json ... [--test SET.json ...] [--limit N] [--write]

Sets are files in SQuAD's form; each is ingested into a throw-away knowledge base of its own, kept in the cache. For
every question, all candidates of both sides are judged by both; the parameters make the passages of the right paragraph
likely under a softmax over the candidates' relevance (ListNet's top-one loss; Cao et al., "Learning to Rank", 2007),
every set counting the same. Two vectors of parameters are learned: those of the embedder in use from every set as it
is, and those of any embedder from every set twice, as it is and with an embedder that knows nothing, whose cosines are
chance although its vocabulary has every word; so the weight follows how the sides agree. The table has paragraph
recall@1 and @5 in per cent of each side, of fusion by reciprocal ranks (k = 60), of ours for this embedder ("own"), of
ours for any, and of that with the embedder that knows nothing ("blind"): of each set with parameters learned on the
others, of those behind --test with all.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from app.config import load_settings, quiet
from app.evaluate import corpus
from app.evaluate.questions import read_squad
from app.progress import bar, ingest_bar
from app.services import Services
from vectorstore.fusion import DATA, FEATURES, Array, Candidates, Fusion

RIDGE = 1e-3
RRF = 60
WAYS = ("meaning", "words", "ranks", "own", "any", "blind")


@dataclass
class Asked:
    """A question: its candidates, the paragraphs of each of them, and the right ones."""

    judged: Candidates
    paragraphs: list[list[str]]
    gold: set[str]

    @property
    def right(self) -> Array:
        """1 for the candidates of a right paragraph (n,)."""
        return np.array([float(bool(self.gold & set(each))) for each in self.paragraphs])


def ask(path: Path, services: Services, limit: int | None) -> list[Asked]:
    """Candidates for each question of a set that has an answer."""
    whole = read_squad(path)
    with ingest_bar() as progress:
        place = corpus.of_articles(whole.articles, services.settings, progress)
    retriever: Any = place.services.retriever("default", 10, "hybrid")
    questions = [gold for gold in whole.sample(limit, 0).questions if gold.relevant]
    found = []
    with bar(len(questions), "question") as advance:
        for gold in questions:
            each = retriever.candidates(gold.question, retriever.keyword)
            paragraphs = [place.paragraphs_of(passage) for passage in each.passages]
            found.append(Asked(each.judged, paragraphs, set(gold.relevant["paragraph"])))
            advance(1, path.stem)
    return found


def blind(asked: Sequence[Asked]) -> list[Asked]:
    """The same questions with an embedder that knows nothing: what it alone found is near to it, the rest by chance."""
    random = np.random.default_rng(0)
    found = []
    for each in asked:
        cosines = random.standard_normal(len(each.paragraphs)) + 2 * (np.asarray(each.judged.shares) == 0)
        judged = dataclasses.replace(each.judged, cosines=0.8 + 0.02 * cosines, covered=1.0)
        found.append(dataclasses.replace(each, judged=judged))
    return found


def batch(asked: Sequence[Asked]) -> list[torch.Tensor]:
    """(features [Q, F], cosines, BM25, right, real, all [Q, N]) of the questions that can be learned from."""
    rows = [each for each in asked if each.right.any()]
    most = max(len(each.paragraphs) for each in rows)

    def padded(values: Sequence[Array]) -> torch.Tensor:
        return torch.tensor(np.stack([np.pad(each, (0, most - len(each))) for each in values]))

    sides = [each.judged.sides for each in rows]
    return [
        torch.tensor(np.stack([each.judged.features for each in rows])),
        padded([near for near, _ in sides]),
        padded([words for _, words in sides]),
        padded([each.right for each in rows]),
        padded([np.ones(len(each.paragraphs)) for each in rows]),
    ]


def fit(sets: Sequence[list[torch.Tensor]]) -> Fusion:
    """The parameters of least loss; how sharp the softmax is, is learned along and not kept."""
    free = torch.zeros(len(FEATURES) + 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([free], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = RIDGE * (free[:-1] ** 2).sum()
        for features, near, words, right, real in sets:
            weight = torch.sigmoid(features @ free[:-1])[:, None]
            relevance = torch.exp(free[-1]) * (weight * near + (1 - weight) * words)
            likely = torch.log_softmax(relevance.masked_fill(real == 0, -torch.inf), 1)
            loss = loss - likely.masked_fill(right == 0, -torch.inf).logsumexp(1).mean() / len(sets)
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return Fusion(tuple(round(float(value), 3) for value in free.detach()[:-1]))


def recall(asked: Sequence[Asked], score: Callable[[Candidates], Array]) -> tuple[float, float]:
    """Recall@1 and @5 of paragraphs, in per cent; candidates of score -inf are none."""
    hits = []
    for each in asked:
        scores = score(each.judged)
        order = [i for i in np.argsort(-scores, kind="stable") if scores[i] > -np.inf]
        ranked = list(dict.fromkeys(name for i in order for name in each.paragraphs[i]))
        hits.append([len(each.gold & set(ranked[:k])) / len(each.gold) for k in (1, 5)])
    first, fifth = np.mean(hits, axis=0) * 100
    return float(first), float(fifth)


def by_meaning(judged: Candidates) -> Array:
    return np.asarray(judged.cosines)


def by_words(judged: Candidates) -> Array:
    return np.where(np.asarray(judged.shares) > 0, judged.shares, -np.inf)


def by_ranks(judged: Candidates) -> Array:
    """Reciprocal ranks; every candidate has a rank on both sides."""
    ranks = [np.argsort(np.argsort(-np.asarray(side), kind="stable")) for side in (judged.cosines, judged.shares)]
    return sum((1 / (RRF + 1 + each) for each in ranks), np.zeros(len(judged.cosines)))


def by(fusion: Fusion) -> Callable[[Candidates], Array]:
    def score(judged: Candidates) -> Array:
        found = np.empty(len(judged.cosines))
        for place, relevance in fusion.ranked(judged):
            found[place] = relevance
        return found

    return score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", type=Path)
    parser.add_argument("--test", nargs="*", type=Path, default=[], help="sets that are not learned from")
    parser.add_argument("--limit", type=int, help="questions of each set")
    parser.add_argument("--write", action="store_true", help="keep the parameters")
    args = parser.parse_args()
    services = Services(load_settings())
    asked = {path: ask(path, services, args.limit) for path in [*args.sets, *args.test]}
    blinded = {path: blind(rows) for path, rows in asked.items()}
    known = {path: batch(asked[path]) for path in args.sets}
    unknown = {path: batch(blinded[path]) for path in args.sets}

    def learn(paths: Sequence[Path]) -> tuple[Fusion, Fusion]:
        """For this embedder, and for any."""
        own = [known[path] for path in paths]
        return fit(own), fit([*own, *(unknown[path] for path in paths)])

    own, anyone = learn(args.sets)
    print(f"{'set':<18}{'questions':>9}" + "".join(f"{name:>15}" for name in WAYS))
    for path, rows in asked.items():
        others = [other for other in args.sets if other != path]
        of_this, of_any = learn(others) if path in known and others else (own, anyone)
        figures = [recall(rows, way) for way in (by_meaning, by_words, by_ranks, by(of_this), by(of_any))]
        figures.append(recall(blinded[path], by(of_any)))
        print(f"{path.stem:<18}{len(rows):>9}" + "".join(f"{one:>9.2f}{five:>6.1f}" for one, five in figures))
    sets = [path.stem for path in args.sets]
    made = [
        {"embedder": embedder, "parameters": dict(zip(FEATURES, fusion.parameters, strict=True)), "sets": sets}
        for embedder, fusion in ((services.embedder.identity, own), (None, anyone))
    ]
    print(json.dumps(made))
    if args.write:
        DATA.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    quiet()
    main()
