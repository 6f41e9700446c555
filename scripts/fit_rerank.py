"""Learns the weights of vectorstore/rerank.json: of the fusion's relevance and of the question's likelihood.

    python scripts/fit_rerank.py SET.json ... [--limit N] [--candidates N] [--write]

Sets are files in SQuAD's form, as for scripts/fit_fusion.py; they must be in a language that the LLaMA of the settings
knows, which scores the first candidates of every question. The weights make those of the right paragraph likely under a
softmax over the weighted sums, every set counting the same. The table has, for each set, how often the first passage
holds the right paragraph (per cent): by the fusion, by likelihood, by both with weights learned on the others, and at
best; then the loss (nats) of the fusion alone and of both, and what the scores took, in milliseconds a question.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from app.config import load_settings, quiet
from app.evaluate import corpus
from app.evaluate.questions import read_squad
from app.likelihood import QuestionLikelihood
from app.progress import bar, ingest_bar
from app.services import Services
from vectorstore.rerank import DATA, priors

RIDGE = 1e-3
NAMES = ("relevance", "likelihood")


@dataclass
class Asked:
    """One question: a row [relevance, ln likelihood against the best's] for each candidate (n, 2), which are right."""

    rows: np.ndarray[Any, np.dtype[np.float64]]
    right: np.ndarray[Any, np.dtype[np.bool_]]
    seconds: float


def ask(path: Path, services: Services, limit: int, candidates: int) -> list[Asked]:
    """Candidates for each question of a set that has an answer, scored."""
    whole = read_squad(path)
    with ingest_bar() as progress:
        place = corpus.of_articles(whole.articles, services.settings.model_copy(update={"rerank": "off"}), progress)
    retriever: Any = place.services.retriever("default", candidates, "hybrid")
    scorer = QuestionLikelihood(lambda: services.engine)
    questions = [gold for gold in whole.sample(limit, 0).questions if gold.relevant]
    found = []
    with bar(len(questions), "question") as advance:
        for gold in questions:
            passages = retriever.invoke(gold.question)
            started = time.perf_counter()
            scored = scorer(gold.question, passages)
            seconds = time.perf_counter() - started
            right = [bool(set(place.paragraphs_of(each)) & set(gold.relevant["paragraph"])) for each in passages]
            if passages and scored is not None:
                scores = np.array(scored)
                rows = np.stack([priors(passages), scores - scores.max()], axis=1)
                found.append(Asked(rows, np.array(right), seconds))
            advance(1, path.stem)
    return found


def loss(asked: Sequence[Asked], weights: torch.Tensor) -> torch.Tensor:
    """ListNet's top-one loss, of the questions whose right passage is among the candidates."""
    losses = []
    for each in asked:
        if each.right.any():
            likely = torch.log_softmax(torch.from_numpy(each.rows) @ weights, 0)
            losses.append(-likely[torch.from_numpy(each.right)].logsumexp(0))
    return torch.stack(losses).mean()


def fit(sets: Sequence[Sequence[Asked]], fixed: tuple[float, float] = (1.0, 1.0)) -> torch.Tensor:
    """The weights of least loss; `fixed` of 0 leaves one out."""
    free, mask = torch.zeros(2, dtype=torch.float64, requires_grad=True), torch.tensor(fixed, dtype=torch.float64)
    optimizer = torch.optim.LBFGS([free], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        total = RIDGE * (free**2).sum() + sum(loss(each, free * mask) for each in sets) / len(sets)
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return (free * mask).detach()


def first(asked: Sequence[Asked], weights: Sequence[float]) -> float:
    """How often the first passage is right, in per cent."""
    return 100 * float(np.mean([each.right[np.argmax(each.rows @ np.asarray(weights))] for each in asked]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", type=Path)
    parser.add_argument("--limit", type=int, default=100, help="questions of each set")
    parser.add_argument("--candidates", type=int, default=8, help="passages of each question")
    parser.add_argument("--write", action="store_true", help="keep the weights")
    args = parser.parse_args()
    services = Services(load_settings())
    found = {path: ask(path, services, args.limit, args.candidates) for path in args.sets}
    asked = {path: rows for path, rows in found.items() if rows}
    if not asked:
        raise SystemExit("no question of these sets can be scored by this model")
    head = ("fusion", "likelihood", "both", "at best", "loss", "of both", "ms")
    print(f"{'set':<18}{'questions':>9}" + "".join(f"{name:>11}" for name in head))
    for path, rows in asked.items():
        others = [each for other, each in asked.items() if other != path] or [rows]
        both, alone = fit(others), fit(others, (1.0, 0.0))
        figures = [first(rows, (1, 0)), first(rows, (0, 1)), first(rows, both.tolist())]
        figures += [100 * float(np.mean([each.right.any() for each in rows]))]
        line = "".join(f"{value:>11.1f}" for value in figures)
        line += f"{float(loss(rows, alone)):>11.3f}{float(loss(rows, both)):>11.3f}"
        took = 1000 * float(np.median([each.seconds for each in rows]))
        print(f"{path.stem:<18}{len(rows):>9}{line}{took:>11.0f}", flush=True)
    parameters = dict(zip(NAMES, [round(value, 3) for value in fit(list(asked.values())).tolist()], strict=True))
    print(json.dumps(parameters))
    if args.write:
        made = {"parameters": parameters, "sets": [path.stem for path in args.sets], "model": services.model_name}
        DATA.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    quiet()
    main()
