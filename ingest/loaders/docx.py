"""Word (.docx) by python-docx: paragraphs and tables in the order of the page."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langchain_core.documents import Document

from ingest.errors import IngestError
from ingest.loaders.decode import tidy
from ingest.loaders.markup import heading, join, one_line, pipe_table

if TYPE_CHECKING:
    from docx.document import Document as WordDocument

MAX_UNPACKED = 512 << 20  # bytes
MAX_ENTRIES = 20_000
MAX_RATIO = 200  # unpacked to packed; text reaches 50, a bomb 1,000
RATIO_COUNTS_FROM = 32 << 20  # bytes; small files may well be all zeros
OLE = b"\xd0\xcf\x11\xe0"
STYLE = re.compile(r"heading\s*([1-9])$", re.IGNORECASE)
W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
MC_FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
BREAKS = {f"{W}tab": "\t", f"{W}br": "\n", f"{W}cr": "\n", f"{W}noBreakHyphen": "-"}
SKIPPED = {f"{W}del", f"{W}moveFrom", f"{W}rPr", f"{W}pPr", MC_FALLBACK}


def load_docx(path: Path) -> list[Document]:
    """One document; heading styles become `#` lines, tables pipe tables. Deleted (tracked) text is left out."""
    _check_archive(path)
    import docx

    try:
        word = docx.Document(str(path))
        blocks = [text for text in _blocks(word) if text.strip()]
    except (RecursionError, MemoryError):
        raise
    except Exception as error:  # python-docx fails in many ways on what is not Word's
        said = (" ".join(str(error).split()) or type(error).__name__)[:120]
        raise IngestError(f"is not a Word document, or a damaged one ({said})") from error
    if not blocks:
        raise IngestError("has no text to read")
    return [Document(tidy(join(blocks)))]


def _check_archive(path: Path) -> None:
    """Refuses what is no zip, and zip bombs, before anything is unpacked."""
    with path.open("rb") as file:
        start = file.read(4)
    if start == OLE:
        raise IngestError("is encrypted, or an old .doc under a new name; save it as .docx without a password")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError) as error:
        raise IngestError("is not a Word document, or a damaged one (it is no zip archive)") from error
    unpacked = sum(entry.file_size for entry in entries)
    packed = max(1, sum(entry.compress_size for entry in entries))
    too_dense = unpacked > RATIO_COUNTS_FROM and unpacked / packed > MAX_RATIO
    if unpacked > MAX_UNPACKED or len(entries) > MAX_ENTRIES or too_dense:
        raise IngestError(f"unpacks to {unpacked >> 20} MiB in {len(entries)} parts; refused as a zip bomb")
    if not any(entry.filename == "[Content_Types].xml" for entry in entries):
        raise IngestError("is a zip archive, but not a Word document")


def _blocks(word: WordDocument) -> Iterator[str]:
    levels = _heading_levels(word)
    items: list[str] = []
    for element in _body(word.element.body):
        if element.tag == f"{W}tbl":
            yield from _take(items)
            yield _table(element)
            continue
        text = _text(element)
        if not text.strip():
            continue
        style = element.find(f"{W}pPr/{W}pStyle")
        level = levels.get(style.get(f"{W}val")) if style is not None else None
        outline = element.find(f"{W}pPr/{W}outlineLvl")
        if level is None and outline is not None and outline.get(f"{W}val", "9") < "9":
            level = int(outline.get(f"{W}val")) + 1
        if level is not None:
            yield from _take(items)
            yield heading(level, text)
        elif element.find(f"{W}pPr/{W}numPr") is not None or (style is not None and "List" in style.get(f"{W}val", "")):
            items.append("- " + one_line(text))
        else:
            yield from _take(items)
            yield text.strip()
    yield from _take(items)


def _take(items: list[str]) -> Iterator[str]:
    """The list gathered so far, as one block."""
    if items:
        yield "\n".join(items)
        items.clear()


def _heading_levels(word: WordDocument) -> dict[str, int]:
    """Style id -> heading level, by the styles' names; the title counts as level 1."""
    levels: dict[str, int] = {}
    for style in word.styles.element.iter(f"{W}style"):
        name = style.find(f"{W}name")
        label = name.get(f"{W}val", "") if name is not None else ""
        if match := STYLE.match(label):
            levels[style.get(f"{W}styleId")] = int(match[1])
        elif label.lower() == "title":
            levels[style.get(f"{W}styleId")] = 1
    return levels


def _body(element: Any) -> Iterator[Any]:
    """Paragraphs and tables, also those inside content controls, which python-docx passes over."""
    for child in element:
        if child.tag in (f"{W}p", f"{W}tbl"):
            yield child
        elif child.tag in (f"{W}sdt", f"{W}sdtContent", f"{W}ins", f"{W}customXml"):
            yield from _body(child)


def _text(element: Any) -> str:
    parts: list[str] = []

    def walk(node: Any) -> None:
        for child in node:
            if child.tag == f"{W}t":
                parts.append(child.text or "")
            elif child.tag in BREAKS:
                parts.append(BREAKS[child.tag])
            elif child.tag not in SKIPPED:
                if child.tag == f"{W}p":  # a paragraph of a text box or a cell
                    parts.append("\n")
                walk(child)

    walk(element)
    return "".join(parts)


def _table(table: Any) -> str:
    rows: list[list[str]] = []
    for row in table.iter(f"{W}tr"):
        if next(row.iterancestors(f"{W}tbl")) is not table:
            continue  # a row of a table inside a cell, whose text stands in that cell
        cells: list[str] = []
        for cell in row.iter(f"{W}tc"):
            if next(cell.iterancestors(f"{W}tr")) is not row:
                continue
            span = cell.find(f"{W}tcPr/{W}gridSpan")
            width = int(span.get(f"{W}val", "1")) if span is not None else 1
            merged = cell.find(f"{W}tcPr/{W}vMerge")
            above = merged is not None and merged.get(f"{W}val") != "restart"
            column = len(cells)
            text = rows[-1][column] if above and rows and column < len(rows[-1]) else _text(cell)
            cells.extend([text] * max(1, min(width, 50)))
        rows.append(cells)
    return pipe_table(rows)
