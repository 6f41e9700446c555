"""What Chroma keeps of a document, and the document again; vectors compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from langchain_core.documents import Document


def chunk_id(doc_id: str, ordinal: int) -> str:
    """The id of a document's chunk: it says whose it is, which spares asking."""
    return f"{doc_id}-{ordinal:05d}"


def doc_of(name: str) -> str:
    """The id of the document that a chunk is of."""
    return name.rpartition("-")[0] or name


def storable(metadata: dict[str, Any]) -> dict[str, Any] | None:
    """Chroma takes no empty values and no empty metadata."""
    return {key: value for key, value in metadata.items() if value is not None} or None


def document(name: str, text: str | None, metadata: Any) -> Document:
    """A document of its id, text and metadata."""
    return Document(id=name, page_content=text or "", metadata=dict(metadata or {}))


def cosines(vector: Sequence[float], others: Any) -> list[float]:
    """Cosine similarities of a vector (d,) and others (n, d); 0 for one without a length."""
    import numpy as np  # here, for a run with nothing to do has no use for it

    one, many = np.asarray(vector, np.float32), np.asarray(others, np.float32).reshape(-1, len(vector))
    norms = np.linalg.norm(many, axis=1) * np.linalg.norm(one)
    found: list[float] = np.divide(many @ one, norms, out=np.zeros(len(many), np.float32), where=norms > 0).tolist()
    return found


def batches(names: Sequence[str], size: int) -> Iterator[list[str]]:
    """The names in their order, `size` at a time."""
    yield from (list(names[start : start + size]) for start in range(0, len(names), size))
