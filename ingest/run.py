"""One run of sync over one knowledge base."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from langchain_core.documents import Document

from ingest import chunk
from ingest.errors import IngestError
from ingest.inbox import DEFAULT_KB, InboxFile, Scan
from ingest.keywords import KeywordFollower
from ingest.language import languages_of
from ingest.loaders import load, loader_of
from ingest.manifest import FileRow, KbRow, joined
from ingest.report import Event, Failure, Progress, Report
from vectorstore.errors import other_embedder
from vectorstore.rows import chunk_id

if TYPE_CHECKING:
    from ingest.sync import Ingestor
    from vectorstore.store import ChromaStore

BATCH = 128  # chunks embedded and written at once
# A file written so shortly before it was looked at may be written again without a new mtime: clocks of file systems
# tick every few milliseconds. Such a file is compared by content the next time.
TICK_NS = 20_000_000


class _BadFile(Exception):
    """One file cannot be ingested; the others can."""


class Run:
    """Compares, then acts. The writer's lock must be held."""

    def __init__(
        self, ingestor: Ingestor, kb: str, only: Sequence[Path] | None, progress: Progress | None, rebuild: bool
    ) -> None:
        self.ingestor = ingestor
        self.kb = kb
        self.only = only
        self.progress = progress
        self.rebuild = rebuild
        self.manifest = ingestor.manifest
        self.report = Report(kb)
        self._store: ChromaStore | None = None
        self.keywords = KeywordFollower(self.manifest, ingestor.keyword, kb)
        self.done_files = self.total_files = self.done_bytes = self.total_bytes = 0

    def execute(self) -> Report:
        """Does the run; the caller fills in the seconds."""
        try:
            return self._execute()
        finally:
            self.keywords.close()

    def _execute(self) -> Report:
        self._check_collection()
        self._tell("scan")
        self._finish_killed_run()
        rows = self.manifest.files(self.kb)
        self._check_inbox(rows)
        scan = self.ingestor.inbox.scan(self.kb)
        files, rows = self._in_scope(scan, rows)
        self.report.failed.extend(Failure(source, error) for source, error in scan.trouble.items())
        gone = {source: row for source, row in rows.items() if source not in files}
        work = [file for source, file in sorted(files.items()) if not self._is_known(file, rows.get(source))]
        self.total_files, self.total_bytes = len(work), sum(file.size for file in work)
        for file in work:
            self._tell("file", file.source)
            self._bring_in(file, rows.get(file.source), gone)
            self.done_files += 1
            self.done_bytes += file.size
        for source, row in gone.items():
            with self.manifest.transaction():
                self.manifest.delete_file(self.kb, source)
                self.manifest.add_garbage(self.kb, row.doc_id)
            self.report.deleted += 1
        self._collect_garbage()
        self.report.keyworded = self.keywords.follow(self._stored)
        self._add_languages()
        self.report.chunks = self.manifest.chunks(self.kb)
        self.report.failed.sort(key=lambda failure: failure.source)
        self._drop_if_gone()
        self._tell("done")
        return self.report

    def _tell(self, kind: str, source: str = "", extra_bytes: int = 0) -> None:
        if self.progress:
            done = self.done_bytes + extra_bytes
            self.progress(Event(kind, source, self.done_files, self.total_files, done, self.total_bytes))  # type: ignore[arg-type]

    # -- the store -------------------------------------------------------------------------------------------------

    @property
    def store(self) -> ChromaStore:
        """The collection, opened or made at its first use."""
        if self._store is None:
            self._store = self.ingestor.open_store(self.kb, True)
            row = KbRow(self.kb, self._store.collection_id, self.ingestor.embedder.identity, str(self.ingestor.hnsw))
            if self.manifest.kb(self.kb) != row:
                self.manifest.put_kb(row)
        return self._store

    def _check_collection(self) -> None:
        """Starts anew if the collection is not the one that the manifest speaks of (index or manifest moved away)."""
        known = self.manifest.kb(self.kb)
        held = self.ingestor.vectors.collection_id(self.kb)
        if self.rebuild or held != (known.collection_id if known else None):
            self._start_anew()
        elif known and known.embedder != self.ingestor.embedder.identity:
            raise other_embedder(self.kb, known.embedder, self.ingestor.embedder.identity)
        elif known and known.hnsw != str(self.ingestor.hnsw):
            assert self.store  # opened to be written, it takes over the graph's parameters
        # A run with nothing to do opens no index, and must not call a damaged one unchanged.
        self.ingestor.vectors.check()

    def _start_anew(self) -> None:
        """Empties the index of this knowledge base; then every file has to be read, whatever was asked for."""
        self.ingestor.drop_collection(self.kb)
        self.manifest.forget(self.kb)
        self.only = None

    def _finish_killed_run(self) -> None:
        if self.manifest.garbage(self.kb) and not self.ingestor.vectors.is_sound(self.kb):
            # Killed while Chroma wrote its vectors, which it does in place: only making them again helps.
            self._start_anew()
        self._collect_garbage()
        for doc_id in self.manifest.moves(self.kb):
            source = self.manifest.source_of(self.kb, doc_id)
            if source is not None:
                self.store.update_source(doc_id, source)
            self.manifest.drop_move(self.kb, doc_id)

    def _stored(self, doc_id: str) -> list[Document]:
        """A document's chunks as the store has them."""
        self._tell("keywords", self.manifest.source_of(self.kb, doc_id) or "")
        return self.store.chunks_of(doc_id)

    def _add_languages(self) -> None:
        """Those of documents that were indexed before languages were looked for."""
        for doc_id in self.manifest.without_languages(self.kb):
            found = languages_of(each.page_content for each in self.store.chunks_of(doc_id))
            self.manifest.put_languages(self.kb, doc_id, found)

    def _collect_garbage(self) -> None:
        doc_ids = self.manifest.garbage(self.kb)
        if doc_ids:
            self.store.delete_documents(doc_ids)
            self.manifest.drop_garbage(self.kb, doc_ids)

    def _drop_if_gone(self) -> None:
        """A knowledge base whose folder was removed ends with its last document."""
        if self.kb == DEFAULT_KB or self.only or self.ingestor.folder(self.kb).exists():
            return
        if not self.manifest.files(self.kb):
            self.ingestor.drop_collection(self.kb)
            self.manifest.forget(self.kb)

    # -- comparing -------------------------------------------------------------------------------------------------

    def _check_inbox(self, rows: dict[str, FileRow]) -> None:
        """An inbox that is not there is rather a disk not mounted than the wish to delete everything."""
        root = self.ingestor.inbox.root
        if rows and not root.is_dir():
            raise IngestError(f"the inbox {root} is gone; put it back, or make an empty folder to forget its documents")

    def _in_scope(self, scan: Scan, rows: dict[str, FileRow]) -> tuple[dict[str, InboxFile], dict[str, FileRow]]:
        """Files and rows under `only`; rows in folders that cannot be looked into are left alone."""
        hidden = [source for source in scan.trouble if source.endswith("/") or source == "."]
        rows = {
            source: row
            for source, row in rows.items()
            if not any(source.startswith(folder) or folder == "." for folder in hidden)
        }
        if self.only is None:
            return scan.files, rows
        folder = self.ingestor.folder(self.kb).resolve()
        wanted = [path.resolve() for path in self.only]

        def inside(source: str) -> bool:
            return any((folder / source).is_relative_to(path) for path in wanted)

        files = {source: file for source, file in scan.files.items() if inside(source)}
        return files, {source: row for source, row in rows.items() if inside(source)}

    def _settings(self, source: str) -> str:
        loader = loader_of(source)
        version = loader.version if loader else 0
        sizes = f"{self.ingestor.chunk_tokens}/{self.ingestor.chunk_overlap}"
        return f"loader {version}, splitter {chunk.VERSION}, tokens {sizes}"

    def _is_known(self, file: InboxFile, row: FileRow | None) -> bool:
        """Whether a file need not be read: it is as it was. Counts it."""
        if row is None or (row.size, row.mtime_ns) != (file.size, file.mtime_ns) or not row.sha256:
            return False
        if row.settings != self._settings(file.source) or row.mtime_ns > row.checked_ns - TICK_NS:
            return False
        self._count_known(row)
        return True

    def _count_known(self, row: FileRow) -> None:
        if row.error:
            self.report.failed.append(Failure(row.source, row.error))
        self.report.unchanged += row.status == "indexed"

    # -- acting ----------------------------------------------------------------------------------------------------

    def _bring_in(self, file: InboxFile, row: FileRow | None, gone: dict[str, FileRow]) -> None:
        """Hashes a file, then does what its content asks for. `gone` loses the row that a renamed file had."""
        now = time.time_ns()
        seen = FileRow(
            *(self.kb, file.source, file.size, file.mtime_ns, now, "", "", 0, None, "failed", None),
            *(self._settings(file.source), self.ingestor.embedder.identity, time.time()),
        )
        try:
            seen = replace(seen, sha256=self._hash(file))
            if row is not None and (row.sha256, row.settings) == (seen.sha256, seen.settings):
                self.manifest.put_file(replace(row, size=file.size, mtime_ns=file.mtime_ns, checked_ns=now))
                self._count_known(row)
            elif row is None and (old := self._renamed_from(seen, gone)) is not None:
                self._rename(old, seen)
                del gone[old.source]
            else:
                self._index(file, seen, row)
                self.report.added += row is None
                self.report.changed += row is not None
        except _BadFile as error:
            self._fail(seen, row, str(error))

    def _hash(self, file: InboxFile) -> str:
        limit = self.ingestor.max_file_mb
        if file.size > limit << 20:
            raise _BadFile(f"is larger than {limit} MB (setting max_file_mb)")
        try:
            with file.path.open("rb") as opened:
                return hashlib.file_digest(opened, "sha256").hexdigest()
        except OSError as error:
            raise _BadFile(f"cannot be read: {error.strerror}") from error

    def _fail(self, seen: FileRow, row: FileRow | None, error: str) -> None:
        """Remembers why; what an earlier version of the file had in the index goes."""
        with self.manifest.transaction():
            self.manifest.put_file(replace(seen, error=error))
            if row is not None:
                self.manifest.add_garbage(self.kb, row.doc_id)
        self.report.failed.append(Failure(seen.source, error))
        self._collect_garbage()

    def _renamed_from(self, seen: FileRow, gone: dict[str, FileRow]) -> FileRow | None:
        """A document that is gone and had this content, read in the same way."""
        suffix = Path(seen.source).suffix.lower()
        for old in gone.values():
            same = (old.sha256, old.settings) == (seen.sha256, seen.settings)
            if same and Path(old.source).suffix.lower() == suffix:
                return old
        return None

    def _rename(self, old: FileRow, seen: FileRow) -> None:
        moved = replace(old, source=seen.source, size=seen.size, mtime_ns=seen.mtime_ns, checked_ns=seen.checked_ns)
        with self.manifest.transaction():
            self.manifest.delete_file(self.kb, old.source)
            self.manifest.put_file(moved)
            if old.status == "indexed":
                self.manifest.add_move(self.kb, old.doc_id)
        if old.status == "failed":
            self._count_known(moved)
            return
        self.store.update_source(old.doc_id, seen.source)
        self.manifest.drop_move(self.kb, old.doc_id)
        self.report.renamed += 1

    def _index(self, file: InboxFile, seen: FileRow, row: FileRow | None) -> None:
        """Loads, splits, embeds and writes a file, then makes it known in one transaction."""
        documents, chunks = self._chunks(file)
        doc_id = self._free_id(seen)
        for ordinal, each in enumerate(chunks):
            each.id = chunk_id(doc_id, ordinal)
            each.metadata.update(chunk_id=each.id, doc_id=doc_id, source=file.source, ordinal=ordinal, kb=self.kb)
        store = self.store
        self.manifest.add_garbage(self.kb, doc_id)
        for start in range(0, len(chunks), BATCH):
            part = chunks[start : start + BATCH]
            vectors = self.ingestor.embedder.embed_documents([chunk.embed_text(each) for each in part])
            store.add_documents(part, embeddings=vectors)
            self._tell("chunks", file.source, file.size * min(len(chunks), start + BATCH) // len(chunks))
        pages = [int(each.metadata["page"]) for each in documents if "page" in each.metadata]
        seen = replace(
            seen,
            doc_id=doc_id,
            chunks=len(chunks),
            pages=max(pages, default=None),
            status="indexed",
            error=_unread(documents),
            languages=joined(languages_of(each.page_content for each in chunks)),
        )
        with self.manifest.transaction():
            self.manifest.put_file(seen)
            self.manifest.drop_garbage(self.kb, [doc_id])
            self.keywords.note(doc_id)
            if row is not None:
                self.manifest.add_garbage(self.kb, row.doc_id)
        self.keywords.add(doc_id, chunks)
        if seen.error:
            self.report.failed.append(Failure(seen.source, seen.error))
        self._collect_garbage()

    def _chunks(self, file: InboxFile) -> tuple[list[Document], list[Document]]:
        """A file's documents (pages), and its chunks. Raises _BadFile, or IngestError if the embedder is at fault."""
        embedder = self.ingestor.embedder
        limit = min(self.ingestor.chunk_tokens, embedder.max_tokens)
        try:
            documents = load(file.path)
            chunks = chunk.split(
                documents, embedder.count_tokens, limit, self.ingestor.chunk_overlap, embedder.count_tokens_batch
            )
        except IngestError as error:
            raise _BadFile(str(error)) from error
        except Exception as error:  # a bad file never stops the run, whatever a library makes of it
            said = (" ".join(str(error).split()) or type(error).__name__)[:160]
            raise _BadFile(f"cannot be read ({said})") from error
        if not chunks:
            raise _BadFile("is empty (it holds no text)")
        return documents, chunks

    def _free_id(self, seen: FileRow) -> str:
        """The document's id; a document that was renamed away from this name may still have it."""
        content = "\x00".join((self.kb, seen.source, seen.sha256, seen.settings))
        base = hashlib.sha256(content.encode()).hexdigest()[:24]
        doc_id, number = base, 1
        while self.manifest.has_doc(self.kb, doc_id):
            number += 1
            doc_id = f"{base}-{number}"
        return doc_id


def _unread(documents: Sequence[Document]) -> str | None:
    """What to tell of pages that could not be read."""
    bad = [each for each in documents if "error" in each.metadata]
    if not bad:
        return None
    numbers = ", ".join(str(each.metadata["page"]) for each in bad[:10]) + (", ..." if len(bad) > 10 else "")
    return f"not all pages can be read ({numbers}: {bad[0].metadata['error']}); the rest is indexed"
