"""An index on a Chroma server, reached by its address."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from vectorstore.errors import StoreError

PORT = 8000  # Chroma's own


def parts_of(url: str) -> tuple[str, int, bool]:
    """Host, port and whether TLS is used. Raises ValueError for what is no address of a server."""
    wrong = ValueError("an address is written as http://host:8000; without one, the index is in the state folder")
    try:
        found = urlsplit(url)
        port = found.port
    except ValueError as error:
        raise wrong from error
    extra = found.path.strip("/") or found.query or found.fragment or found.username
    if found.scheme not in ("http", "https") or not found.hostname or extra:
        raise wrong
    secure = found.scheme == "https"
    return found.hostname, port or (443 if secure else PORT), secure


class ServerClient:
    """What IndexClient is for a folder. A server sees every write at once, so there is nothing to be opened anew.

    Several installations may share a server: names of collections carry the installation's id.
    """

    def __init__(self, url: str, owner: str, connect: Callable[[str, int, bool], Any]) -> None:
        """`owner` is the installation's id; `connect(host, port, secure)` reaches the server, or raises."""
        self.url, self.owner = url, owner
        self._connect = connect
        self._lock = threading.Lock()
        self._chroma: Any = None
        self.generation = 0

    def current(self) -> tuple[Any, int]:
        """The client and its generation, which grows with each new connection. Raises StoreError."""
        with self._lock:
            if self._chroma is None:
                try:
                    self._chroma = self._connect(*parts_of(self.url))
                except Exception as error:
                    raise self.unusable(error) from error
                self.generation += 1
            return self._chroma, self.generation

    def reopen(self) -> None:
        """The next access looks the collection up again: it may have been dropped and made anew."""
        with self._lock:
            self._chroma = None

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Nothing is to be done around a write."""
        yield

    def collection_of(self, kb: str) -> str:
        """The name of a knowledge base's collection."""
        name = f"{self.owner}/{kb}".encode("utf-8", "surrogatepass")
        return "kb-" + hashlib.sha256(name).hexdigest()[:32]

    def note(self, kb: str, collection_id: str) -> None:
        """Nothing: the server is asked."""

    def forget(self, kb: str) -> None:
        """Nothing: the server is asked."""

    def unusable(self, cause: object) -> StoreError:
        """The error for a server that does not answer, or not as it should."""
        said = " ".join(str(cause).split())[:120] or type(cause).__name__
        return StoreError(
            f"the Chroma server {self.url} cannot be used ({said}); start it, or mend the setting `store`"
        )
