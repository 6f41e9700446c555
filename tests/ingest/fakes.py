"""An embedder without a model, and files that are broken on purpose."""

from __future__ import annotations

import re
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from ingest.sync import Ingestor
from tests.vectorstore.fakes import WordEmbeddings
from vectorstore.hnsw import DEFAULT_HNSW
from vectorstore.place import place_of
from vectorstore.store import ChromaStore

TOKEN = re.compile(r"[一-鿿]|[^\W_]+|\S")


class FakeEmbedder(WordEmbeddings):
    """A token is a word, a Chinese character or a sign."""

    def __init__(self, identity: str = "words@1", max_tokens: int = 254) -> None:
        super().__init__()
        self.identity = identity
        self.max_tokens = max_tokens

    def count_tokens(self, text: str) -> int:
        return len(TOKEN.findall(text))

    def count_tokens_batch(self, texts: Sequence[str]) -> list[int]:
        return [self.count_tokens(text) for text in texts]


def open_ingestor(home: Path, embedder: FakeEmbedder, url: str = "", **settings: Any) -> Ingestor:
    """An ingestor over a state folder, its vectors in there or on a Chroma server."""
    vectors = place_of(url, home / "index")
    hnsw = settings.get("hnsw", DEFAULT_HNSW)

    def open_store(kb: str, create: bool) -> ChromaStore:
        return ChromaStore(vectors.client(), kb, embedder, embedder.identity, create, hnsw)

    sizes = {"chunk_tokens": 40, "chunk_overlap": 8, "max_file_mb": 1, **settings}
    return Ingestor(home / "inbox", home / "index", embedder, open_store, vectors=vectors, **sizes)


def store_of(ingestor: Ingestor, kb: str) -> ChromaStore:
    """What is in the index of a knowledge base."""
    return ingestor.open_store(kb, False)


def make_pdf(pages: Sequence[str], password: str | None = None, owner: str | None = None) -> bytes:
    """A PDF with a line of text a page; encrypted if there is a password, be it an empty one."""
    from reportlab.lib.pdfencrypt import StandardEncryption
    from reportlab.pdfgen.canvas import Canvas

    lock = None if password is None else StandardEncryption(password, ownerPassword=owner or "owner", strength=128)
    out = BytesIO()
    canvas = Canvas(out, encrypt=lock, pageCompression=1)
    for page in pages:
        for number, line in enumerate(page.split("\n")):
            canvas.drawString(72, 720 - 14 * number, line)
        canvas.showPage()
    canvas.save()
    return out.getvalue()


def make_scan(pages: int = 2) -> bytes:
    """A PDF without any text."""
    from reportlab.pdfgen.canvas import Canvas

    out = BytesIO()
    canvas = Canvas(out)
    for _ in range(pages):
        canvas.rect(100, 100, 200, 200, fill=1)
        canvas.showPage()
    canvas.save()
    return out.getvalue()


def make_docx(build: Any) -> bytes:
    """A Word file; `build` gets the empty document."""
    import docx

    document = docx.Document()
    build(document)
    out = BytesIO()
    document.save(out)
    return out.getvalue()
