"""Folder and manifest compared: what is new, changed, renamed or gone is brought into the index. The only writer.

Safe against being killed at any moment. A document's id is entered as garbage before its first chunk is written and
taken out in the same transaction that makes the document known, so that at every moment the store's chunks are those of
known documents and of garbage, and the next run begins by removing garbage. Ids follow from content and settings, so
that the run after a kill makes the very chunks that an uninterrupted one would have made.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ingest.errors import IngestError
from ingest.imports import Importer
from ingest.inbox import (
    DEFAULT_KB,
    Inbox,
    check_file_name,
    check_kb_name,
    ensure_folder,
    place_new,
    same_content,
    write_part,
)
from ingest.manifest import Manifest
from ingest.report import DocumentStatus, Event, Failure, Progress, Report
from ingest.run import Run
from vectorstore.hnsw import DEFAULT_HNSW, Hnsw
from vectorstore.place import Place, place_of

if TYPE_CHECKING:
    from vectorstore.store import ChromaStore

__all__ = ["DocumentStatus", "EmbedderLike", "Event", "Failure", "Ingestor", "Report"]


class EmbedderLike(Protocol):
    """What is needed of an embedder; ingest.embed.Embedder is one."""

    @property
    def identity(self) -> str: ...
    @property
    def max_tokens(self) -> int: ...
    def count_tokens(self, text: str) -> int: ...
    def count_tokens_batch(self, texts: Sequence[str]) -> list[int]: ...
    def embed_documents(self, texts: list[str]) -> list[list[float]]: ...


class Ingestor:
    """Keeps the index in line with the inbox. Usable from several threads and processes: writers wait in turn."""

    def __init__(
        self,
        inbox: Path,
        index: Path,
        embedder: EmbedderLike,
        open_store: Callable[[str, bool], ChromaStore],
        chunk_tokens: int = 200,
        chunk_overlap: int = 32,
        max_file_mb: int = 200,
        vectors: Place | None = None,
        hnsw: Hnsw = DEFAULT_HNSW,
    ) -> None:
        """`open_store(kb, create)` opens a collection of `vectors` (default: the folder `index`/chroma).

        It is called only when needed; `hnsw` is what it makes collections with.
        """
        self.inbox = Inbox(inbox)
        self.index = index
        self.embedder = embedder
        self.open_store = open_store
        self.chunk_tokens = chunk_tokens
        self.chunk_overlap = chunk_overlap
        self.max_file_mb = max_file_mb
        self.vectors = vectors or place_of("", index)
        self.hnsw = hnsw
        self._opening = threading.Lock()
        self.listener: Callable[[str, Event], None] | None = None  # hears of every sync here, whoever asked for it

    @property
    def keyword(self) -> Path:
        """The folder of the keyword indexes."""
        return self.index / "keyword"

    @cached_property
    def _open_manifest(self) -> Manifest:
        ensure_folder(self.index)
        return Manifest(self.index / "manifest.sqlite")

    @property
    def manifest(self) -> Manifest:
        """What is indexed. Raises IngestError if it cannot be opened."""
        with self._opening:
            manifest = self._open_manifest
            if not manifest.path.exists():  # the index folder was moved away while we run
                del self._open_manifest
                manifest = self._open_manifest
            return manifest

    @contextmanager
    def locked(self, progress: Progress | None = None) -> Iterator[None]:
        """Holds the writer's lock; announces with progress when another writer has it."""
        from filelock import FileLock, Timeout

        ensure_folder(self.index)
        lock = FileLock(str(self.index / ".lock"), thread_local=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if progress:
                progress(Event("wait"))
            lock.acquire(poll_interval=0.1)
        except OSError as error:
            raise IngestError(f"folder {self.index} is not writable ({error.strerror})") from error
        try:
            yield
        finally:
            lock.release()

    # -- what there is -------------------------------------------------------------------------------------------

    def kbs(self) -> list[str]:
        """Knowledge bases: the inbox's folders, those still indexed, and always `default`."""
        return sorted({*self.inbox.kbs(), *self.manifest.kbs()})

    def folder(self, kb: str) -> Path:
        """The folder that sources of this knowledge base are relative to."""
        return self.inbox.folder(kb)

    def knows(self, kb: str) -> bool:
        """Whether there is such a knowledge base; reads no large folder for one that is indexed."""
        return kb == DEFAULT_KB or self.manifest.kb(kb) is not None or kb in self.kbs()

    def _check_known(self, kb: str) -> None:
        if not self.knows(kb):
            known = self.kbs()
            raise IngestError(f"there is no knowledge base '{kb[:80]}'; there are: {', '.join(known)}")

    def documents(self, kb: str) -> list[DocumentStatus]:
        """The documents that lie in a knowledge base's folder, by source."""
        self._check_known(kb)
        rows = self.manifest.files(kb)
        found: list[DocumentStatus] = []
        for source, file in sorted(self.inbox.scan(kb).files.items()):
            row = rows.get(source)
            if row is None:
                found.append(DocumentStatus(source, "new", None, 0, None, file.size, None))
                continue
            same = (row.size, row.mtime_ns) == (file.size, file.mtime_ns)
            status = row.status if same else "changed"
            found.append(DocumentStatus(source, status, row.error, row.chunks, row.pages, file.size, row.ingested_at))
        return found

    # -- bringing the index in line --------------------------------------------------------------------------------

    def sync(
        self,
        kb: str,
        only: Sequence[Path] | None = None,
        progress: Progress | None = None,
        rebuild: bool = False,
    ) -> Report:
        """Brings the index of one knowledge base in line with its files, `only` those under the given paths if any.

        `rebuild` drops the collection first. Unreadable files are reported and do not stop the run. Raises IngestError
        or StoreError for what concerns the whole index.
        """
        started = time.perf_counter()
        self._check_known(kb)

        def tell(event: Event) -> None:
            if progress is not None:
                progress(event)
            if self.listener is not None:
                self.listener(kb, event)

        try:
            with self.locked(tell):
                report = Run(self, kb, only, tell, rebuild).execute()
        except BaseException:
            tell(Event("done"))
            raise
        report.seconds = time.perf_counter() - started
        return report

    def import_paths(self, paths: Sequence[Path], kb: str | None = None) -> tuple[set[str], list[Failure]]:
        """Copies files and folders from outside into the inbox; see Importer. Returns the knowledge bases touched."""
        if kb is not None:
            check_kb_name(kb)
        with self.locked():
            return Importer(self.inbox, self.manifest, self.max_file_mb).run(paths, kb)

    def save_upload(self, kb: str, name: str, data: bytes) -> str:
        """Puts an uploaded file into the inbox and returns its source; sync() indexes it.

        Raises IngestError for unsafe names, other types, too large files, and if another file has that name.
        """
        check_kb_name(kb)
        check_file_name(name)
        if len(data) > self.max_file_mb << 20:
            raise IngestError(f"{name!r} is larger than {self.max_file_mb} MB (setting max_file_mb)")
        folder = self.folder(kb)
        ensure_folder(folder)
        if not folder.resolve().is_relative_to(self.inbox.root.resolve()):
            raise IngestError(f"the folder of knowledge base '{kb}' is a link out of the inbox; nothing was saved")
        target = folder / name
        try:
            if not place_new(write_part(target, iter([data])), target) and not same_content(target, data):
                raise IngestError(f"knowledge base '{kb}' already has another {name!r}; delete it or rename yours")
        except OSError as error:
            raise IngestError(f"{name!r} cannot be saved: {error.strerror}") from error
        return name

    def create_kb(self, kb: str) -> None:
        """Makes an empty knowledge base, a folder in the inbox. Raises IngestError for a name that cannot be one."""
        ensure_folder(self.folder(check_kb_name(kb)))

    def delete_document(self, kb: str, source: str) -> None:
        """Removes a document's file and its chunks. Raises IngestError if there is none."""
        self._check_known(kb)
        path = self.inbox.path_of(kb, source)
        known = source in self.inbox.scan(kb).files
        if not known and source not in self.manifest.files(kb):
            raise IngestError(f"knowledge base '{kb}' has no document {source[:200]!r}")
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise IngestError(f"{source!r} cannot be deleted: {error.strerror}") from error
        self.sync(kb, only=[path])

    def delete_kb(self, kb: str) -> None:
        """Removes a knowledge base: its documents, then its index. Files that are no documents stay."""
        self._check_known(kb)
        with self.locked():
            try:
                for file in self.inbox.scan(kb).files.values():
                    file.path.unlink(missing_ok=True)
                self._remove_empty(self.inbox.root / kb)
            except OSError as error:
                raise IngestError(f"knowledge base '{kb}' cannot be deleted: {error.strerror}") from error
            self.drop_collection(kb)
            self.manifest.forget(kb, imports=True)

    @staticmethod
    def _remove_empty(folder: Path) -> None:
        if folder.is_symlink() or not folder.is_dir():
            return
        for path in sorted(folder.rglob("*"), reverse=True):
            if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
                path.rmdir()
        if not any(folder.iterdir()):
            folder.rmdir()

    def drop_collection(self, kb: str) -> None:
        """Removes the knowledge base's collection and keyword index, if any; the writer's lock must be held."""
        from vectorstore import keyword

        keyword.drop(keyword.folder_of(self.keyword, kb))
        self.vectors.drop(kb)
