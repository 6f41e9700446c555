"""Questions and answers out of a knowledge base, written by the model and filtered, for a person to review."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langchain_core.documents import Document

from app.answer import Question
from app.errors import AppError
from app.evaluate.metrics import f1, holds
from app.progress import bar
from app.prompt import language_of
from app.result import Answer

if TYPE_CHECKING:
    from app.services import Services

ASK = {
    "en": (
        "Passage:\n{passage}\n\nWrite one short question that this passage answers, about a fact in it. "
        "Write the question only."
    ),
    "zh": "段落：\n{passage}\n\n写一个这个段落能够回答的简短问题，问其中的一个事实。只写问题。",
}
ENDS = ("?", "？")
# Characters of a question with its mark: less is no more than a question word. Chinese says 羊驼吃什么？ in six.
SHORTEST = {"en": 9, "zh": 4}
LEAST_WORDS = 40  # characters of a passage that says enough to be asked about
AGREE = 0.5  # F1 of the answer with the passage given and the one after retrieval


@dataclass(frozen=True)
class Made:
    """A question that went through all filters. likelihood: of a token of the answer, geometric mean."""

    question: str
    answer: str
    source: str
    page: int | None
    passage: str
    likelihood: float

    def to_json(self) -> dict[str, Any]:
        return {
            "question": self.question,
            "answers": [self.answer],
            "source": self.source,
            "page": self.page,
            "passage": self.passage,
            "likelihood": round(self.likelihood, 4),
        }


def make(
    services: Services, kb: str, limit: int | None, likelihood: float, count: Callable[[str], None]
) -> Iterator[Made]:
    """Asks the model for a question about each passage, answers it twice, and keeps what agrees.

    A question is kept when the answer to it stands in its passage, the model finds it about as likely as `likelihood`
    a token, and the same question asked without the passage finds that passage and gives the same answer (round-trip
    consistency: Alberti et al. 2019). count: told of each passage what became of it. Raises AppError.
    """
    if services.retriever(kb, services.settings.k) is None:
        raise AppError(f"the knowledge base '{kb}' holds no documents to make questions from")
    return _made(services, kb, limit, likelihood, count)


def _made(
    services: Services, kb: str, limit: int | None, likelihood: float, count: Callable[[str], None]
) -> Iterator[Made]:
    store, seen = services.store(kb), set[str]()
    rows = services.ingestor.manifest.files(kb)
    chunks = [c for row in rows.values() if row.doc_id for c in store.chunks_of(row.doc_id)]
    chunks = [c for c in chunks if len(c.page_content) >= LEAST_WORDS]
    if limit is not None and limit < len(chunks):  # evenly, so that the last documents have their share
        chunks = [chunks[i * len(chunks) // limit] for i in range(limit)]
    with bar(len(chunks), "passage") as advance:
        for start in range(0, len(chunks), 16):
            part = chunks[start : start + 16]
            asked = _questions(services, part)
            for chunk, question in zip(part, asked, strict=True):
                made, why = (None, "no question") if not question else _kept(services, kb, chunk, question, likelihood)
                if made is not None and question.lower() in seen:
                    made, why = None, "asked before"
                count(why)
                advance(1, why)
                if made is not None:
                    seen.add(question.lower())
                    yield made


def _questions(services: Services, chunks: Sequence[Document]) -> list[str]:
    """A question about each passage, "" where the model wrote none."""
    from llama.sampling import SamplingParams

    engine = services.engine
    prompts = []
    for chunk in chunks:
        language = language_of(chunk.page_content)
        prompts.append(
            engine.encode_chat([{"role": "user", "content": ASK[language].format(passage=chunk.page_content.strip())}])
        )
    found = [""] * len(chunks)
    params = SamplingParams(max_tokens=48, stop=("\n",), stop_loops=True)
    adapters = [services.named_adapter] * len(prompts)
    for place, request in engine.generate_batch(prompts, params, adapters=adapters):
        text = request.text.strip().strip('"“”').removeprefix("Question:").removeprefix("问题：").strip()
        if request.error is None and text.endswith(ENDS) and len(text) >= SHORTEST[language_of(text)]:
            found[place] = text
    return found


def _kept(services: Services, kb: str, chunk: Document, question: str, least: float) -> tuple[Made | None, str]:
    """The question with its answer, or why it is dropped."""
    k = services.settings.k
    # Cited passages have a score; this one was not retrieved.
    alone = Document(chunk.page_content, metadata={"score": 1.0, **chunk.metadata})
    both = [Question(question, kb, k, [alone]), Question(question, kb, k)]
    answers: dict[int, Answer | BaseException] = dict(services.answerer.answer_batch(both))
    given, found = answers[0], answers[1]
    if not isinstance(given, Answer) or not isinstance(found, Answer) or given.refused:
        return None, "not answered"
    text = _span(given, chunk)
    if text is None:
        return None, "answer not in the passage"
    if chunk.metadata["chunk_id"] not in found.retrieved:
        return None, "passage not found again"
    if found.refused or f1(found.answer, [text], language_of(question)) < AGREE:
        return None, "answers differ"
    likely = _likelihood(services, question, chunk, text)
    if likely < least:
        return None, "unlikely"
    return Made(
        question, text, chunk.metadata["source"], chunk.metadata.get("page"), chunk.page_content, likely
    ), "kept"


def _span(answer: Answer, chunk: Document) -> str | None:
    """The answer where its words stand in the passage as they are; else None."""
    text = answer.answer.strip().rstrip(".。")
    return text if text and len(text) < 200 and holds(chunk.page_content, text) else None


def _likelihood(services: Services, question: str, chunk: Document, answer: str) -> float:
    """Geometric mean of the probabilities of the answer's tokens behind the prompt with its passage."""
    from app.prompt import as_it_stands, messages_for

    engine = services.engine
    prompt = engine.encode_chat(messages_for(question, (), [chunk]))
    forms = dict.fromkeys((answer, as_it_stands(answer, [chunk])))  # the bare model begins without the space
    pairs = [(prompt, engine.tokenizer.encode(form, first=False)) for form in forms]
    return max(math.exp(statistics.fmean(found)) for found in engine.log_likelihoods(pairs, services.adapter()))


def write(services: Services, kb: str, out: Path, limit: int | None, likelihood: float) -> dict[str, int]:
    """Writes a line for each kept question, as soon as it is there. Returns how many passages met which end.

    A file that is there already stays as it is: somebody may have reviewed it. Where nothing is kept none is left
    behind, which would stand in the way of the next run. Raises AppError, for nothing kept as well.
    """
    counts: dict[str, int] = {}

    def count(why: str) -> None:
        counts[why] = counts.get(why, 0) + 1

    found = make(services, kb, limit, likelihood, count)  # a knowledge base that is not there leaves no file behind

    try:
        with out.open("x", encoding="utf-8") as file:
            try:
                for made in found:
                    file.write(json.dumps(made.to_json(), ensure_ascii=False) + "\n")
                    file.flush()
            finally:
                if "kept" not in counts:
                    out.unlink()
    except FileExistsError as error:
        raise AppError(f"{out} is there already; choose another file with -o") from error
    except OSError as error:
        raise AppError(f"{out} cannot be written ({error.strerror}); choose another file with -o") from error
    if "kept" not in counts:
        ends = ", ".join(f"{n} {why}" for why, n in sorted(counts.items(), key=lambda each: -each[1]))
        raise AppError(
            f"no question of {sum(counts.values())} passages could be kept ({ends or 'all are too short'}), so {out} "
            f"was not written; take more passages, a lower --likelihood or a larger model"
        )
    return counts
