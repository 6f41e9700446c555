"""The keyword index follows the manifest, which says what is whole.

It needs no order of writing of its own, as it can always be made again from the chunks in the store: the manifest notes
for each document whether the keyword index has it. A note "not yet" is made in the transaction that makes the document
known, and turned after the commit; one of a document that is gone stays until its terms are. What a killed run, a
knowledge base from before keyword indexes, or a folder that was moved away leave undone, the next run sees in these
notes and mends.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from langchain_core.documents import Document

from ingest.chunk import embed_text
from ingest.manifest import Manifest
from vectorstore import keyword
from vectorstore.errors import StoreError
from vectorstore.keyword import KeywordIndex

# A commit costs some 20 ms and leaves a segment; until it, a new document is found by its vectors only.
COMMIT_CHUNKS = 2000
COMMIT_SECONDS = 2.0


class KeywordFollower:
    """Writes the keyword index of one knowledge base. The writer's lock must be held; close() at the end."""

    def __init__(self, manifest: Manifest, root: Path, kb: str) -> None:
        """`root` is the folder of all keyword indexes. Nothing is opened before there is something to do."""
        self.manifest, self.kb = manifest, kb
        self.folder = keyword.folder_of(root, kb)
        self._index: KeywordIndex | None = None
        self._pending: list[str] = []  # put, not yet committed
        self._chunks, self._committed = 0, time.monotonic()

    def note(self, doc_id: str) -> None:
        """To be called in the transaction that makes a document known."""
        self._open()  # one that is damaged is dropped with its notes, so before this one
        self.manifest.put_keyword(self.kb, doc_id, done=False)

    def add(self, doc_id: str, chunks: Sequence[Document]) -> None:
        """Adds a document that was noted. Commits now and then."""
        self._open().put(doc_id, [(str(each.id), embed_text(each)) for each in chunks])
        self._pending.append(doc_id)
        self._chunks += len(chunks)
        if self._chunks >= COMMIT_CHUNKS or time.monotonic() - self._committed >= COMMIT_SECONDS:
            self._commit()

    def follow(self, chunks_of: Callable[[str], Sequence[Document]]) -> int:
        """Does what is left to do and closes; `chunks_of` reads a document's chunks. Returns how many were missing."""
        self._check()
        self._commit()
        wanted, noted = self.manifest.doc_ids(self.kb), self.manifest.keywords(self.kb)
        missing = sorted(wanted - {doc_id for doc_id, done in noted.items() if done})
        for doc_id in missing:
            if doc_id not in noted:
                self.note(doc_id)
            self.add(doc_id, chunks_of(doc_id))
        gone = sorted(noted.keys() - wanted)
        for doc_id in gone:
            self._open().delete(doc_id)
        self._commit(force=bool(gone))
        self.manifest.drop_keywords(self.kb, gone)
        self.close()
        return len(missing)

    def close(self) -> None:
        """Leaves what is not committed to the next run."""
        if self._index is not None:
            self._index.close()
            self._index = None

    def _check(self) -> None:
        """Starts anew if the index is not the one that the manifest's notes are about, or has lost something."""
        known = self.manifest.keyword_index(self.kb)
        if self._index is not None or known is None:
            return
        if known != keyword.read_id(self.folder) or not keyword.is_whole(self.folder):
            self._forget()

    def _forget(self) -> None:
        self.manifest.forget_keywords(self.kb)
        keyword.drop(self.folder)

    def _open(self) -> KeywordIndex:
        if self._index is None:
            self._check()
            if self.manifest.keyword_index(self.kb) is not None:
                try:
                    self._index = KeywordIndex(self.folder)
                except StoreError:  # damaged: it is made again from the chunks
                    self._forget()
            if self._index is None:
                self._index = KeywordIndex(self.folder, create=True)
                self.manifest.put_keyword_index(self.kb, self._index.id)
        return self._index

    def _commit(self, force: bool = False) -> None:
        if self._index is not None and (self._pending or force):
            self._index.commit()
            with self.manifest.transaction():
                for doc_id in self._pending:
                    self.manifest.put_keyword(self.kb, doc_id, done=True)
        self._pending, self._chunks, self._committed = [], 0, time.monotonic()
