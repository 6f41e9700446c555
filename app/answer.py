"""The one path from a question to a cited answer; the web UI, the command line and batch all call it."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from langchain_core.documents import Document

from app import followup
from app.adapters import label
from app.cite import Likely, cite, unmarked, without_markers
from app.context import merged, near_best, parts_of, widened
from app.errors import AppError
from app.prompt import NOTHING_INDEXED, STOPS, Prompt, Turn, build, language_of, refusal_of
from app.refusal import is_refusal
from app.result import Answer, Timings
from app.support import LikelihoodDrop
from finetune.errors import FinetuneError
from ingest.errors import IngestError
from llama.errors import LlamaError
from vectorstore.errors import StoreError

if TYPE_CHECKING:
    from langchain_core.retrievers import BaseRetriever

    from app.confidence import Confidence
    from ingest.filter import Filter
    from llama.decoding import Usage
    from llama.engine import Engine
    from llama.sampling import SamplingParams

MAX_QUESTION_CHARACTERS = 20_000
MARGIN = 0.9  # of the room that neighbours may fill: joined texts have other tokens than each alone
REWRITTEN_TOKENS = 64  # of a follow-up question that the model writes anew
WINDOW = 128  # questions of a batch that are retrieved ahead of the model
# Faults of one question, told in one line.
ANSWER_ERRORS = (AppError, FinetuneError, IngestError, LlamaError, StoreError)


class Backend(Protocol):
    """What an answer is made with; `Services` is one."""

    @property
    def model_name(self) -> str: ...
    @property
    def engine(self) -> Engine: ...
    @property
    def confidence(self) -> Confidence: ...
    def adapter(self, name: str | None = None) -> str | None:
        """What a name stands for, by default the settings' own; None for the bare model."""

    def retriever(self, kb: str, k: int, *, filter: Filter | None = None) -> BaseRetriever | None:
        """None for a knowledge base that exists but holds nothing; AppError for one that does not exist."""

    def section(self, kb: str, chunk: Document) -> Sequence[Document]:
        """The chunks around one that are of its section, in the document's order."""


@dataclass(frozen=True)
class Question:
    """A question of a batch. `passages` stand in for retrieval where they are given."""

    text: str
    kb: str
    k: int
    passages: Sequence[Document] | None = None
    filter: Filter | None = None  # which documents it is asked of
    adapter: str | None = None  # which answers; None is that of the settings, "none" the bare model


class Answerer:
    """Retrieves, builds the prompt, generates and cites. Holds no conversation: history is an argument."""

    def __init__(
        self,
        backend: Backend,
        max_prompt_tokens: int,
        sampling: SamplingParams,
        sections: bool = False,
        best_last: bool = False,
        trace: bool = False,
        min_relevance: float = 0.0,
    ) -> None:
        """sections: passages grow to their sections, as far as the prompt has room. best_last: the best passage stands
        nearest to the question behind the passages. trace: whether what words do not support is looked for by
        likelihood, for seconds of the model's time. min_relevance: see `near_best`.
        """
        self._backend, self._max_prompt_tokens, self._trace = backend, max_prompt_tokens, trace
        self._sections, self._best_last, self._min_relevance = sections, best_last, min_relevance
        self._sampling = dataclasses.replace(sampling, stop=(*sampling.stop, *STOPS), stop_loops=True)

    def answer(
        self, question: str, kb: str, k: int, history: Sequence[Turn] = (), filter: Filter | None = None
    ) -> Answer:
        """The whole answer at once. Raises what `stream` does."""
        done = None
        for event in self.stream(question, kb, k, history, filter=filter):
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
        filter: Filter | None = None,
        adapter: str | None = None,
    ) -> Iterator[list[Document] | str | Answer]:
        """First the retrieved chunks (a list), then pieces of text, at last the `Answer`.

        Setting `cancel` ends the generation at the next token; the answer then holds what was said until there,
        be it nothing.
        filter and adapter: as a `Question` has them. Raises AppError for an empty or over-long question, and what the
        store or the model raise.
        """
        found = self._understood(Question(question, kb, k, filter=filter, adapter=adapter), history, cancel)
        yield found.chunks
        if found.refuses:
            yield found.refusal
            yield found.refused()
            return
        # What stands alone is answered without the conversation, which would draw old subjects into a new one.
        prompt = self._prompt(found, () if followup.stands_alone(found.asked) else history)
        generation = self._backend.engine.generate(prompt.ids, self._sampling, cancel, adapter=found.adapter)
        yield from unmarked(generation)
        yield found.answered(generation.text, prompt.chunks, generation.usage, self._likely(found))

    def answer_batch(
        self, questions: Sequence[Question], rows: int = 16
    ) -> Iterator[tuple[int, Answer | BaseException]]:
        """Answers many questions, up to `rows` of them at a time, and yields (index, answer) as each is finished.

        The answers are those of `answer` (under greedy decoding in fp32, to the letter). What goes wrong with one
        question, before or in the model, comes in its place, and the rest goes on; `told` makes a line of it. `total_s`
        counts the question's own phases, without the wait for its turn.
        """
        for start in range(0, len(questions), WINDOW):
            ready: list[tuple[int, _Found, Prompt]] = []
            for index in range(start, min(start + WINDOW, len(questions))):
                try:
                    found = self._retrieve(questions[index])
                    if found.refuses:
                        yield index, found.refused()
                    else:
                        ready.append((index, found, self._prompt(found)))
                except Exception as error:  # foreseen or not, it is this question's alone
                    yield index, error
            if not ready:
                continue
            prompts, adapters = [prompt.ids for _, _, prompt in ready], [found.adapter for _, found, _ in ready]
            for place, done in self._backend.engine.generate_batch(prompts, self._sampling, rows, adapters=adapters):
                index, found, prompt = ready[place]
                if done.error is not None:
                    yield index, done.error
                else:
                    yield index, found.answered(done.text, prompt.chunks, done.usage, self._likely(found), batched=True)

    def _understood(self, question: Question, history: Sequence[Turn], cancel: threading.Event | None = None) -> _Found:
        """What is found for a question that may lean on the conversation, by the reading that finds the most.

        Where nothing is known about how likely an answer is, the first reading that there is counts.
        """
        found = self._retrieve(question)
        if not history or followup.stands_alone(found.question):
            return found
        own = found
        readings = [self._rewritten(own.question, history, cancel), followup.expanded(own.question, history)]
        for reading in dict.fromkeys(each for each in readings if each and len(each) <= MAX_QUESTION_CHARACTERS):
            other = self._retrieve(dataclasses.replace(question, text=reading))
            if not followup.concerns(other.chunks, own.question):
                continue  # what was asked before is there, and what is asked now is not
            if own.confidence is None or other.confidence is None:
                found = other
                break
            if other.confidence > (found.confidence or 0.0):
                found = other
        spent = time.perf_counter() - own.started
        return dataclasses.replace(found, question=own.question, started=own.started, retrieve_s=spent)

    def _rewritten(self, question: str, history: Sequence[Turn], cancel: threading.Event | None) -> str | None:
        """The question as the model would ask it without the conversation; None where that cannot be trusted."""
        engine = self._backend.engine
        ids = engine.encode_chat(followup.request(question, history))
        if len(ids) + REWRITTEN_TOKENS > engine.context_length:
            return None
        plain = dataclasses.replace(self._sampling, temperature=0.0, max_tokens=REWRITTEN_TOKENS, stop=("\n",))
        request = engine.generate(ids, plain, cancel)
        return followup.accepted("".join(request), question, history)

    def _retrieve(self, question: Question) -> _Found:
        started = time.perf_counter()
        text = check_question(question.text)
        if question.passages is not None:
            chunks, indexed = list(question.passages), True
        else:
            retriever = self._backend.retriever(question.kb, question.k, filter=question.filter)
            chunks, indexed = [] if retriever is None else retriever.invoke(text), retriever is not None
        judge = self._backend.confidence
        confidence = judge.of(text, chunks)
        return _Found(
            question=text,
            asked=text,
            kb=question.kb,
            chunks=chunks,
            indexed=indexed,
            confidence=confidence,
            refuses=judge.refuses(confidence) or not chunks,
            model=self._backend.model_name,
            adapter=self._backend.adapter(question.adapter),
            started=started,
            retrieve_s=time.perf_counter() - started,
        )

    def _likely(self, found: _Found) -> Likely | None:
        """What finds the support of a sentence by likelihood, if that is wanted."""
        return LikelihoodDrop(self._backend.engine, found.asked, found.adapter) if self._trace else None

    def _prompt(self, found: _Found, history: Sequence[Turn] = ()) -> Prompt:
        engine = self._backend.engine
        room = engine.context_length - engine.variant(found.adapter).front - self._sampling.max_tokens
        budget = min(self._max_prompt_tokens, room)

        def built(chunks: Sequence[Document]) -> Prompt:
            return build(found.asked, history, merged(chunks), engine.encode_chat, budget, self._best_last)

        read = near_best(found.chunks, self._min_relevance)
        prompt = built(read)
        if not self._sections:
            return prompt
        room = int(MARGIN * (budget - len(prompt.ids)))
        chunks = widened(read, self._section_of(found.kb), room, lambda text: len(engine.tokenizer.encode(text)))
        wide = built(chunks)
        held = {each.metadata["chunk_id"] for passage in wide.chunks for each in parts_of(passage)}
        whole = all(each.metadata["chunk_id"] in held for each in chunks)
        return wide if whole else prompt

    def _section_of(self, kb: str) -> Callable[[Document], Sequence[Document]]:
        return lambda chunk: self._backend.section(kb, chunk)


@dataclass(frozen=True)
class _Found:
    """What was retrieved for a question; becomes its `Answer` once the text is there."""

    question: str
    asked: str  # the question as it was understood
    kb: str
    chunks: list[Document]
    indexed: bool  # whether the knowledge base holds anything
    confidence: float | None
    refuses: bool  # without asking the model: nothing was found, or nothing that holds the answer
    model: str
    adapter: str | None
    started: float
    retrieve_s: float

    @property
    def refusal(self) -> str:
        """That nothing was found, where it was looked for, and what came nearest; in the question's language."""
        if not self.indexed:
            return NOTHING_INDEXED[language_of(self.question)].format(kb=self.kb)
        return refusal_of(self.question, self.kb, self.chunks)

    def refused(self) -> Answer:
        """The refusal as an answer."""
        return self._answer(self.refusal, True, self.chunks, {}, time.perf_counter() - self.started)

    def answered(
        self,
        text: str,
        passages: Sequence[Document],
        usage: Usage,
        likely: Likely | None = None,
        batched: bool = False,
    ) -> Answer:
        """What the model said of the passages, with citations."""
        clean, refused = without_markers(text), False
        if usage.finish_reason != "cancelled" and (not clean or is_refusal(clean, self.asked)):
            # The model found nothing in the passages (or said nothing): told as a refusal, in our own words.
            clean, refused = self.refusal, True
        figures = {
            name: getattr(usage, name)
            for name in ("prefill_s", "decode_s", "prompt_tokens", "cached_tokens", "answer_tokens")
        }
        own = self.retrieve_s + usage.prefill_s + usage.decode_s
        total_s = own if batched else time.perf_counter() - self.started
        return self._answer(clean, refused, passages, figures, total_s, likely)

    def _answer(
        self,
        text: str,
        refused: bool,
        passages: Sequence[Document],
        figures: dict[str, Any],
        total_s: float,
        likely: Likely | None = None,
    ) -> Answer:
        read = [part for passage in passages for part in parts_of(passage)]
        cited = cite(text, () if refused else read, likely, self.asked)
        return Answer(
            question=self.question,
            answer=text,
            refused=refused,
            confidence=self.confidence,
            citations=cited.citations,
            # Those that were found, and behind them neighbours that were read along.
            retrieved=list(dict.fromkeys(chunk.metadata["chunk_id"] for chunk in (*self.chunks, *read))),
            model=self.model,
            adapter=label(self.adapter),
            timings=Timings(retrieve_s=self.retrieve_s, total_s=total_s, **figures),
            passages=read,
            pieces=cited.pieces,
            sentences=[] if refused else cited.sentences,
            rewritten=None if self.asked == self.question else self.asked,
        )


def told(error: BaseException) -> str:
    """What went wrong with a question, in one line; what nobody foresaw is told with its type."""
    line = " ".join(str(error).split())
    return line if isinstance(error, ANSWER_ERRORS) else f"unexpected {type(error).__name__}: {line}"


def check_question(question: str) -> str:
    """The question without the space around it. Raises AppError where it is empty, signs only or too long."""
    question = question.strip()
    if not question:
        raise AppError("the question is empty; ask something")
    if any(0xD800 <= ord(letter) < 0xE000 for letter in question):  # of bytes that are not UTF-8
        raise AppError("the question is not Unicode text; write it in UTF-8")
    if not any(letter.isalnum() for letter in question):
        raise AppError("the question has no words, only signs; ask in words")
    if len(question) > MAX_QUESTION_CHARACTERS:
        raise AppError(
            f"the question has {len(question):,} characters and at most {MAX_QUESTION_CHARACTERS:,} are taken; "
            "shorten it, or put the text into a document and ask about that"
        )
    return question
