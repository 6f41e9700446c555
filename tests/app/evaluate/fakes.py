"""A corpus without models: fixed chunks behind the answer path's own fakes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from langchain_core.documents import Document

from app.answer import Answerer
from app.evaluate.corpus import Corpus
from app.evaluate.questions import Article
from llama.sampling import SamplingParams

from ..fakes import Backend


def corpus(backend: Backend, articles: list[Article] = []) -> Corpus:  # noqa: B006
    services = SimpleNamespace(
        retriever=lambda kb, k, mode="dense": backend.retriever(kb, k),
        answerer=Answerer(backend, 4000, SamplingParams(max_tokens=50)),
        embedder=SimpleNamespace(count_tokens=lambda text: len(text.split())),
        settings=SimpleNamespace(max_prompt_tokens=100, kb="default"),
        store=lambda kb: SimpleNamespace(chunks_of=lambda doc_id: backend.chunks),
        ingestor=SimpleNamespace(
            kbs=lambda: ["default", "empty"],
            manifest=SimpleNamespace(
                files=lambda kb: {c.metadata["source"]: SimpleNamespace(doc_id="d") for c in backend.chunks}
            ),
        ),
    )
    return Corpus(services, {article.name: article for article in articles})  # type: ignore[arg-type]


def piece(text: str, source: str, **more: Any) -> Document:
    """A chunk that knows no more than a stored one."""
    data = {"chunk_id": f"{source}:{text[:8]}", "source": source, "page": None, "headings": "", "score": 0.5}
    return Document(text, metadata=data | more)
