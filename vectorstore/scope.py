"""Searching among some of the documents only, exactly.

Where a filter lets many documents through, the nearest chunks of all are taken and those of other documents passed
over, further and further down. Where it lets few through, that would go far, and a graph of neighbours is no help
among few: their vectors are compared one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from vectorstore.rows import batches

if TYPE_CHECKING:
    from vectorstore.store import ChromaStore

FEW = 500  # chunks that are always compared one by one
RARE = 0.05  # share of all chunks below which passing over the others goes too far
COMPARED = 5_000  # chunks that are compared one by one at most; 0.1 ms each
DEEPEST = 10_000  # chunks that are taken at most to find enough that match
GROUP = 5_000  # documents in one query; SQLite takes 32,766 parameters


@dataclass(frozen=True)
class Scope:
    """The documents that a filter lets through."""

    chunks: int  # that they have
    share: float  # of all chunks, above 0
    list_ids: Callable[[], Iterable[str]]

    @cached_property
    def doc_ids(self) -> list[str]:
        """Their ids; looked up at the first use, as there may be many."""
        return sorted(self.list_ids())

    @property
    def narrow(self) -> bool:
        """Whether looking among them is quicker than passing over the others."""
        return self.chunks <= FEW or self.share < RARE

    def asked(self, n: int) -> int:
        """How many of all chunks are likely to hold n of theirs."""
        return min(DEEPEST, int(1.25 * n / self.share) + 1)

    def nearest(self, store: ChromaStore, vector: Sequence[float], n: int) -> list[tuple[str, float]]:
        """The n chunks of theirs that are nearest to a vector (d,), with their cosine similarities, best first."""
        scores: dict[str, float] = {}
        for part in batches(self.doc_ids, GROUP):
            if self.chunks <= COMPARED:
                scores.update(store.similarities_of(vector, part))
            else:
                scores.update(store.nearest(vector, n, {"doc_id": {"$in": part}}))
        return sorted(scores.items(), key=lambda pair: -pair[1])[:n]
