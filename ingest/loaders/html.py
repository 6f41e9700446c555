"""HTML: what a reader would see, as Markdown. Nothing that the page refers to is fetched."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from langchain_core.documents import Document

from ingest.errors import IngestError
from ingest.loaders.decode import decode, tidy
from ingest.loaders.markup import heading, join, one_line, pipe_table

if TYPE_CHECKING:
    from bs4 import Tag

CHARSET = re.compile(rb"<(?:meta|\?xml)[^>]{0,200}?(?:charset|encoding)\s*=\s*[\"']?\s*([\w.:-]+)", re.IGNORECASE)
DROPPED = [
    *("script", "style", "noscript", "template", "nav", "svg", "math", "iframe", "object", "embed", "canvas"),
    *("select", "option", "textarea", "button", "input", "dialog", "audio", "video", "head"),
]
HIDDEN = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)
HEADINGS = {f"h{level}": level for level in range(1, 7)}
BLOCKS = {
    *("address", "article", "aside", "blockquote", "body", "caption", "center", "dd", "details"),
    *("div", "dl", "dt", "fieldset", "figcaption", "figure", "footer", "form", "header"),
    *("hgroup", "hr", "html", "legend", "li", "main", "ol", "p", "pre"),
    *("section", "summary", "table", "tbody", "td", "tfoot", "th", "thead", "tr", "ul"),
}
MAX_DEPTH = 200  # deeper markup is read as flat text: no real page needs it, and recursion has an end


def load_html(path: Path) -> list[Document]:
    """One document. The page's title becomes a heading where the page has no h1."""
    from bs4 import BeautifulSoup, Comment

    data = path.read_bytes()
    declared = CHARSET.search(data[:4096])
    text = decode(data, declared[1].decode("ascii", "replace") if declared else None)
    soup = BeautifulSoup(re.sub(r"^\s*<\?xml[^>]*\?>", "", text), "lxml")
    title = one_line(soup.title.get_text()) if soup.title else ""
    for comment in soup.find_all(string=lambda string: isinstance(string, Comment)):
        comment.extract()
    for tag in soup.find_all(DROPPED):
        tag.extract()
    for tag in soup.find_all(_is_hidden):
        tag.extract()
    blocks: list[str] = []
    if soup.body or soup.html:
        _Walker(blocks).block(soup.body or soup.html)  # type: ignore[arg-type]
    if title and not any(block.startswith("# ") for block in blocks):
        blocks.insert(0, heading(1, title))
    if not blocks:
        raise IngestError("has no text to read")
    return [Document(tidy(join(blocks)))]


def _is_hidden(tag: Tag) -> bool:
    return (
        tag.has_attr("hidden")
        or tag.get("aria-hidden") == "true"
        or tag.get("role") == "navigation"
        or bool(HIDDEN.search(str(tag.get("style", ""))))
    )


class _Walker:
    """Turns a tree into blocks of Markdown, in the order of the page."""

    def __init__(self, blocks: list[str]) -> None:
        self.blocks = blocks
        self.inline: list[str] = []

    def flush(self) -> None:
        """Closes the paragraph under way. Line breaks of <br> are kept."""
        lines = (one_line(line) for line in "".join(self.inline).split("\x00"))
        text = "\n".join(line for line in lines if line)
        self.inline.clear()
        if text:
            self.blocks.append(text)

    def block(self, tag: Tag, depth: int = 0) -> None:
        """Reads a block element: what comes before it is a paragraph of its own."""
        self.flush()
        if tag.name in HEADINGS:
            text = one_line(tag.get_text(" "))
            self.blocks.extend([heading(HEADINGS[tag.name], text)] if text else [])
        elif tag.name == "pre":
            code = tag.get_text().strip("\n")
            self.blocks.extend([f"```\n{code}\n```"] if code.strip() else [])
        elif tag.name == "table" and self.is_data(tag):
            self.table(tag)
        elif tag.name in ("ul", "ol"):
            self.items(tag, depth)
        elif depth >= MAX_DEPTH:
            self.inline.append(tag.get_text(" "))
            self.flush()
        else:
            self.children(tag, depth)
            self.flush()

    def children(self, tag: Tag, depth: int) -> None:
        from bs4 import Tag
        from bs4.element import NavigableString

        for child in tag.children:
            if isinstance(child, Tag):
                if child.name in BLOCKS or child.name in HEADINGS:
                    self.block(child, depth + 1)
                elif child.name == "br":
                    self.inline.append("\x00")
                elif depth >= MAX_DEPTH:
                    self.inline.append(child.get_text(" "))
                else:
                    self.children(child, depth + 1)
            elif type(child) is NavigableString:  # not a doctype, CDATA or processing instruction
                self.inline.append(str(child).replace("\x00", ""))

    def items(self, tag: Tag, depth: int) -> None:
        """A list as one block, one line an item; nested lists are indented."""
        from bs4 import Tag

        lines: list[str] = []
        for child in tag.children:
            if not isinstance(child, Tag):
                continue
            inner: list[str] = []
            walker = _Walker(inner)
            if depth >= MAX_DEPTH:
                inner.append(one_line(child.get_text(" ")))
            elif child.name in ("ul", "ol"):
                walker.items(child, depth + 1)
            else:
                walker.children(child, depth + 1)
                walker.flush()
            mark = f"{len(lines) + 1}. " if tag.name == "ol" else "- "
            text = "\n".join(inner).replace("\n", "\n  ")
            lines.extend([mark + text] if text.strip() else [])
        if lines:
            self.blocks.append("\n".join(lines))

    @staticmethod
    def is_data(table: Tag) -> bool:
        """Whether a table holds data. One with tables, headings or a single column in it only lays out the page."""
        if table.find(["table", *HEADINGS]):
            return False
        return any(len(row.find_all(["td", "th"])) > 1 for row in table.find_all("tr"))

    def table(self, table: Tag) -> None:
        caption = table.find("caption")
        if caption:
            self.inline.append(caption.get_text(" "))
            self.flush()
        rows: list[list[str]] = []
        for row in table.find_all("tr"):
            cells: list[str] = []
            for cell in row.find_all(["td", "th"]):
                span = str(cell.get("colspan", "1"))
                # A cell over several columns stands in each, so that each row reads by itself.
                cells.extend([cell.get_text(" ")] * (min(int(span), 50) if span.isdigit() and int(span) > 0 else 1))
            rows.append(cells)
        text = pipe_table(rows)
        self.blocks.extend([text] if text else [])
