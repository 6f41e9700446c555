"""BM25 over the chunks of one knowledge base: a tantivy index in a folder of its own. The only import of tantivy.

The index holds terms and ids, no text: it is made from the chunks in the vector store and can be made again from them.
Segments are immutable, memory-mapped files, and a commit becomes visible by replacing one small file, so that readers
in other processes see all of it or nothing, and a writer that is killed leaves the last commit.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import shutil
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vectorstore import analyze, background
from vectorstore.errors import StoreError
from vectorstore.marker import collection_name

ID = "id"  # the file with the index's identity
META = "meta.json"  # tantivy's list of segments
PARTS = ("term", "idx", "pos", "store", "fieldnorm", "fast")  # files of a segment
FOOTER, MAGIC = "<II", 1337  # the end of each: the size of a checksum before it, and what tells that it is there
WRITER_BYTES = 64 << 20  # terms of a commit are gathered in this much memory
MOST_TERMS = 128  # of a question; the rarest are taken
K1 = 1.2  # tantivy's, and so is b = 0.75


def folder_of(root: Path, kb: str) -> Path:
    """Where the keyword index of a knowledge base lies, under `root`."""
    return root / collection_name(kb)


def read_id(folder: Path) -> str | None:
    """The identity of the index in `folder`; None if there is none, or one of other terms than are made now."""
    try:
        name = (folder / ID).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return name if name.startswith(f"{analyze.VERSION}-") and (folder / META).is_file() else None


def is_whole(folder: Path) -> bool:
    """Whether the files of the last commit are there to their ends, by what tantivy writes there. Reads little."""
    try:
        segments = json.loads((folder / META).read_text(encoding="utf-8"))["segments"]
        names = [str(each["segment_id"]).replace("-", "") for each in segments]
        return all(_ends_well(folder / f"{name}.{part}") for name in names for part in PARTS)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _ends_well(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-struct.calcsize(FOOTER), os.SEEK_END)
        size, magic = struct.unpack(FOOTER, file.read())
        return bool(magic == MAGIC and 0 < size < file.tell())


def drop(folder: Path) -> None:
    """Removes the index, if there is one. Raises StoreError."""
    try:
        (folder / ID).unlink(missing_ok=True)  # first: without it, nobody takes the rest for an index
        if folder.exists():
            shutil.rmtree(folder)
    except OSError as error:
        raise StoreError(f"the keyword index {folder} cannot be removed: {error.strerror}") from error


def size_of(folder: Path) -> int:
    """Bytes on the disk; 0 if there is no index."""
    try:
        return sum(path.stat().st_size for path in folder.iterdir())
    except OSError:
        return 0


@dataclass(frozen=True)
class Hit:
    """A chunk and its BM25 score, of at most 1: divided by what a chunk full of the query's terms could have."""

    chunk_id: str
    doc_id: str
    score: float


@dataclass(frozen=True)
class Terms:
    """A query's terms that the index knows. `known` in [0, 1] is their share of the weight (idf) of all its terms."""

    names: tuple[str, ...]
    best: float  # no chunk's BM25 score is above this
    known: float
    # idf of every term, those it does not know as well, in the index and ordinary text together
    weights: Mapping[str, float] = field(default_factory=dict)
    ordinary: float = 1.0  # how much of what the weights rest on is ordinary text, in (0, 1]

    def held(self, text: str) -> float:
        """Share of the query's weight (idf, see `background`) whose terms stand in a text, in [0, 1]."""
        there, whole = set(analyze.terms(text)), sum(self.weights.values())
        return sum(weight for term, weight in self.weights.items() if term in there) / whole if whole else 0.0


def unindexed(text: str, total: int) -> Terms:
    """A query's terms where there is no index to know them: weighed as if none of `total` chunks had them."""
    weights = {term: background.idf(term, 0, total) for term in analyze.terms(text)}
    return Terms((), 0.0, 0.0, weights, background.share(total))


class KeywordIndex:
    """An index that may be searched from any thread; one writer at a time, which the caller sees to."""

    def __init__(self, folder: Path, create: bool = False) -> None:
        """Opens the index, or makes an empty one. Raises StoreError if there is none or it is damaged."""
        self.folder = folder
        self._held: tuple[tuple[int, int], Any] | None = None
        self._writer: Any = None
        if create:
            self._create()
        if read_id(folder) is None:
            raise StoreError(f"there is no keyword index in {folder}; run `paddock ingest`")
        self._searcher()

    @property
    def id(self) -> str:
        """Another one for every index that is made."""
        return read_id(self.folder) or ""

    def _create(self) -> None:
        import tantivy

        with self._plain():
            drop(self.folder)
            self.folder.mkdir(parents=True)
            tantivy.Index(_schema(), path=str(self.folder))
            (self.folder / ID).write_text(f"{analyze.VERSION}-{secrets.token_hex(8)}\n", encoding="ascii")

    @contextmanager
    def _plain(self) -> Iterator[None]:
        try:
            yield
        except StoreError:
            raise
        except Exception as error:  # tantivy raises ValueError for nearly everything
            said = " ".join(str(error).split())[:160]
            raise StoreError(
                f"the keyword index in {self.folder} cannot be used ({said}); remove this folder and run "
                "`paddock ingest`"
            ) from error

    def _open(self) -> Any:
        import tantivy

        index = tantivy.Index.open(str(self.folder))
        index.register_tokenizer("spaces", tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.whitespace()).build())
        return index

    # -- writing ---------------------------------------------------------------------------------------------------

    def _writing(self) -> Any:
        if self._writer is None:
            self._writer = self._open().writer(WRITER_BYTES, 1)
        return self._writer

    def put(self, doc_id: str, chunks: Sequence[tuple[str, str]]) -> None:
        """Adds a document's chunks (id, text) in the place of those it has; readers see it after the next commit."""
        import tantivy

        with self._plain():
            writer = self._writing()
            writer.delete_documents_by_term("doc_id", doc_id)
            for name, text in chunks:
                words = " ".join(analyze.terms(text))
                writer.add_document(tantivy.Document(terms=words, doc_id=doc_id, chunk_id=name))

    def delete(self, doc_id: str) -> None:
        """Removes a document's chunks; readers see it after the next commit."""
        with self._plain():
            self._writing().delete_documents_by_term("doc_id", doc_id)

    def commit(self) -> None:
        """Brings what was put and deleted to the disk, all of it at once."""
        with self._plain():
            if self._writer is not None:
                self._writer.commit()

    def close(self) -> None:
        """Ends writing, without what was not committed."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with self._plain():
                writer.rollback()
                writer.wait_merging_threads()

    # -- reading ---------------------------------------------------------------------------------------------------

    def _searcher(self) -> Any:
        """A view of the last commit, be it another process'."""
        with self._plain():
            for attempt in (1, 2, 3):
                stat = (self.folder / META).stat()
                stamp = (stat.st_ino, stat.st_mtime_ns)
                if self._held is not None and self._held[0] == stamp:
                    break
                try:
                    self._held = stamp, self._open().searcher()
                except Exception:  # a segment may have been merged away since its name was read
                    if attempt == 3:
                        raise
        assert self._held is not None
        return self._held[1]

    def count(self) -> int:
        """How many chunks there are."""
        return int(self._searcher().num_docs)

    def analyse(self, text: str) -> Terms:
        """What of a query the index knows."""
        searcher = self._searcher()
        total = searcher.num_docs
        weights: dict[str, float] = {}
        known: dict[str, float] = {}
        absent = 0.0
        for term in dict.fromkeys(analyze.terms(text)):
            found = min(searcher.doc_freq("terms", term), total)  # it counts deleted chunks, too
            weights[term] = background.idf(term, found, total)
            idf = math.log(1 + (total - found + 0.5) / (found + 0.5))  # as the scores have it
            if found:
                known[term] = idf
            else:
                absent += idf
        names = tuple(sorted(known, key=lambda term: -known[term])[:MOST_TERMS])
        kept = sum(known[name] for name in names)
        whole = kept + absent
        ordinary = background.share(total)
        return Terms(names, (1 + K1) * whole, kept / whole if whole else 0.0, weights, ordinary)

    def search(self, terms: Terms, k: int, doc_ids: Sequence[str] | None = None) -> list[Hit]:
        """The k chunks of the highest BM25 score, best first; none has score 0. With `doc_ids`, of these documents."""
        if not terms.names:
            return []
        wanted = self._any_of(terms)
        return self._hits(wanted if doc_ids is None else self._among("doc_id", doc_ids, wanted), terms, k)

    def scores(self, terms: Terms, chunk_ids: Sequence[str]) -> dict[str, float]:
        """The score of each of these chunks, as `search` gives it; 0 for those without any of the terms."""
        found = dict.fromkeys(chunk_ids, 0.0)
        if terms.names and found:
            query = self._among("chunk_id", list(found), self._any_of(terms))
            found.update((hit.chunk_id, hit.score) for hit in self._hits(query, terms, len(found)))
        return found

    def _among(self, field: str, names: Sequence[str], query: Any) -> Any:
        """The query, of chunks that have one of the names in a field; that adds nothing to their scores."""
        from tantivy import Occur, Query

        among = Query.const_score_query(Query.term_set_query(_schema(), field, list(names)), 0.0)
        return Query.boolean_query([(Occur.Must, among), (Occur.Must, query)])

    def _any_of(self, terms: Terms) -> Any:
        from tantivy import Occur, Query

        schema = _schema()
        return Query.boolean_query([(Occur.Should, Query.term_query(schema, "terms", t, "freq")) for t in terms.names])

    def _hits(self, query: Any, terms: Terms, k: int) -> list[Hit]:
        searcher = self._searcher()
        with self._plain():
            found = []
            for score, address in searcher.search(query, k, count=False).hits:
                stored = searcher.doc(address)
                share = min(1.0, float(score) / terms.best)
                found.append(Hit(stored.get_first("chunk_id"), stored.get_first("doc_id"), share))
            return found


def _schema() -> Any:
    import tantivy

    builder = tantivy.SchemaBuilder()
    builder.add_text_field("terms", tokenizer_name="spaces", index_option="freq")
    builder.add_text_field("doc_id", stored=True, tokenizer_name="raw", index_option="basic")
    builder.add_text_field("chunk_id", stored=True, tokenizer_name="raw", index_option="basic")
    return builder.build()
