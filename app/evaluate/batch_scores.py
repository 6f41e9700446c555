"""Scores of a finished batch whose lines carry gold answers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from app.batch import Item, key_of
from app.errors import AppError
from app.evaluate.answers import holds_any, said
from app.evaluate.metrics import score
from app.evaluate.record import write_json
from app.evaluate.stats import Parts, ratio
from app.lines import is_valid, read_lines

Row = dict[str, Any]


def score_batch(items: Sequence[Item], out: Path, seed: int = 0) -> dict[str, Any] | None:
    """Figures over the lines of `out` that answer an item with gold answers, and the scores of each; None when none
    does. The gold answers are the items': those that a kept line carries may be older.
    """
    rows: list[Row] = []
    columns: dict[str, list[Parts]] = {}
    for row, golds in _answered(items, out):
        scores = score(said(row), golds, row["question"])
        # A chunk that is quoted three times is one chunk.
        cited = {citation["chunk_id"]: citation["text"] for citation in row["citations"]}
        parts = {name.replace("_", " "): (value, 1.0) for name, value in scores.items()}
        parts["refused"] = (float(row["refused"]), 1.0)
        held = sum(holds_any(text, golds) for text in cited.values())
        parts["citation precision"] = (float(held), float(len(cited)))
        for name, each in parts.items():
            columns.setdefault(name, []).append(each)
        rows.append({"id": row["id"], "refused": row["refused"], "scores": scores})
    if not rows:
        return None
    figures = {name: ratio(parts, seed).to_json() for name, parts in columns.items()}
    return {"scored": len(rows), "figures": {n: f for n, f in figures.items() if f["n"]}, "rows": rows}


def _answered(items: Sequence[Item], out: Path) -> Iterator[tuple[Row, list[str]]]:
    """The lines of `out` that answer an item, with its gold answers where it has some."""
    wanted: dict[str, list[list[str]]] = {}
    for item in items:
        wanted.setdefault(key_of(item.id, item.question), []).append(_golds(item.extra.get("answers")))
    for _, line in read_lines(out):
        row = json.loads(line) if is_valid(line) else {}
        left = wanted.get(key_of(row["id"], row["question"])) if "answer" in row else None
        if left and (golds := left.pop(0)):
            yield row, golds


def _golds(answers: Any) -> list[str]:
    """Gold answers as they come: a list of texts, or one text; anything else is none."""
    answers = [answers] if isinstance(answers, str) else answers
    return [a for a in answers if isinstance(a, str) and a.strip()] if isinstance(answers, list) else []


def summary(result: dict[str, Any]) -> str:
    """One line for the end of a batch."""
    shown = ", ".join(f"{name} {100 * each['value']:.1f}%" for name, each in result["figures"].items())
    return f"{result['scored']} with gold answers: {shown}"


def write_scores(path: Path, result: dict[str, Any]) -> None:
    """Raises AppError when the file cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, result)
    except OSError as error:
        raise AppError(f"{path} cannot be written ({error.strerror}); choose another file with --scores") from error
