"""Answers scored against gold answers: the same path as everywhere, in batches, resumable."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from langchain_core.documents import Document

from app.answer import Question, told
from app.errors import AppError
from app.evaluate.corpus import Corpus
from app.evaluate.metrics import contains, groundedness, holds, score
from app.evaluate.questions import Gold
from app.evaluate.retrieval import shown_passage
from app.evaluate.stats import Parts, Score, ratio
from app.lines import is_valid, read_lines
from app.prompt import language_of
from app.result import Answer

Row = dict[str, Any]
NO_PASSAGE = "its gold passage is not known, so it cannot be asked with --gold-context"
# What a row of an earlier run must have to be kept.
WHOLE = {"id", "kb", "question", "answer", "refused", "citations", "retrieved", "timings", "passages", "scores"}
GOLD_TOKENS = 0.75  # share of the prompt's room that a gold passage may take before it is cut to its chunks

# name in the table -> what one row adds; None where the figure is not about it
FIGURES: dict[str, Callable[[Row], Parts | None]] = {
    "contains": lambda row: _of_answerable(row, "contains"),
    "f1": lambda row: _of_answerable(row, "f1"),
    "exact match": lambda row: _of_answerable(row, "exact_match"),
    "rouge-l": lambda row: _of_answerable(row, "rouge_l"),
    "answer in context": lambda row: (float(row["in_context"]), 1.0) if row["answerable"] else None,
    "contains, if in context": lambda row: _of_answerable(row, "contains") if row["in_context"] else None,
    "refusal precision": lambda row: (float(not row["answerable"]), 1.0) if row["refused"] else None,
    "refusal recall": lambda row: None if row["answerable"] else (float(row["refused"]), 1.0),
    # 2 TP / (2 TP + FP + FN), which is a ratio of sums like the others
    "refusal f1": lambda row: (
        2.0 * (row["refused"] and not row["answerable"]),
        float(row["refused"]) + float(not row["answerable"]),
    ),
    "false refusals": lambda row: (float(row["refused"]), 1.0) if row["answerable"] else None,
    "citation precision": lambda row: _citation(row, row["chunks_holding"], row["chunks_cited"]),
    "citation precision, if right": lambda row: (
        _citation(row, row["chunks_holding"], row["chunks_cited"]) if row["scores"]["contains"] else None
    ),
    "citation recall": lambda row: _citation(row, row["chunks_holding"] > 0, row["in_context"]),
    "groundedness": lambda row: None if row["groundedness"] is None else (row["groundedness"], 1.0),
}


def _of_answerable(row: Row, name: str) -> Parts | None:
    return (float(row["scores"][name]), 1.0) if row["answerable"] else None


def _citation(row: Row, held: int, of: int) -> Parts | None:
    return (float(held), float(of)) if row["answerable"] and of else None


def parts_of(row: Row) -> dict[str, Parts]:
    """What a scored row adds to each figure."""
    found = {name: figure(row) for name, figure in FIGURES.items()}
    return {name: parts for name, parts in found.items() if parts is not None}


def figures(rows: Sequence[Row], seed: int = 0) -> dict[str, Score]:
    """Every figure with its interval, without those about no question (refusals where all can be answered)."""
    columns: dict[str, list[Parts]] = {name: [] for name in FIGURES}
    for row in rows:
        for name, parts in parts_of(row).items():
            columns[name].append(parts)
    if all(row["answerable"] for row in rows):
        for name in ("refusal precision", "refusal recall", "refusal f1"):
            columns[name] = []
    scores = {name: ratio(parts, seed) for name, parts in columns.items() if parts}
    return {name: each for name, each in scores.items() if each.n}


def bleu(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Corpus BLEU of each language among the answerable questions, with sacrebleu's signature and its own interval."""
    from sacrebleu.metrics.bleu import BLEU

    found = []
    for language, tokenizer in (("en", "13a"), ("zh", "zh")):
        of = [row for row in rows if row["answerable"] and row["language"] == language]
        if not of:
            continue
        most = max(len(row["answers"]) for row in of)
        # sacrebleu wants equally many references for each; a repeated one changes nothing.
        references = [[row["answers"][min(i, len(row["answers"]) - 1)] for row in of] for i in range(most)]
        metric = BLEU(tokenize=tokenizer)
        result = metric.corpus_score([said(row) for row in of], references, n_bootstrap=1000)
        value, half = result.score, getattr(result, "_ci", 0.0)
        found.append(
            {
                "language": language,
                "value": round(value, 3),
                "low": round(max(0.0, value - half), 3),
                "high": round(value + half, 3),
                "n": len(of),
                "signature": str(metric.get_signature()),
            }
        )
    return found


def said(row: Row) -> str:
    """The text that is scored: a refusal answers nothing."""
    return "" if row["refused"] else str(row["answer"])


# -- asking ------------------------------------------------------------------------------------------------------


@dataclass
class Plan:
    """What becomes of each question: rows of an earlier run, rows that tell a fault, and what is to be asked."""

    kept: list[Row] = field(default_factory=list)
    failed: list[Row] = field(default_factory=list)
    todo: list[tuple[Gold, Question]] = field(default_factory=list)


def plan(
    questions: Sequence[Gold],
    corpus: Corpus,
    kb: str,
    k: int,
    gold_context: bool = False,
    known: Mapping[str, Row] | None = None,
) -> Plan:
    """Sorts the questions. An answer in `known` is kept where the same was asked, and scored anew: the gold answers may
    have changed since.

    With gold_context the model reads the passage that holds the answer instead of what is retrieved; questions of
    which it is not known are rows with an `error`.
    """
    found = Plan()
    for gold in questions:
        passages = gold_passages(gold, corpus, gold.kb or kb) if gold_context else None
        row = (known or {}).get(gold.id)
        if passages == []:
            found.failed.append(_failed(gold, NO_PASSAGE))
        elif row is not None and _was_asked(row, gold, passages):
            found.kept.append(rescored(row, gold))
        else:
            found.todo.append((gold, Question(gold.question, gold.kb or kb, k, passages)))
    return found


def _was_asked(row: Row, gold: Gold, passages: Sequence[Document] | None) -> bool:
    """Whether a row answers this very question, to this knowledge base and from these passages."""
    given = row["retrieved"] if passages is None else [passage.metadata["chunk_id"] for passage in passages]
    return (row["question"], row["kb"], row["retrieved"]) == (gold.question, gold.kb, given)


def ask(todo: Sequence[tuple[Gold, Question]], corpus: Corpus, rows: int = 16) -> Iterator[Row]:
    """Scored rows, as the questions are answered."""
    for index, answer in corpus.services.answerer.answer_batch([question for _, question in todo], rows):
        gold = todo[index][0]
        yield scored(gold, answer) if isinstance(answer, Answer) else _failed(gold, told(answer))


def _failed(gold: Gold, error: str) -> Row:
    return {"id": gold.id, "question": gold.question, "answers": list(gold.answers), "error": error}


def scored(gold: Gold, answer: Answer) -> Row:
    """The answer's JSON with the passages that the model read, the gold answers and the scores."""
    passages = [shown_passage(chunk) for chunk in answer.passages]
    return rescored({"id": gold.id, "kb": gold.kb, **answer.to_json(), "passages": passages}, gold)


def rescored(row: Row, gold: Gold) -> Row:
    """A row with its scores by these gold answers; all that they depend on is in it."""
    text = said(row)
    # A chunk that is quoted three times is one chunk.
    cited = {citation["chunk_id"]: citation["text"] for citation in row["citations"]}
    return {
        **row,
        "answers": list(gold.answers),
        "answerable": gold.answerable,
        "language": language_of(gold.question),
        "scores": score(text, gold.answers, gold.question),
        "in_context": any(holds_any(passage["text"], gold.answers) for passage in row["passages"]),
        "chunks_cited": len(cited),
        "chunks_holding": sum(holds_any(each, gold.answers) for each in cited.values()),
        "groundedness": None if row["refused"] else groundedness(text, cited.values()),
    }


def holds_any(text: str, answers: Iterable[str]) -> bool:
    """Whether one of the gold answers stands in a text."""
    return any(holds(text, answer) for answer in answers)


def gold_passages(gold: Gold, corpus: Corpus, kb: str) -> list[Document]:
    """The paragraph that holds the answer; the chunks of the knowledge base that do where it is too long or unknown."""
    if gold.paragraph is not None:
        source, text = corpus.paragraphs[gold.paragraph]
        if corpus.services.embedder.count_tokens(text) <= corpus.services.settings.max_prompt_tokens * GOLD_TOKENS / 2:
            data = {"chunk_id": gold.paragraph, "source": source, "page": None, "headings": "", "score": 1.0}
            return [Document(text, metadata=data)]
    if gold.source is None:
        return []
    store = corpus.services.store(kb)
    doc_ids = [
        row.doc_id for source, row in corpus.services.ingestor.manifest.files(kb).items() if source == gold.source
    ]
    chunks = [chunk for doc_id in doc_ids if doc_id for chunk in store.chunks_of(doc_id)]
    right = [chunk for chunk in chunks if contains(chunk.page_content, gold.answers)]
    of_page = [chunk for chunk in right if gold.page is None or chunk.metadata.get("page") == gold.page]
    found = (of_page or right)[:2]
    return [Document(chunk.page_content, metadata={"page": None, **chunk.metadata, "score": 1.0}) for chunk in found]


# -- files -------------------------------------------------------------------------------------------------------


def read_rows(path: Path) -> dict[str, Row]:
    """Scored rows of an earlier run by id. Lines cut short, and failed ones, are left out."""
    rows: dict[str, Row] = {}
    if path.exists():
        for _, line in read_lines(path):
            try:
                row = json.loads(line) if is_valid(line) else {}
            except ValueError:
                continue
            if isinstance(row, dict) and row.keys() >= WHOLE and isinstance(row["id"], str):
                rows[row["id"]] = row
    return rows


def require_answers(questions: Sequence[Gold]) -> None:
    """Raises AppError for a set without gold answers, as BEIR's are."""
    if not any(gold.answers or not gold.answerable for gold in questions):
        raise AppError("these questions have no gold answers; `paddock eval retrieval` can measure with them")
