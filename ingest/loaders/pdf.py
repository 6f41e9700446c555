"""PDF by pypdf: one document a page."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from langchain_core.documents import Document

from ingest.errors import IngestError
from ingest.loaders.decode import tidy
from ingest.loaders.guard import TimeUp, run_limited

if TYPE_CHECKING:
    from pypdf import PdfReader

MAX_PAGES = 20_000
PAGE_SECONDS = 30.0
OPEN_SECONDS = 120.0
# Type setters draw these pairs of letters as one sign; nobody searches for it.
LIGATURES = str.maketrans({"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "st", "ﬆ": "st"})
TRAILING = re.compile(r"[ \t]+\n")
BLANK_LINES = re.compile(r"\n{3,}")


def load_pdf(path: Path) -> list[Document]:
    """A document for each page with text, {"page": n from 1}; one with {"error": cause} for each that cannot be read.

    Raises IngestError for files that need a password, are damaged, are too long or have no text layer.
    """
    with _quiet():
        documents = list(_pages(_open(path)))
    if any(document.page_content for document in documents):
        return documents
    if documents:
        raise IngestError(f"is damaged or cut short ({documents[0].metadata['error']})")
    raise IngestError("has no text layer (a scan?); run OCR on it first")


def _open(path: Path) -> PdfReader:
    with path.open("rb") as file:
        if b"%PDF-" not in file.read(1024):
            raise IngestError("is not a PDF file")
    try:
        reader, count = run_limited(OPEN_SECONDS, lambda: _unlocked(path))
    except IngestError:
        raise
    except TimeUp as error:
        raise IngestError(f"takes longer than {OPEN_SECONDS:.0f} s to open; is it damaged?") from error
    except Exception as error:  # a broken file breaks pypdf in any way
        raise IngestError(f"is damaged or cut short ({_short(error)})") from error
    if count == 0:
        raise IngestError("is damaged or cut short (it has no pages)")
    if count > MAX_PAGES:
        raise IngestError(f"has {count} pages, more than {MAX_PAGES}; split it")
    return reader


def _unlocked(path: Path) -> tuple[PdfReader, int]:
    """The opened file and its number of pages. Many encrypted files have an empty password."""
    from pypdf import PasswordType, PdfReader

    reader = PdfReader(path)
    if reader.is_encrypted and reader.decrypt("") == PasswordType.NOT_DECRYPTED:
        raise IngestError("is encrypted and needs a password; save it without one and try again")
    return reader, len(reader.pages)


def _pages(reader: PdfReader) -> Iterator[Document]:
    for number in range(1, len(reader.pages) + 1):
        page = {"page": number}
        try:
            text = run_limited(PAGE_SECONDS, reader.pages[number - 1].extract_text)
        except TimeUp:
            yield Document("", metadata={**page, "error": f"takes longer than {PAGE_SECONDS:.0f} s to read"})
        except Exception as error:  # one bad page does not lose the others
            yield Document("", metadata={**page, "error": _short(error)})
        else:
            text = tidy(text).replace("\t", " ").translate(LIGATURES)
            text = BLANK_LINES.sub("\n\n", TRAILING.sub("\n", text)).strip()
            if text:
                yield Document(text + "\n", metadata=page)


@contextmanager
def _quiet() -> Iterator[None]:
    """pypdf tells every oddity of a file on the log; the user can do nothing about them."""
    logger = logging.getLogger("pypdf")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)


def _short(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:120]
