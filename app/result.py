"""A finished answer, and the object that scripts get of it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from langchain_core.documents import Document

from app.cite import Citation, Sentence


@dataclass(frozen=True)
class Timings:
    """Wall time in seconds, and token counts."""

    retrieve_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    total_s: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    answer_tokens: int = 0


@dataclass(frozen=True)
class Answer:
    """A finished answer: `passages` are the chunks that the model read, `pieces` the text with citation numbers,
    `sentences` what each of them rests on.

    `confidence` is P(answerable), None where nothing is known about it; of a refusal, `passages` are the nearest.
    `rewritten` is what a follow-up question was understood as, None for one that stands alone.
    """

    question: str
    answer: str
    refused: bool
    confidence: float | None
    citations: list[Citation]
    retrieved: list[str]
    model: str
    timings: Timings
    adapter: str | None = None
    passages: list[Document] = field(default_factory=list)
    pieces: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)
    sentences: list[Sentence] = field(default_factory=list)  # none of a refusal
    rewritten: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The object that `ask --json` prints, without the `id` that the caller adds."""
        return {
            "question": self.question,
            "rewritten": self.rewritten,
            "answer": self.answer,
            "refused": self.refused,
            "confidence": None if self.confidence is None else round(self.confidence, 4),
            "citations": [dataclasses.asdict(citation) for citation in self.citations],
            "sentences": [dataclasses.asdict(sentence) for sentence in self.sentences],
            "retrieved": self.retrieved,
            "model": self.model,
            "adapter": self.adapter,
            "timings": {
                name: round(value, 4) if isinstance(value, float) else value
                for name, value in dataclasses.asdict(self.timings).items()
            },
        }

    def marked(self) -> str:
        """The answer with the numbers of its citations behind each supported sentence."""
        return "".join(text + "".join(f" [{n}]" for n in numbers) for text, numbers in self.pieces) or self.answer
