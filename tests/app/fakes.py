"""A backend without models: fixed chunks, and an engine that says what the test tells it to."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever

from app.confidence import Confidence
from app.errors import AppError
from finetune.adapters import METHODS
from finetune.folder import Base, save_adapter
from llama.checkpoint import open_checkpoint
from llama.decoding import Usage
from llama.model import Transformer


def random_lora(gguf: Path, place: Path, base: Base, seed: int = 0) -> Path:
    """An adapter for a model, its weights at random, in a folder `place`."""
    torch.manual_seed(seed)
    method, config = METHODS["lora"], open_checkpoint(gguf).config
    adapter = method.make(config, method.options(lora_rank=4, lora_target=["q_proj", "down_proj"]))
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            parameter.normal_(std=0.02 if name.endswith("A") else 0.1)
    with torch.device("meta"):
        model = Transformer(config)
    save_adapter(place, "lora", adapter, model, base)
    return place


def chunk(text: str, source: str = "a.md", number: int = 0, score: float = 0.8, **more: Any) -> Document:
    data = {"chunk_id": f"{source}-{number}", "source": source, "page": None, "headings": "", "score": score, **more}
    return Document(page_content=text, metadata=data)


class Fixed(BaseRetriever):
    chunks: list[Document]
    by_question: dict[str, list[Document]]

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        return self.by_question.get(query, self.chunks)


class Said:
    """Stands for a `Request` whose text is known beforehand."""

    def __init__(self, text: str, cancel: threading.Event | None) -> None:
        self._text, self._cancel = text, cancel
        self.text, self.usage = "", Usage(prompt_tokens=7, prefill_s=0.1, decode_s=0.2)
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[str]:
        for word in self._text.split(" "):
            if self._cancel is not None and self._cancel.is_set():
                return
            piece = word if not self.text else " " + word
            self.text += piece
            self.usage.answer_tokens += 1
            yield piece


class Backend:
    """Knows the knowledge bases 'default' (with the chunks) and 'empty'; counts how often the model is asked."""

    model_name = "fake.gguf"

    def __init__(self, chunks: Sequence[Document] = (), says: str = "", context: int = 4096) -> None:
        self.chunks, self.says, self.context, self.asked = list(chunks), says, context, 0
        self.messages: list[Any] = []
        self.filters: list[Any] = []  # of the questions, in their order
        self.default: str | None = None  # adapter of the settings
        self.adapters: list[str | None] = []  # that requests were made with
        self.fault: Exception | None = None
        self.faults: dict[int, Exception] = {}  # of single requests, by their place in a batch
        self.by_question: dict[str, list[Document]] = {}  # instead of the chunks, for some questions
        self.confidence = Confidence(None, lambda text: 1.0)

    def retriever(self, kb: str, k: int, *, filter: Any = None) -> BaseRetriever | None:
        self.filters.append(filter)
        if kb not in ("default", "empty"):
            raise AppError(f"there is no knowledge base '{kb}'")
        return None if kb == "empty" else Fixed(chunks=self.chunks[:k], by_question=self.by_question)

    @property
    def engine(self) -> Any:
        if self.fault is not None:
            raise self.fault
        return SimpleNamespace(
            context_length=self.context,
            variant=lambda adapter: SimpleNamespace(front=0),
            encode_chat=self.encode,
            generate=self.generate,
            generate_batch=self.generate_batch,
        )

    def encode(self, messages: Sequence[Any]) -> list[int]:
        """One token for each word and one for each message."""
        self.messages = list(messages)
        return [0] * sum(1 + len(message["content"].split()) for message in messages)

    def adapter(self, name: str | None = None) -> str | None:
        return None if name == "none" else name or self.default

    def generate(
        self, prompt: Sequence[int], params: Any, cancel: threading.Event | None = None, adapter: str | None = None
    ) -> Said:
        self.asked += 1
        self.adapters.append(adapter)
        return Said(self.says, cancel)

    def generate_batch(
        self, prompts: Sequence[Any], params: Any, rows: int = 16, adapters: Sequence[str | None] = ()
    ) -> Iterator[tuple[int, Said]]:
        """Ends the last request of every pair first, as a batch may."""
        for start in range(0, len(prompts), 2):
            for i in reversed(range(start, min(start + 2, len(prompts)))):
                said = self.generate(prompts[i], params, adapter=adapters[i])
                list(said)
                said.error = self.faults.get(i)
                yield i, said
