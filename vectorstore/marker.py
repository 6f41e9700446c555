"""Small files beside the index that say which collections it holds, readable without chromadb.

A run with nothing to do must not pay for importing chromadb, yet must notice that the index was moved away. Reading
chroma.sqlite3 with Python's own sqlite3 is no way out: closing that second connection would drop the locks that Chroma
holds on the file in the same process.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

DATABASE = "chroma.sqlite3"


def collection_name(kb: str) -> str:
    """The collection's name: Chroma takes only some ASCII characters, a knowledge base may be named in any script."""
    return "kb-" + hashlib.sha256(kb.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _path(folder: Path, kb: str) -> Path:
    return folder / f"{collection_name(kb)}.id"


def read_marker(folder: Path, kb: str) -> str | None:
    """The id of the knowledge base's collection in the index `folder`; None if there is none."""
    if not (folder / DATABASE).is_file():
        return None
    try:
        return _path(folder, kb).read_text(encoding="ascii").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def write_marker(folder: Path, kb: str, collection_id: str) -> None:
    """Remembers the collection's id."""
    if read_marker(folder, kb) != collection_id:
        _path(folder, kb).write_text(collection_id + "\n", encoding="ascii")


def remove_marker(folder: Path, kb: str) -> None:
    """Forgets the knowledge base's collection."""
    _path(folder, kb).unlink(missing_ok=True)


def sweep_markers(folder: Path) -> None:
    """Forgets all collections: the database they were in is gone."""
    for path in folder.glob("kb-*.id"):
        path.unlink(missing_ok=True)
