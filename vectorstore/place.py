"""Where the vectors are kept: a folder, or a Chroma server. Asking costs no import of chromadb for a folder."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from vectorstore.check import is_sound
from vectorstore.client import IndexClient, check_database
from vectorstore.costs import Costs, costs_of
from vectorstore.errors import StoreError
from vectorstore.keyword import size_of
from vectorstore.marker import DATABASE, read_marker
from vectorstore.server import ServerClient

if TYPE_CHECKING:
    from vectorstore.store import Client

OWNER = "server-owner"  # the file with the installation's id, beside the manifest


def place_of(url: str, index: Path) -> Place:
    """Where an installation keeps its vectors: on the server at `url`, or in its folder of indexes without one."""
    return Server(url, index) if url else Folder(index / "chroma")


class Place(Protocol):
    """What ingest asks about the vectors of knowledge bases beside reading and writing them."""

    def client(self) -> Client:
        """Opens the place. Raises StoreError."""

    def collection_id(self, kb: str) -> str | None:
        """The id of the knowledge base's collection; None if there is none. Raises StoreError."""

    def check(self) -> None:
        """Raises StoreError when the place is damaged or cannot be reached."""

    def is_sound(self, kb: str) -> bool:
        """Whether the collection survived the death of its writer."""

    def drop(self, kb: str) -> None:
        """Removes the knowledge base's collection, if there is one. Raises StoreError."""

    def costs(self, keyword_folder: Path, kb: str, chunks: int, all_chunks: int) -> Costs:
        """What the knowledge base costs, which has so many of all knowledge bases' chunks."""


class Folder:
    """Chroma within this process, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def client(self) -> IndexClient:
        from vectorstore.store import open_client

        return open_client(self.folder)

    def collection_id(self, kb: str) -> str | None:
        return read_marker(self.folder, kb)

    def check(self) -> None:
        check_database(self.folder)

    def is_sound(self, kb: str) -> bool:
        return is_sound(self.folder, kb)

    def drop(self, kb: str) -> None:
        if (self.folder / DATABASE).exists():
            from vectorstore.store import drop_kb

            drop_kb(self.client(), kb)

    def costs(self, keyword_folder: Path, kb: str, chunks: int, all_chunks: int) -> Costs:
        return costs_of(self.folder, keyword_folder, kb, chunks, all_chunks)


class Server:
    """A Chroma server. It is trusted with its own files."""

    def __init__(self, url: str, index: Path) -> None:
        """`index` is the folder of the manifest; the installation's id lies there."""
        self.url, self.index = url, index
        self._client: ServerClient | None = None

    def _owner(self) -> str:
        path = self.index / OWNER
        try:
            if not path.exists():
                self.index.mkdir(parents=True, exist_ok=True)
                with path.open("x", encoding="ascii") as file:
                    file.write(secrets.token_hex(8) + "\n")
            return path.read_text(encoding="ascii").strip()
        except FileExistsError:  # another process was faster
            return path.read_text(encoding="ascii").strip()
        except OSError as error:
            raise StoreError(f"{path} cannot be read or written: {error.strerror}") from error

    def client(self) -> ServerClient:
        if self._client is None:
            from vectorstore.store import open_server

            self._client = open_server(self.url, self._owner())
        return self._client

    def collection_id(self, kb: str) -> str | None:
        from vectorstore.store import find_collection

        return find_collection(self.client(), kb)

    def check(self) -> None:
        self.client().current()

    def is_sound(self, kb: str) -> bool:
        return True

    def drop(self, kb: str) -> None:
        from vectorstore.store import drop_kb

        drop_kb(self.client(), kb)

    def costs(self, keyword_folder: Path, kb: str, chunks: int, all_chunks: int) -> Costs:
        return Costs(chunks, None, None, size_of(keyword_folder), None)
