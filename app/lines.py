"""Lines of the text files that people make by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Non-empty lines with their numbers from 1. Bytes that are not UTF-8 spoil their own line only."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line.strip()


def is_valid(text: str) -> bool:
    """Whether a line was UTF-8: what was not is in it as lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
