"""Builds the sample documents that are not plain text: the .pdf and .docx files of data/inbox.

Each source is a Markdown file in data/inbox-src whose name says what becomes of it: `handbook.pdf.md` gives
`handbook.pdf`, `terms.docx.md` gives `terms.docx`. Only what the samples need is understood: `key: value` lines
between two `---`, headings (#, ##, ###), paragraphs, `- ` lists, pipe tables, `**bold**` and `<!-- page break -->`.

The output is the same, byte for byte, on every run and machine: no clock is read, and nothing is compressed,
because what zlib makes of the same text differs between its versions.

Usage: python scripts/build_samples.py [--out DIR]
"""

from __future__ import annotations

import argparse
import io
import re
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from docx import Document as new_docx
from docx.document import Document as WordDocument
from docx.enum.style import WD_STYLE_TYPE
from docx.text.paragraph import Paragraph as DocxParagraph
from reportlab.lib import colors
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.pdfbase.pdfmetrics import stringWidth
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import BaseDocTemplate, Frame, PageBreak, PageTemplate, Paragraph, Table, TableStyle

DATA = Path(__file__).resolve().parent.parent / "data"
SOURCES = DATA / "inbox-src"
INBOX = DATA / "inbox"
PAGE_BREAK = "<!-- page break -->"
BOLD = re.compile(r"\*\*(.+?)\*\*")


@dataclass
class Block:
    """One piece of a source: kind is h1, h2, h3, text, item, table or break; only a table has rows."""

    kind: str
    text: str = ""
    rows: list[list[str]] = field(default_factory=list)


@dataclass
class Source:
    meta: dict[str, str]
    blocks: list[Block]


# Reading


def read_source(path: Path) -> Source:
    """Parses one source file; raises ValueError if its head is missing or lacks a key."""
    match = re.match(r"---\n(.*?)\n---\n(.*)", path.read_text(encoding="utf-8"), re.DOTALL)
    if match is None:
        raise ValueError(f"{path.name}: must begin with `key: value` lines between two lines of ---")
    meta = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in match[1].splitlines())}
    missing = {"title", "author", "date"} - meta.keys()
    if missing:
        raise ValueError(f"{path.name}: the head lacks {', '.join(sorted(missing))}")
    return Source(meta, list(parse_blocks(match[2])))


def parse_blocks(text: str) -> Iterator[Block]:
    """Blocks are separated by empty lines; the lines of a paragraph are joined by spaces."""
    for part in re.split(r"\n\s*\n", text.strip()):
        lines = [line.strip() for line in part.splitlines()]
        marks, _, title = lines[0].partition(" ")
        if part.strip() == PAGE_BREAK:
            yield Block("break")
        elif marks in ("#", "##", "###"):
            yield Block(f"h{len(marks)}", title)
        elif marks == "-":
            yield from (Block("item", line.removeprefix("- ")) for line in lines)
        elif lines[0].startswith("|"):
            rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
            yield Block("table", rows=[row for row in rows if set("".join(row)) != {"-"}])
        else:
            yield Block("text", " ".join(lines))


# PDF


class PlainCanvas(Canvas):
    """Draws a string without the line feed that reportlab puts after it.

    With the line feed, text extraction takes each cell of a table's row for a line of its own.
    """

    def drawString(self, x: float, y: float, text: str, *_: object, **__: object) -> None:
        line = self.beginText(x, y)
        line.textOut(text)
        self.drawText(line)


def pdf_styles() -> dict[str, ParagraphStyle]:
    text = ParagraphStyle("text", fontName="Helvetica", fontSize=10.5, leading=14.5, spaceAfter=7)
    heading = {"parent": text, "fontName": "Helvetica-Bold", "keepWithNext": True}
    return {
        "text": text,
        "item": ParagraphStyle("item", parent=text, leftIndent=14, bulletIndent=3, spaceAfter=3),
        "cell": ParagraphStyle("cell", parent=text, fontSize=9.5, leading=12, spaceAfter=0),
        "h1": ParagraphStyle("h1", fontSize=22, leading=27, spaceAfter=12, **heading),
        "h2": ParagraphStyle("h2", fontSize=15, leading=19, spaceBefore=6, spaceAfter=7, **heading),
        "h3": ParagraphStyle("h3", fontSize=11.5, leading=15, spaceBefore=5, spaceAfter=3, **heading),
    }


def pdf_table(rows: list[list[str]], style: ParagraphStyle, width: float) -> Table:
    """A table over the whole width, each column as wide as its longest cell asks for.

    Cells are drawn as plain strings, on one line: text extraction takes a row for one line only then. Raises
    ValueError if a row does not fit.
    """
    bold = f"{style.fontName}-Bold"
    columns = list(zip(*rows, strict=True))
    widths = [max(stringWidth(cell, bold, style.fontSize) for cell in column) + 12 for column in columns]
    spare = (width - sum(widths)) / len(widths)
    if spare < 0:
        raise ValueError(f"the table that begins with {rows[0]} is {-spare * len(widths):.0f} points too wide")
    look = [
        ("GRID", (0, 0), (-1, -1), 0.4, colors.grey),
        ("BACKGROUND", (0, 0), (-1, 0), colors.whitesmoke),
        ("FONT", (0, 0), (-1, 0), bold, style.fontSize, style.leading),
        ("FONT", (0, 1), (-1, -1), style.fontName, style.fontSize, style.leading),
    ]
    columns_wide = [natural + spare for natural in widths]
    return Table(rows, colWidths=columns_wide, style=TableStyle(look), repeatRows=1, spaceBefore=3, spaceAfter=9)


def pdf_markup(text: str) -> str:
    return BOLD.sub(r"<b>\1</b>", escape(text))


def build_pdf(source: Source) -> bytes:
    """A4, standard fonts (so nothing is embedded), the page's number at the foot of each page."""
    styles = pdf_styles()
    buffer = io.BytesIO()
    document = BaseDocTemplate(
        buffer, pagesize=A4, leftMargin=24 * mm, rightMargin=24 * mm, topMargin=20 * mm, bottomMargin=22 * mm,
        title=source.meta["title"], author=source.meta["author"], subject=source.meta.get("subject", ""),
        invariant=1, pageCompression=0,
    )  # fmt: skip
    story: list[Any] = []
    for block in source.blocks:
        if block.kind == "break":
            story.append(PageBreak())
        elif block.kind == "table":
            story.append(pdf_table(block.rows, styles["cell"], document.width))
        else:
            bullet = "\u2022" if block.kind == "item" else None
            story.append(Paragraph(pdf_markup(block.text), styles[block.kind], bulletText=bullet))

    def foot(canvas: Canvas, _: object) -> None:
        canvas.setFont("Helvetica", 8.5)
        canvas.drawString(24 * mm, 12 * mm, source.meta.get("foot", source.meta["title"]))
        canvas.drawRightString(A4[0] - 24 * mm, 12 * mm, f"Page {canvas.getPageNumber()}")

    frame = Frame(document.leftMargin, document.bottomMargin, document.width, document.height, 0, 0, 0, 0)
    document.addPageTemplates(PageTemplate("page", [frame], onPageEnd=foot))
    document.build(story, canvasmaker=PlainCanvas)
    return buffer.getvalue()


# Word


def add_runs(paragraph: DocxParagraph, text: str) -> None:
    for n, part in enumerate(BOLD.split(text)):
        if part:
            paragraph.add_run(part).bold = True if n % 2 else None


def build_docx(source: Source) -> bytes:
    """Real heading, list and table styles, as Word's own users would have them."""
    document = new_docx()
    when = datetime.fromisoformat(source.meta["date"])
    core = document.core_properties
    core.title, core.author, core.last_modified_by = source.meta["title"], source.meta["author"], source.meta["author"]
    core.subject, core.comments, core.revision = source.meta.get("subject", ""), "", 1
    core.language, core.created, core.modified = source.meta.get("language", "en"), when, when
    for block in source.blocks:
        if block.kind == "break":
            document.add_page_break()
        elif block.kind == "table":
            table = document.add_table(len(block.rows), len(block.rows[0]), style="Table Grid")
            for n, row in enumerate(block.rows):
                for cell, text in zip(table.rows[n].cells, row, strict=True):
                    add_runs(cell.paragraphs[0], f"**{text}**" if n == 0 else text)
            document.add_paragraph()
        elif block.kind.startswith("h"):
            # "Heading 1" is the first level below the document's title.
            level = int(block.kind[1]) - 1
            add_runs(document.add_heading(level=level), block.text)
        else:
            add_runs(document.add_paragraph(style="List Bullet" if block.kind == "item" else None), block.text)
    drop_unused(document)
    buffer = io.BytesIO()
    document.save(buffer)
    return without_clock(buffer.getvalue())


def drop_unused(document: WordDocument) -> None:
    """Takes out what python-docx's template brings and no sample needs; uncompressed, it would be 800 kB a file."""
    for style in list(document.styles):
        if style.type == WD_STYLE_TYPE.TABLE and style.name not in ("Normal Table", "Table Grid"):
            style.delete()
    for rels in (document.part.rels, document.part.package.rels):
        for key in [key for key, rel in rels.items() if rel.reltype.endswith(("/stylesWithEffects", "/thumbnail"))]:
            del rels[key]


def without_clock(archive: bytes) -> bytes:
    """The same zip with every member stored, uncompressed, at one fixed time."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            member = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            member.create_system = 3  # else the bytes would tell which system built them
            new.writestr(member, old.read(name))
    return buffer.getvalue()


BUILDERS = {".pdf": build_pdf, ".docx": build_docx}


def build_all(out: Path, sources: Path = SOURCES) -> list[Path]:
    """Builds every source into `out` and returns the files written, in order of their names."""
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for path in sorted(sources.glob("*.md")):
        target = out / path.stem
        if target.suffix not in BUILDERS:
            raise ValueError(f"{path.name}: name it NAME.pdf.md or NAME.docx.md")
        target.write_bytes(BUILDERS[target.suffix](read_source(path)))
        written.append(target)
    return written


def main() -> int:
    parser = argparse.ArgumentParser(description="Builds the .pdf and .docx files of the sample inbox.")
    parser.add_argument("--out", type=Path, default=INBOX, help="folder to write to (default: data/inbox)")
    try:
        for path in build_all(parser.parse_args().out):
            print(path)
    except ValueError as error:
        print(f"build_samples: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
