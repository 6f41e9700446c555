"""Questions and documents as BEIR has them (Thakur et al. 2021): for retrieval only, as there are no answers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from app.errors import AppError
from app.evaluate.questions import Article, Dataset, Gold, Ids, file_stem, finished, text_of
from app.lines import is_valid, read_lines
from ingest.loaders.decode import tidy


def read_beir(folder: Path) -> Dataset:
    """corpus.jsonl, queries.jsonl and qrels/test.tsv (else dev, else train). It has no answers: for retrieval only."""
    if not folder.is_dir():
        raise AppError(f"there is no folder {folder}; give one with corpus.jsonl, queries.jsonl and qrels/")
    splits = [folder / "qrels" / f"{split}.tsv" for split in ("test", "dev", "train")]
    qrels = next((split for split in splits if split.is_file()), None)
    if qrels is None:
        raise AppError(f"{folder} has no qrels/test.tsv, dev.tsv or train.tsv; give a folder in BEIR's form")
    dataset = Dataset(folder.name, [])
    corpus, queries = folder / "corpus.jsonl", folder / "queries.jsonl"
    names: dict[str, str] = {}
    for _, row in _beir_rows(corpus, dataset.faults):
        title, text = str(row.get("title") or "").strip(), str(row.get("text") or "").strip()
        name = f"{file_stem(row['_id']) or 'document'}-{len(names) + 1:07d}.txt"
        names[row["_id"]] = name
        if body := tidy("\n\n".join(part for part in (title, text) if part)):
            dataset.articles.append(Article(name, ((name, body),)))
    relevant = _qrels(qrels, names, dataset.faults)
    for number, row in _beir_rows(queries, dataset.faults):
        if grades := relevant.get(row["_id"]):
            question = str(row.get("text") or "").strip()
            if question:
                dataset.questions.append(Gold(row["_id"], question, relevant={"document": grades}, line=number))
            else:
                dataset.faults.append(f"{queries}:{number}: query '{row['_id']}' has no text; it is left out")
    return finished(dataset, queries)


def _beir_rows(path: Path, faults: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file with their line numbers, ids as text and each once."""
    text_of(path)
    ids = Ids(path, faults)
    for number, line in read_lines(path):
        try:
            row = json.loads(line) if is_valid(line) else None
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict) or row.get("_id") in (None, ""):
            ids.fault(number, "not a JSON object with an '_id' in UTF-8; this line is left out")
            continue
        row["_id"] = str(row["_id"])
        if ids.is_new(row["_id"], number):
            yield number, row


def _qrels(path: Path, names: Mapping[str, str], faults: list[str]) -> dict[str, dict[str, int]]:
    relevant: dict[str, dict[str, int]] = {}
    text_of(path)
    for number, line in read_lines(path):
        fields = line.split("\t")
        if number == 1 and fields[-1].strip() == "score":
            continue
        try:
            query, document, grade = fields
            value = int(grade)
        except ValueError:
            faults.append(f"{path}:{number}: not 'query-id<TAB>corpus-id<TAB>score'; this line is left out")
            continue
        if document not in names:
            faults.append(f"{path}:{number}: document '{document}' is not in the corpus; this line is left out")
        elif value > 0:
            relevant.setdefault(query, {})[names[document]] = value
    return relevant
