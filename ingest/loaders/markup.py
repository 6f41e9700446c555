"""Markdown written by the loaders: headings, list items and pipe tables."""

from __future__ import annotations

import re
from collections.abc import Sequence

SPACES = re.compile(r"\s+")
BLANK_LINES = re.compile(r"\n[ \t]*\n\s*\n")


def one_line(text: str) -> str:
    """Runs of white space become one space."""
    return SPACES.sub(" ", text).strip()


def heading(level: int, text: str) -> str:
    """A `#` line of level 1 to 6."""
    return "#" * max(1, min(6, level)) + " " + one_line(text)


def pipe_table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose first row is the header; short rows are filled up."""
    filled = [[one_line(cell).replace("|", "\\|") for cell in row] for row in rows if any(cell.strip() for cell in row)]
    if not filled:
        return ""
    width = max(len(row) for row in filled)
    lines = ["| " + " | ".join(row + [""] * (width - len(row))) + " |" for row in filled]
    return "\n".join([lines[0], "|" + " --- |" * width, *lines[1:]])


def join(blocks: Sequence[str]) -> str:
    """Blocks with a blank line between them."""
    return BLANK_LINES.sub("\n\n", "\n\n".join(block for block in blocks if block.strip())).strip() + "\n"
