"""Readers of file formats. A new format is one module here and one line in LOADERS.

Every loader gives text in one form: headings are Markdown `#` lines and tables are pipe tables, so that one splitter
serves them all. metadata holds {"page": n from 1} where the format has pages. A page that cannot be read is a document
without text whose metadata has "error": the rest of the file is of use.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from langchain_core.documents import Document

from ingest.errors import IngestError
from ingest.loaders.docx import load_docx
from ingest.loaders.guard import TimeUp, run_limited
from ingest.loaders.html import load_html
from ingest.loaders.pdf import load_pdf
from ingest.loaders.text import load_markdown, load_text

FILE_SECONDS = 900.0


@dataclass(frozen=True)
class Loader:
    """Reads one format. A higher `version` makes all its files be read again, as their text comes out otherwise."""

    read: Callable[[Path], list[Document]]
    version: int = 1


LOADERS: dict[str, Loader] = {
    ".txt": Loader(load_text),
    ".md": Loader(load_markdown),
    ".html": Loader(load_html),
    ".htm": Loader(load_html),
    ".pdf": Loader(load_pdf),
    ".docx": Loader(load_docx),
}


def loader_of(name: str) -> Loader | None:
    """The loader for a file's name, by its suffix in any case; None for types that are not read."""
    return LOADERS.get(Path(name).suffix.lower())


def load(path: Path) -> list[Document]:
    """Reads a file. Raises IngestError, which says what is wrong with the file, without naming it."""
    loader = loader_of(path.name)
    if loader is None:
        raise IngestError(f"is of a type that is not read; these are: {', '.join(sorted(LOADERS))}")
    try:
        if path.stat().st_size == 0:
            raise IngestError("is empty")
        documents = run_limited(FILE_SECONDS, lambda: loader.read(path))
    except OSError as error:
        raise IngestError(f"cannot be read: {error.strerror or error}") from error
    except TimeUp as error:
        raise IngestError(f"takes longer than {FILE_SECONDS:.0f} s to read; is it damaged?") from error
    except (RecursionError, MemoryError) as error:
        raise IngestError("is too deeply nested or too large to read") from error
    if not any(document.page_content.strip() for document in documents):
        raise IngestError("is empty (it holds nothing but white space)")
    return documents
