"""What ingesting tells: progress while it runs, a report at the end, the state of each document."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Event:
    """One step of progress. Bytes are those of the files that need work; enough for a bar with the time left."""

    kind: Literal["wait", "scan", "file", "chunks", "keywords", "done"]
    source: str = ""
    done_files: int = 0
    total_files: int = 0
    done_bytes: int = 0
    total_bytes: int = 0


Progress = Callable[[Event], None]


@dataclass(frozen=True)
class Failure:
    """A file that could not be ingested, and why."""

    source: str
    error: str


@dataclass
class Report:
    """What one sync did; `chunks` is how many the knowledge base holds after it."""

    kb: str
    added: int = 0
    changed: int = 0
    renamed: int = 0
    deleted: int = 0
    unchanged: int = 0
    failed: list[Failure] = field(default_factory=list)
    chunks: int = 0
    seconds: float = 0.0
    keyworded: int = 0  # documents of earlier runs that the keyword index lacked

    def to_json(self) -> dict[str, Any]:
        """The object that `paddock ingest --json` prints."""
        return {
            "kb": self.kb,
            "added": self.added,
            "changed": self.changed,
            "renamed": self.renamed,
            "deleted": self.deleted,
            "unchanged": self.unchanged,
            "failed": [{"source": each.source, "error": each.error} for each in self.failed],
            "chunks": self.chunks,
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True)
class DocumentStatus:
    """A document in the inbox. "new" and "changed" ones wait for the next sync."""

    source: str
    status: Literal["indexed", "failed", "new", "changed"]
    error: str | None
    chunks: int
    pages: int | None
    size: int
    ingested_at: float | None  # seconds since 1970
