"""Plain text and Markdown: already the form that the splitter reads."""

from __future__ import annotations

import re
from pathlib import Path

from langchain_core.documents import Document

from ingest.loaders.decode import decode

FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
UNDERLINE = re.compile(r" {0,3}(=+|-+)[ \t]*$")
PLAIN_LINE = re.compile(r" {0,3}[^\s#>|*+`~-]")


def load_text(path: Path) -> list[Document]:
    """One document; the file's text as it stands."""
    return [Document(decode(path.read_bytes()))]


def load_markdown(path: Path) -> list[Document]:
    """One document; underlined headings become `#` lines."""
    return [Document(_hash_headings(decode(path.read_bytes())))]


def _hash_headings(text: str) -> str:
    """Rewrites `Title` over `=====` as `# Title`, outside code fences."""
    lines: list[str] = []
    fence = ""
    for line in text.split("\n"):
        mark = FENCE.match(line)
        if fence:
            fence = "" if mark and mark[1].startswith(fence) else fence
        elif mark:
            fence = mark[1]
        elif (under := UNDERLINE.match(line)) and _is_title(lines):
            lines[-1] = ("# " if under[1][0] == "=" else "## ") + lines[-1].strip()
            continue
        lines.append(line)
    return "\n".join(lines)


def _is_title(lines: list[str]) -> bool:
    """Whether the last line is a paragraph by itself, which a line under it makes a heading."""
    return bool(lines) and bool(PLAIN_LINE.match(lines[-1])) and (len(lines) < 2 or not lines[-2].strip())
