"""What a run was made with, and the files that it leaves."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from app.adapters import Shelf, label
from app.config import Settings
from app.errors import AppError
from app.evaluate.corpus import Corpus
from app.evaluate.questions import Dataset

Row = dict[str, Any]
ROWS = {"answers": "answers.jsonl", "retrieval": "retrieval.jsonl"}  # kind of run -> the file of its rows
VERSIONS = ("paddock", "torch", "chromadb", "tantivy", "tokenizers", "sacrebleu", "rouge-score", "ir-measures", "numpy")
# What the figures do not depend on; everything else is recorded.
NOT_RECORDED = {"home", "password", "hub_token", "host", "port", "threads", "judge_model", "judge_api_key"}


def recorded(kind: str, dataset: Dataset, limit: int | None, place: Corpus) -> Row:
    """What a run was made with: data, settings, models, versions, machine."""
    services = place.services
    settings = services.settings
    return {
        "kind": kind,
        "dataset": {
            "name": dataset.name,
            "sha256": dataset_digest(dataset),
            "questions": len(dataset.questions),
            "limit": limit,
            "documents": len(services.ingestor.manifest.files(settings.kb)),
            "chunks": services.ingestor.manifest.chunks(settings.kb),
            "index": _digest(
                sorted([source, row.doc_id] for source, row in services.ingestor.manifest.files(settings.kb).items())
            ),
            "faults": dataset.faults,
        },
        "embedder": services.embedder.identity,
        **surroundings(settings, services.adapter() if kind == "answers" else None),
    }


def surroundings(settings: Settings, adapter: str | None = None) -> Row:
    """Settings, model, versions and machine of a run, whatever it measures. adapter: what the model is asked with."""
    return {
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "settings": _settings(settings),
        "model": model_of(settings),
        "adapter": adapter_of(settings, adapter),
        "seed": settings.seed,
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in VERSIONS}},
        "machine": {"system": platform.system(), "processor": platform.machine(), "cores": os.cpu_count()},
    }


def model_of(settings: Settings) -> Row:
    """The LLaMA by name and content."""
    path = settings.path_of_model(settings.model)
    return {"name": path.name, "sha256": _file_digest(path)}


def adapter_of(settings: Settings, adapter: str | None) -> Row | None:
    """An adapter by name and content."""
    return None if adapter is None else {"name": label(adapter), "sha256": Shelf(settings).digest(adapter)}


def _settings(settings: Settings) -> Row:
    found = settings.model_dump(mode="json", exclude=NOT_RECORDED)
    return {**found, **{key: Path(found[key]).name for key in ("model", "adapter", "embedder", "rerank")}}


def identity_of(head: Row) -> str:
    """What the answer to a question depends on. Which questions are asked, and what they are scored by, is no part."""
    named = ("kind", "settings", "model", "adapter", "embedder", "gold_context", "k", "calibration")
    parts = {name: head[name] for name in named}
    return _digest([parts, head["dataset"]["index"]])


def dataset_digest(dataset: Dataset) -> str:
    """Of the questions and all that is right about them."""
    return _digest(
        [
            [gold.id, gold.question, list(gold.answers), gold.answerable, gold.kb, gold.relevant]
            for gold in dataset.questions
        ]
    )


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False, sort_keys=True).encode()).hexdigest()[:16]


def _file_digest(path: Path) -> str | None:
    """SHA-256 of a file, or of the names and hashes of a folder's files."""
    if path.is_dir():
        return _digest([[each.name, _file_digest(each)] for each in sorted(path.iterdir()) if each.is_file()])
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# -- files -----------------------------------------------------------------------------------------------------------


def make_folder(folder: Path | None) -> None:
    """Makes the folder of a report before any work is done for it. Raises AppError when it cannot be written."""
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".part").touch()
        (folder / ".part").unlink()
    except OSError as error:
        raise AppError(f"{folder} cannot be written ({error.strerror}); choose another --report") from error


def write_json(path: Path, value: Any) -> None:
    """Replaces a JSON file in one step."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Replaces a file of JSON lines in one step."""
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    part.replace(path)


def read_results(folder: Path) -> dict[str, Any]:
    """results.json of a run. Raises AppError when there is none that can be read."""
    try:
        found = json.loads((folder / "results.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise AppError(f"{folder} holds no results.json that can be read; give the --report folder of a run") from error
    if not isinstance(found, dict) or "kind" not in found:
        raise AppError(f"{folder / 'results.json'} was not written by `paddock eval`")
    return found
