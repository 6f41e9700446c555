"""Is the right document, paragraph or page among the first k, and does a chunk of the first k hold a gold answer?"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever

from app.config import Retrieval
from app.errors import AppError
from app.evaluate.corpus import Corpus
from app.evaluate.metrics import holds
from app.evaluate.questions import Gold, page_id
from app.evaluate.stats import Parts, Score, ratio

CUTOFFS = (1, 4, 5, 10)
RANKED = 10  # of MRR and nDCG
SHOWN = 5  # chunks whose text a run keeps for its report
DEPTH = 50  # chunks retrieved: several may be of one document, and ten different documents are to be ranked

MRR, NDCG = f"mrr@{RANKED}", f"ndcg@{RANKED}"


@dataclass
class Retrieved:
    """One question in one mode."""

    gold: Gold
    ids: dict[str, list[str]]  # by level, each once, best first
    holding: list[bool]  # for each of the first chunks, whether it holds a gold answer
    seconds: float
    passages: list[dict[str, Any]] = field(default_factory=list)  # the first SHOWN chunks
    scores: dict[str, dict[str, float]] = field(default_factory=dict)  # level -> measure -> value

    def to_json(self) -> dict[str, Any]:
        first = max(CUTOFFS)
        return {
            "id": self.gold.id,
            "question": self.gold.question,
            "answers": list(self.gold.answers),
            "relevant": {level: dict(ids) for level, ids in self.gold.relevant.items()},
            "retrieved": {level: ids[:first] for level, ids in self.ids.items()},
            "holds_answer": self.holding[:first],
            "seconds": round(self.seconds, 5),
            "scores": self.scores,
            "passages": self.passages,
        }


def evaluate(
    questions: Sequence[Gold],
    corpus: Corpus,
    kb: str,
    mode: Retrieval,
    advance: Callable[[int, str], None] = lambda n, what: None,
) -> list[dict[str, Any]]:
    """A row for every question: the retriever of a mode is asked whatever has something relevant.

    A question of its own knowledge base that does not exist is left out; of one that is empty, nothing is found.
    Raises AppError when no question says what is relevant for it, or when none can be asked.
    """
    asked = [gold for gold in questions if gold.relevant or gold.answers]
    if not asked:
        raise AppError("no question names a source or a gold answer, so there is nothing to measure retrieval by")
    retrievers, fault = _retrievers({gold.kb or kb: None for gold in asked}, corpus, kb, mode)
    asked = [gold for gold in asked if (gold.kb or kb) in retrievers]
    if not any(retrievers.values()):
        raise AppError(fault or f"the knowledge base '{kb}' holds no documents; ingest some, then evaluate")
    for each in filter(None, retrievers.values()):
        each.invoke(asked[0].question)  # what is loaded at the first query is not the query's latency
    found = []
    for gold in asked:
        started = time.perf_counter()
        retriever = retrievers[gold.kb or kb]
        chunks = [] if retriever is None else retriever.invoke(gold.question)
        seconds = time.perf_counter() - started
        found.append(_ranked(gold, chunks, corpus, seconds))
        advance(1, gold.id)
    _score(found)
    return [{"mode": mode, **one.to_json()} for one in found]


def _retrievers(
    names: Iterable[str], corpus: Corpus, kb: str, mode: Retrieval
) -> tuple[dict[str, BaseRetriever | None], str | None]:
    """The retriever of each knowledge base, None where it is empty; and the fault of one that does not exist."""
    found: dict[str, BaseRetriever | None] = {}
    fault = None
    for name in names:
        try:
            found[name] = corpus.services.retriever(name, DEPTH, mode)
        except AppError as error:
            fault = str(error)
            if name == kb:
                raise
    return found, fault


def _ranked(gold: Gold, chunks: Sequence[Document], corpus: Corpus, seconds: float) -> Retrieved:
    ids = {
        "document": _once(chunk.metadata["source"] for chunk in chunks),
        "page": _once(page_id(chunk.metadata["source"], chunk.metadata["page"]) for chunk in chunks),
        "paragraph": _once(id_ for chunk in chunks for id_ in corpus.paragraphs_of(chunk)),
    }
    first = chunks[: max(CUTOFFS)]
    holding = [any(holds(chunk.page_content, answer) for answer in gold.answers) for chunk in first]
    shown = [shown_passage(chunk) for chunk in chunks[:SHOWN]]
    return Retrieved(gold, {level: ids[level] for level in gold.relevant}, holding, seconds, shown)


def shown_passage(chunk: Document) -> dict[str, Any]:
    """A chunk as the files of a run hold it."""
    return {
        "chunk_id": chunk.metadata["chunk_id"],
        "source": chunk.metadata["source"],
        "page": chunk.metadata.get("page"),
        "score": round(float(chunk.metadata["score"]), 4),
        "text": chunk.page_content,
    }


def _once(ids: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(ids))


def _score(found: Sequence[Retrieved]) -> None:
    """Recall, reciprocal rank and nDCG of every question, by ir-measures (trec_eval's definitions)."""
    import ir_measures
    from ir_measures import RR, R, nDCG

    names = {**{R @ k: f"recall@{k}" for k in CUTOFFS}, RR @ RANKED: MRR, nDCG @ RANKED: NDCG}
    for level in {level for one in found for level in one.gold.relevant}:
        rows = {str(i): one for i, one in enumerate(found) if level in one.gold.relevant}
        qrels = {i: dict(one.gold.relevant[level]) for i, one in rows.items()}
        run = {i: {id_: -float(rank) for rank, id_ in enumerate(one.ids[level])} for i, one in rows.items()}
        for metric in ir_measures.iter_calc(list(names), qrels, run):
            rows[metric.query_id].scores.setdefault(level, {})[names[metric.measure]] = float(metric.value)


def parts_of(row: Mapping[str, Any]) -> dict[str, Parts]:
    """What a question's row adds to each figure; the names are those of the table."""
    found = {
        f"{level} {measure}": (value, 1.0) for level, each in row["scores"].items() for measure, value in each.items()
    }
    if row["answers"]:
        for k in CUTOFFS:
            found[f"answer in context@{k}"] = (float(any(row["holds_answer"][:k])), 1.0)
    return found


def figures(rows: Sequence[Mapping[str, Any]], seed: int = 0) -> dict[str, Score]:
    """Every figure with its interval, in the order of the table."""
    columns: dict[str, list[Parts]] = {}
    for row in rows:
        for name, parts in parts_of(row).items():
            columns.setdefault(name, []).append(parts)
    return {name: ratio(columns[name], seed) for name in sorted(columns, key=_order)}


def _order(name: str) -> tuple[int, str, int]:
    level, _, measure = name.partition(" ")
    place = ["document", "page", "paragraph", "answer"].index(level)
    kind, _, k = measure.partition("@")
    return place, {"mrr": "x", "ndcg": "y"}.get(kind, kind), int(k)


def latency(seconds: Sequence[float]) -> dict[str, float]:
    """p50 and p95 in milliseconds."""
    p50, p95 = np.percentile(seconds, [50, 95]) * 1000
    return {"p50_ms": round(float(p50), 2), "p95_ms": round(float(p95), 2)}


def over_k(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Recall at k = 1 ... 10 of every level, and whether a gold answer is among the first k; for the report's plot."""
    curves: dict[str, list[list[float]]] = {}
    for row in rows:
        for level, relevant in row["relevant"].items():
            hits = [id_ in relevant for id_ in row["retrieved"][level]]
            recall = [sum(hits[:k]) / len(relevant) for k in range(1, max(CUTOFFS) + 1)]
            curves.setdefault(level, []).append(recall)
        if row["answers"]:
            held = [float(any(row["holds_answer"][:k])) for k in range(1, max(CUTOFFS) + 1)]
            curves.setdefault("answer in context", []).append(held)
    return {level: [round(float(x), 4) for x in np.mean(each, axis=0)] for level, each in curves.items()}
