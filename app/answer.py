"""The one path from a question to a cited answer; the web UI, the command line and batch all call it."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from langchain_core.documents import Document

from app.cite import Citation, cite, without_markers
from app.errors import AppError
from app.prompt import NOTHING_INDEXED, REFUSAL, STOPS, Turn, build, language_of

if TYPE_CHECKING:
    from langchain_core.retrievers import BaseRetriever

    from llama.engine import Engine, Usage
    from llama.sampling import SamplingParams

MAX_QUESTION_CHARACTERS = 20_000


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
    """A finished answer: `passages` are the chunks that the model read, `pieces` the text with citation numbers."""

    question: str
    answer: str
    refused: bool
    citations: list[Citation]
    retrieved: list[str]
    model: str
    timings: Timings
    adapter: str | None = None
    passages: list[Document] = field(default_factory=list)
    pieces: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The object that `ask --json` prints, without the `id` that the caller adds."""
        return {
            "question": self.question,
            "answer": self.answer,
            "refused": self.refused,
            "citations": [dataclasses.asdict(citation) for citation in self.citations],
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


class Backend(Protocol):
    """What an answer is made with; `Services` is one."""

    @property
    def model_name(self) -> str: ...
    @property
    def engine(self) -> Engine: ...
    def retriever(self, kb: str, k: int) -> BaseRetriever | None:
        """None for a knowledge base that exists but holds nothing; AppError for one that does not exist."""


class Answerer:
    """Retrieves, builds the prompt, generates and cites. Holds no conversation: history is an argument."""

    def __init__(self, backend: Backend, max_prompt_tokens: int, sampling: SamplingParams) -> None:
        self._backend, self._max_prompt_tokens = backend, max_prompt_tokens
        self._sampling = dataclasses.replace(sampling, stop=(*sampling.stop, *STOPS), stop_loops=True)

    def answer(self, question: str, kb: str, k: int, history: Sequence[Turn] = ()) -> Answer:
        """The whole answer at once. Raises AppError for a question that cannot be asked."""
        done = None
        for event in self.stream(question, kb, k, history):
            done = event
        assert isinstance(done, Answer)
        return done

    def stream(
        self,
        question: str,
        kb: str,
        k: int,
        history: Sequence[Turn] = (),
        cancel: threading.Event | None = None,
    ) -> Iterator[list[Document] | str | Answer]:
        """First the retrieved chunks (a list), then pieces of text, at last the `Answer`.

        Setting `cancel` ends the generation at the next token; the answer then holds what was said until there,
        be it nothing.
        Raises AppError for an empty or over-long question, and what the store or the model raise.
        """
        started = time.perf_counter()
        question = check_question(question)
        retriever = self._backend.retriever(kb, k)
        chunks = [] if retriever is None else retriever.invoke(question)
        retrieve_s = time.perf_counter() - started
        yield chunks
        retrieved = [chunk.metadata["chunk_id"] for chunk in chunks]
        finish = _Finish(question, self._backend.model_name, retrieved, started, retrieve_s)
        if not chunks:
            text = REFUSAL if retriever is not None else NOTHING_INDEXED
            yield (refusal := text[language_of(question)].format(kb=kb))
            yield finish(refusal, refused=True)
            return
        engine = self._backend.engine
        budget = min(self._max_prompt_tokens, engine.context_length - self._sampling.max_tokens)
        prompt = build(question, history, chunks, engine.encode_chat, budget)
        generation = engine.generate(prompt.ids, self._sampling, cancel)
        yield from generation
        yield finish(generation.text, passages=prompt.chunks, usage=generation.usage)


@dataclass(frozen=True)
class _Finish:
    """Makes the `Answer` once the text is there."""

    question: str
    model: str
    retrieved: list[str]
    started: float
    retrieve_s: float

    def __call__(
        self, text: str, refused: bool = False, passages: Sequence[Document] = (), usage: Usage | None = None
    ) -> Answer:
        clean = without_markers(text)
        cancelled = usage is not None and usage.finish_reason == "cancelled"
        if not refused and not cancelled and (not clean or is_refusal(clean)):
            # The model found nothing in the passages (or said nothing): told as a refusal, in our own words.
            clean, refused = REFUSAL[language_of(self.question)], True
        cited = cite(clean, () if refused else passages)
        figures = (
            {}
            if usage is None
            else {
                name: getattr(usage, name)
                for name in ("prefill_s", "decode_s", "prompt_tokens", "cached_tokens", "answer_tokens")
            }
        )
        total = time.perf_counter() - self.started
        return Answer(
            question=self.question,
            answer=clean,
            refused=refused,
            citations=cited.citations,
            retrieved=self.retrieved,
            model=self.model,
            timings=Timings(retrieve_s=self.retrieve_s, total_s=total, **figures),
            passages=list(passages),
            pieces=cited.pieces,
        )


def is_refusal(text: str) -> bool:
    """Whether the text begins with the refusal that the model was told to give, as a sentence of its own."""
    said = text.strip().lower()
    return any(said.startswith(whole := refusal.lower()) or said == whole[:-1] for refusal in REFUSAL.values())


def check_question(question: str) -> str:
    """The question without the space around it. Raises AppError when it is empty or too long to be one."""
    question = question.strip()
    if not question:
        raise AppError("the question is empty; ask something")
    if len(question) > MAX_QUESTION_CHARACTERS:
        raise AppError(
            f"the question has {len(question):,} characters and at most {MAX_QUESTION_CHARACTERS:,} are taken; "
            "shorten it, or put the text into a document and ask about that"
        )
    return question
