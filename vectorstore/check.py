"""Whether an index survived the death of its writer. Looked at in a process of its own: a torn one may crash it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vectorstore.client import IndexClient

SECONDS = 600


def is_sound(folder: Path, kb: str) -> bool:
    """Whether every chunk of the knowledge base has its vector, and a search finds what it should."""
    if not any(folder.glob("*/index_metadata.pickle")):
        return True  # no vectors but those in the database yet, which SQLite keeps whole
    command = [sys.executable, "-m", "vectorstore.check", str(folder), kb]
    root = Path(__file__).resolve().parent.parent
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def has_all_vectors(client: IndexClient, kb: str) -> bool:
    """Whether each chunk of the knowledge base has a vector and a search finds chunks. Raises StoreError."""
    from vectorstore.store import WRITE_BATCH, in_plain_words

    with in_plain_words(client):
        chroma, _ = client.current()
        collection = chroma.get_collection(client.collection_of(kb), embedding_function=None)
        count, start, vector = collection.count(), 0, None
        while start < count:
            page = collection.get(limit=WRITE_BATCH, offset=start, include=["embeddings"])
            if not page["ids"] or len(page["embeddings"]) != len(page["ids"]):
                return False
            start, vector = start + len(page["ids"]), page["embeddings"][0]
        k = min(count, 100)
        return vector is None or len(collection.query(query_embeddings=[vector], n_results=k)["ids"][0]) == k


def main(folder: str, kb: str) -> int:
    """0 if the collection can be read in full."""
    from vectorstore.store import open_client

    return 0 if has_all_vectors(open_client(Path(folder)), kb) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
