"""What is indexed: one SQLite file. The index can always be made again from the inbox, and so can this."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Literal

from ingest.errors import IngestError
from ingest.filter import Filter, folded

MIGRATIONS = [
    """
    CREATE TABLE files (
        kb TEXT NOT NULL, source TEXT NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
        checked_ns INTEGER NOT NULL, sha256 TEXT NOT NULL, doc_id TEXT NOT NULL, chunks INTEGER NOT NULL,
        pages INTEGER, status TEXT NOT NULL, error TEXT, settings TEXT NOT NULL, embedder TEXT NOT NULL,
        ingested_at REAL NOT NULL, PRIMARY KEY (kb, source));
    CREATE INDEX files_doc_id ON files (kb, doc_id);
    CREATE TABLE kbs (kb TEXT PRIMARY KEY, collection_id TEXT NOT NULL, embedder TEXT NOT NULL);
    CREATE TABLE imports (
        kb TEXT NOT NULL, source TEXT NOT NULL, root TEXT NOT NULL, rel TEXT NOT NULL, sha256 TEXT NOT NULL,
        PRIMARY KEY (kb, source));
    CREATE TABLE garbage (kb TEXT NOT NULL, doc_id TEXT NOT NULL, PRIMARY KEY (kb, doc_id));
    CREATE TABLE moves (kb TEXT NOT NULL, doc_id TEXT NOT NULL, PRIMARY KEY (kb, doc_id));
    """,
    """
    CREATE TABLE keywords (kb TEXT NOT NULL, doc_id TEXT NOT NULL, done INTEGER NOT NULL, PRIMARY KEY (kb, doc_id));
    CREATE TABLE keyword_indexes (kb TEXT PRIMARY KEY, id TEXT NOT NULL);
    """,
    """
    ALTER TABLE files ADD COLUMN languages TEXT NOT NULL DEFAULT '';
    ALTER TABLE kbs ADD COLUMN hnsw TEXT NOT NULL DEFAULT '';
    """,
]


@dataclass(frozen=True)
class FileRow:
    """A document as it was when last looked at. A failed one has no doc_id; one that could not be read, no sha256."""

    kb: str
    source: str
    size: int
    mtime_ns: int
    checked_ns: int  # when size and mtime were read, in ns since 1970
    sha256: str
    doc_id: str
    chunks: int
    pages: int | None
    status: Literal["indexed", "failed"]
    error: str | None
    settings: str  # loader, splitter and their parameters
    embedder: str
    ingested_at: float
    languages: str = ""  # " en zh ", with a space around each; empty as long as nobody has looked


@dataclass(frozen=True)
class ImportRow:
    """A copy in the inbox: `rel` under `root` is the original, sha256 that of the content copied last."""

    kb: str
    source: str
    root: str
    rel: str
    sha256: str


@dataclass(frozen=True)
class KbRow:
    """The collection that holds a knowledge base, and the embedder that made it."""

    kb: str
    collection_id: str
    embedder: str
    hnsw: str = ""  # parameters of the graph that a collection can take over at any time


def joined(languages: Sequence[str]) -> str:
    """Languages as the table of files has them."""
    return f" {' '.join(languages)} "


class Manifest:
    """Open manifest, usable from several threads. Every method raises IngestError if the file is damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._depth = 0
        try:
            self._db = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            raise self._broken(error) from error
        self._db.create_function("folded", 1, folded, deterministic=True)
        try:
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._migrate()
        except sqlite3.Error as error:
            self._db.close()
            raise self._broken(error) from error

    def _broken(self, error: object) -> IngestError:
        return IngestError(
            f"the manifest {self.path} cannot be used ({error}); move it away and run `paddock ingest` again"
        )

    def _migrate(self) -> None:
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version > len(MIGRATIONS):
            raise self._broken(f"it was written by a newer version, schema {version}")
        for number in range(version, len(MIGRATIONS)):
            self._db.executescript(f"BEGIN IMMEDIATE; {MIGRATIONS[number]} PRAGMA user_version = {number + 1}; COMMIT;")

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All changes inside happen, or none. Transactions nest."""
        with self._lock:
            outermost = self._depth == 0
            self._depth += 1
            try:
                if outermost:
                    self._db.execute("BEGIN IMMEDIATE")
                yield
                if outermost:
                    self._db.execute("COMMIT")
            except BaseException as error:
                if outermost and self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                if isinstance(error, sqlite3.Error):
                    raise self._broken(error) from error
                raise
            finally:
                self._depth -= 1

    def _do(self, sql: str, values: Sequence[object] = ()) -> list[tuple[object, ...]]:
        with self._lock:
            try:
                return self._db.execute(sql, values).fetchall()
            except sqlite3.Error as error:
                raise self._broken(error) from error

    # -- knowledge bases -----------------------------------------------------------------------------------------

    def kbs(self) -> list[str]:
        """Knowledge bases that have documents or a collection."""
        found = self._do(  # from name to name, not from file to file
            "WITH RECURSIVE names (kb) AS (SELECT min(kb) FROM files UNION ALL "
            "SELECT (SELECT min(kb) FROM files WHERE kb > names.kb) FROM names WHERE names.kb IS NOT NULL) "
            "SELECT kb FROM names WHERE kb IS NOT NULL UNION SELECT kb FROM kbs ORDER BY kb"
        )
        return [str(row[0]) for row in found]

    def kb(self, kb: str) -> KbRow | None:
        """The knowledge base's collection, if it has one."""
        found = self._do("SELECT kb, collection_id, embedder, hnsw FROM kbs WHERE kb = ?", (kb,))
        return KbRow(*found[0]) if found else None  # type: ignore[arg-type]

    def put_kb(self, row: KbRow) -> None:
        """Adds or replaces."""
        self._do("INSERT OR REPLACE INTO kbs VALUES (?, ?, ?, ?)", astuple(row))

    def forget(self, kb: str, imports: bool = False) -> None:
        """Drops all that is known of a knowledge base; what was imported from where only if asked."""
        with self.transaction():
            self.forget_keywords(kb)
            for table in ("files", "kbs", "garbage", "moves", *(["imports"] if imports else [])):
                self._do(f"DELETE FROM {table} WHERE kb = ?", (kb,))

    # -- files ---------------------------------------------------------------------------------------------------

    def files(self, kb: str) -> dict[str, FileRow]:
        """All documents of a knowledge base by source."""
        names = ", ".join(each.name for each in fields(FileRow))
        found = self._do(f"SELECT {names} FROM files WHERE kb = ? ORDER BY source", (kb,))
        return {str(row[1]): FileRow(*row) for row in found}  # type: ignore[arg-type]

    def put_file(self, row: FileRow) -> None:
        """Adds or replaces."""
        marks = ", ".join("?" for _ in fields(FileRow))
        self._do(f"INSERT OR REPLACE INTO files VALUES ({marks})", astuple(row))

    def delete_file(self, kb: str, source: str) -> None:
        """Forgets a document."""
        self._do("DELETE FROM files WHERE kb = ? AND source = ?", (kb, source))

    def has_doc(self, kb: str, doc_id: str) -> bool:
        """Whether a document has this id."""
        return bool(self._do("SELECT 1 FROM files WHERE kb = ? AND doc_id = ?", (kb, doc_id)))

    def known_docs(self, kb: str, doc_ids: Sequence[str], version: int, only: Filter | None = None) -> set[str]:
        """Those of these ids that documents have, and had at that version, if `only` lets them through.

        What is half written or replaced has none; what became whole later may have been seen in part.
        """
        limits, values = (only or Filter()).conditions()
        found = self._do(
            "SELECT doc_id FROM files WHERE kb = ? AND rowid <= ? AND doc_id IN (SELECT value FROM json_each(?))"
            + limits,
            (kb, version, json.dumps(list(doc_ids)), *values),
        )
        return {str(row[0]) for row in found}

    def amount(self, kb: str, only: Filter | None = None) -> tuple[int, int]:
        """How many documents are indexed, and how many chunks they have; of those that `only` lets through."""
        limits, values = (only or Filter()).conditions()
        sql = "SELECT count(*), coalesce(sum(chunks), 0) FROM files WHERE kb = ? AND doc_id <> ''"
        documents, chunks = self._do(sql + limits, (kb, *values))[0]
        return int(str(documents)), int(str(chunks))

    def languages(self, kb: str) -> list[str]:
        """The languages of the knowledge base's documents, sorted."""
        found = self._do("SELECT DISTINCT languages FROM files WHERE kb = ? AND doc_id <> ''", (kb,))
        return sorted({name for row in found for name in str(row[0]).split()})

    def without_languages(self, kb: str) -> list[str]:
        """Ids of indexed documents whose languages nobody has looked for: indexed by an earlier version."""
        found = self._do("SELECT doc_id FROM files WHERE kb = ? AND doc_id <> '' AND languages = ''", (kb,))
        return [str(row[0]) for row in found]

    def put_languages(self, kb: str, doc_id: str, languages: Sequence[str]) -> None:
        """Notes the languages of a document."""
        self._do("UPDATE files SET languages = ? WHERE kb = ? AND doc_id = ?", (joined(languages), kb, doc_id))

    def version(self) -> int:
        """Grows with every document that is added or replaced: SQLite gives such a row the highest number."""
        return int(str(self._do("SELECT coalesce(max(rowid), 0) FROM files")[0][0]))

    def source_of(self, kb: str, doc_id: str) -> str | None:
        """The source of the document with this id."""
        found = self._do("SELECT source FROM files WHERE kb = ? AND doc_id = ?", (kb, doc_id))
        return str(found[0][0]) if found else None

    def chunks(self, kb: str) -> int:
        """How many chunks the knowledge base's documents have."""
        found = self._do("SELECT coalesce(sum(chunks), 0) FROM files WHERE kb = ?", (kb,))
        return int(str(found[0][0]))

    # -- unfinished work: what a killed run leaves for the next ----------------------------------------------------

    def garbage(self, kb: str) -> list[str]:
        """Ids of documents whose chunks may be in the store but must not be."""
        return [str(row[0]) for row in self._do("SELECT doc_id FROM garbage WHERE kb = ? ORDER BY doc_id", (kb,))]

    def add_garbage(self, kb: str, doc_id: str) -> None:
        """Remembers chunks to be removed."""
        if doc_id:
            self._do("INSERT OR IGNORE INTO garbage VALUES (?, ?)", (kb, doc_id))

    def drop_garbage(self, kb: str, doc_ids: Sequence[str]) -> None:
        """Forgets them: removed, or in use after all."""
        with self.transaction():
            for doc_id in doc_ids:
                self._do("DELETE FROM garbage WHERE kb = ? AND doc_id = ?", (kb, doc_id))

    def moves(self, kb: str) -> list[str]:
        """Ids of documents whose chunks may name another source than the document has."""
        return [str(row[0]) for row in self._do("SELECT doc_id FROM moves WHERE kb = ? ORDER BY doc_id", (kb,))]

    def add_move(self, kb: str, doc_id: str) -> None:
        """Remembers a renaming that has begun."""
        self._do("INSERT OR IGNORE INTO moves VALUES (?, ?)", (kb, doc_id))

    def drop_move(self, kb: str, doc_id: str) -> None:
        """Forgets it: done."""
        self._do("DELETE FROM moves WHERE kb = ? AND doc_id = ?", (kb, doc_id))

    # -- the keyword index: which documents it has; see ingest.keywords ---------------------------------------------

    def has_documents(self, kb: str) -> bool:
        """Whether any document is indexed."""
        return bool(self._do("SELECT 1 FROM files WHERE kb = ? AND doc_id > '' LIMIT 1", (kb,)))

    def doc_ids(self, kb: str, only: Filter | None = None) -> set[str]:
        """Ids of all documents that are indexed; of those that `only` lets through."""
        limits, values = (only or Filter()).conditions()
        found = self._do("SELECT doc_id FROM files WHERE kb = ? AND doc_id <> ''" + limits, (kb, *values))
        return {str(row[0]) for row in found}

    def keyword_index(self, kb: str) -> str | None:
        """The identity of the keyword index that the notes are about."""
        found = self._do("SELECT id FROM keyword_indexes WHERE kb = ?", (kb,))
        return str(found[0][0]) if found else None

    def put_keyword_index(self, kb: str, index_id: str) -> None:
        """Adds or replaces."""
        self._do("INSERT OR REPLACE INTO keyword_indexes VALUES (?, ?)", (kb, index_id))

    def keywords(self, kb: str) -> dict[str, bool]:
        """Documents that the keyword index has (true), or may have."""
        return {str(row[0]): bool(row[1]) for row in self._do("SELECT doc_id, done FROM keywords WHERE kb = ?", (kb,))}

    def put_keyword(self, kb: str, doc_id: str, done: bool) -> None:
        """Notes that the keyword index has the document, or is to have it."""
        self._do("INSERT OR REPLACE INTO keywords VALUES (?, ?, ?)", (kb, doc_id, int(done)))

    def drop_keywords(self, kb: str, doc_ids: Sequence[str]) -> None:
        """Notes that the keyword index has nothing of these documents."""
        with self.transaction():
            for doc_id in doc_ids:
                self._do("DELETE FROM keywords WHERE kb = ? AND doc_id = ?", (kb, doc_id))

    def forget_keywords(self, kb: str) -> None:
        """Drops all notes about the keyword index."""
        with self.transaction():
            for table in ("keywords", "keyword_indexes"):
                self._do(f"DELETE FROM {table} WHERE kb = ?", (kb,))

    # -- imports -------------------------------------------------------------------------------------------------

    def imports(self, root: str) -> dict[tuple[str, str], ImportRow]:
        """Copies that came from a root, by knowledge base and source."""
        found = self._do("SELECT kb, source, root, rel, sha256 FROM imports WHERE root = ?", (root,))
        return {(str(row[0]), str(row[1])): ImportRow(*row) for row in found}  # type: ignore[arg-type]

    def put_import(self, row: ImportRow) -> None:
        """Adds or replaces."""
        self._do("INSERT OR REPLACE INTO imports VALUES (?, ?, ?, ?, ?)", astuple(row))

    def delete_import(self, kb: str, source: str) -> None:
        """Forgets where a copy came from."""
        self._do("DELETE FROM imports WHERE kb = ? AND source = ?", (kb, source))
