"""An index folder that several processes use: notices what others wrote and opens it anew."""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vectorstore.errors import StoreError
from vectorstore.marker import DATABASE, collection_name, remove_marker, sweep_markers, write_marker

STAMP = "changed"  # the file with the stamp of the last write


def unusable(folder: Path, cause: object) -> StoreError:
    """The error for an index that is damaged, or that another process writes to for too long."""
    said = " ".join(str(cause).split())[:160]
    if "database is locked" in said or "database is busy" in said:
        return StoreError(f"the index in {folder} is in use by another process ({said}); try again in a moment")
    return StoreError(
        f"the index in {folder} cannot be used ({said}); move this folder away and run `paddock ingest` again"
    )


def check_database(folder: Path) -> None:
    """Raises StoreError when the index's database is none any more. Costs a millisecond and no import of chromadb.

    Only where this process does not have the index open: it would have noticed, and closing a second connection would
    drop the locks of the first.
    """
    with _clients_lock:
        if folder.resolve() in _clients or not (folder / DATABASE).is_file():
            return
        try:
            uri = f"{(folder / DATABASE).absolute().as_uri()}?mode=ro"
            with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=5)) as database:
                database.execute("SELECT count(*) FROM collections").fetchone()
        except sqlite3.OperationalError:
            return  # locked by another process, for one: whoever opens it next will tell
        except sqlite3.DatabaseError as error:
            raise unusable(folder, error) from error


class IndexClient:
    """An open index folder, shared by all threads of the process.

    Chroma keeps each collection's vectors in memory and does not see what another process writes: searches would miss
    it, and a write on top of such a stale state would lose it for good. So every write leaves a new random stamp in a
    small file, every access reads it (microseconds), and opens the index anew when it is not the one known. SQLite's
    own change counter does not serve: opening the index already changes it. Writers of different processes must
    exclude each other; ingest.sync does so with a lock file.
    """

    def __init__(self, folder: Path, connect: Callable[[Path], Any]) -> None:
        """`connect` opens the folder with a state of its own; the folder exists then."""
        self.folder = folder
        self._connect = connect
        self._lock = threading.RLock()
        self._chroma: Any = None
        self._stamp: tuple[int, bytes] | None = None
        self.generation = 0

    def current(self) -> tuple[Any, int]:
        """The client and its generation, which grows with each re-opening. Raises StoreError."""
        with self._lock:
            stamp = self._read_stamp()
            if self._chroma is None or stamp != self._stamp:
                self._chroma = self._open()
                # The stamp from before opening, so that what is written meanwhile counts as a change.
                self._stamp = (self._inode(), stamp[1])
                self.generation += 1
            return self._chroma, self.generation

    def collection_of(self, kb: str) -> str:
        """The name of a knowledge base's collection."""
        return collection_name(kb)

    def note(self, kb: str, collection_id: str) -> None:
        """Remembers a collection's id where it can be read without chromadb."""
        write_marker(self.folder, kb, collection_id)

    def forget(self, kb: str) -> None:
        """Forgets a knowledge base's collection."""
        remove_marker(self.folder, kb)

    def unusable(self, cause: object) -> StoreError:
        """The error for what Chroma cannot do with the index."""
        return unusable(self.folder, cause)

    def reopen(self) -> None:
        """The next access opens the index anew."""
        with self._lock:
            self._stamp = None

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Holds off other threads' accesses; what is written inside does not count as a change from outside."""
        with self._lock:
            self.current()
            self._leave_stamp()  # also before: a killed writer must not leave a change unannounced
            try:
                yield
            finally:
                self._leave_stamp()

    def _open(self) -> Any:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"the index folder {self.folder} cannot be made: {error.strerror}") from error
        if not os.access(self.folder, os.W_OK | os.X_OK):
            raise StoreError(f"the index folder {self.folder} is not writable; change its permissions or its place")
        if not (self.folder / DATABASE).exists():
            sweep_markers(self.folder)
        try:
            return self._connect(self.folder)
        except BaseException as error:  # Chroma's Rust side also raises PanicException, which is no Exception
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            raise unusable(self.folder, _first_cause(error)) from error

    def _inode(self) -> int:
        try:
            return (self.folder / DATABASE).stat().st_ino
        except OSError:
            return 0

    def _read_stamp(self) -> tuple[int, bytes]:
        try:
            stamp = (self.folder / STAMP).read_bytes()
        except OSError:
            stamp = b""
        return self._inode(), stamp

    def _leave_stamp(self) -> None:
        stamp = secrets.token_hex(8).encode()
        part = self.folder / f"{STAMP}.{stamp.decode()}"
        try:
            part.write_bytes(stamp)
            part.replace(self.folder / STAMP)
        except OSError as error:
            raise StoreError(f"the index folder {self.folder} cannot be written: {error.strerror}") from error
        self._stamp = (self._inode(), stamp)


def _first_cause(error: BaseException) -> BaseException:
    """Chroma masks a failed start behind an AttributeError; the first exception says more."""
    while error.__context__ is not None:
        error = error.__context__
    return error


_clients: weakref.WeakValueDictionary[Path, IndexClient] = weakref.WeakValueDictionary()
_clients_lock = threading.Lock()


def shared_client(folder: Path, connect: Callable[[Path], Any]) -> IndexClient:
    """The process' one client of a folder, opened if need be. Raises StoreError."""
    folder = folder.resolve()
    with _clients_lock:
        client = _clients.get(folder)
        if client is None:
            client = _clients[folder] = IndexClient(folder, connect)
    client.current()
    return client
