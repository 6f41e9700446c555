"""What a knowledge base's index costs, read from the files without opening it."""

from __future__ import annotations

import contextlib
import sqlite3
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vectorstore import keyword
from vectorstore.marker import DATABASE, read_marker

# What Chroma keeps in memory of each chunk beside the graph: its id twice, in hash tables. Measured at a million.
ID_BYTES = 250


@dataclass(frozen=True)
class Costs:
    """Bytes on the disk and, estimated, in the memory of a process that searches; None where a server knows them."""

    chunks: int
    vectors: int | None  # the graph with its vectors
    text: int | None  # the knowledge base's share of Chroma's database: texts, names, and vectors not in the graph yet
    keyword: int
    memory: int | None

    def to_json(self) -> dict[str, Any]:
        """The figures by name; bytes, but for `chunks`."""
        return asdict(self)


def costs_of(folder: Path, keyword_folder: Path, kb: str, chunks: int, all_chunks: int) -> Costs:
    """Of the knowledge base `kb`, which has so many of the index' chunks, in Chroma's `folder`."""
    graph = _graph_bytes(folder, kb)
    database = _size(folder / DATABASE) + _size(folder / f"{DATABASE}-wal")
    text = database * chunks // all_chunks if all_chunks else 0
    return Costs(chunks, graph, text, keyword.size_of(keyword_folder), graph + ID_BYTES * chunks)


def _graph_bytes(folder: Path, kb: str) -> int:
    collection = read_marker(folder, kb)
    if collection is None:
        return 0
    uri = f"{(folder / DATABASE).absolute().as_uri()}?mode=ro"
    try:
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=5)) as database:
            sql = "SELECT id FROM segments WHERE collection = ? AND scope = 'VECTOR'"
            names = [str(row[0]) for row in database.execute(sql, (collection,))]
    except sqlite3.Error:
        return 0  # damaged: told by whoever opens it
    return sum(_size(path) for name in names for path in (folder / name).glob("*"))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
