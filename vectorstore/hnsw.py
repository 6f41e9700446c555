"""The parameters of the vector index, a hierarchical navigable small world graph (Malkov and Yashunin, 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Hnsw:
    """What Chroma builds and searches its graph with. The distance is always the cosine's."""

    neighbors: int = 24  # M: edges of a node; more find more, in more memory
    ef_construction: int = 200  # candidates looked at when a node is added
    ef_search: int = 200  # candidates looked at in a search
    sync: int = 1000  # chunks after which the graph is brought to the disk; those since are read again on opening

    def __str__(self) -> str:
        return f"ef_search {self.ef_search}, sync {self.sync}"

    def made_with(self) -> dict[str, Any]:
        """For a collection that is made; the first two cannot be changed afterwards."""
        fixed = {"space": "cosine", "max_neighbors": self.neighbors, "ef_construction": self.ef_construction}
        return {**fixed, **self.changeable()}

    def changeable(self) -> dict[str, Any]:
        """What a collection takes over at any time."""
        return {"ef_search": self.ef_search, "sync_threshold": self.sync}


DEFAULT_HNSW = Hnsw()
