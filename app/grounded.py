"""Training data about documents: questions with the passages that retrieval gives, in the prompt that will be asked."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langchain_core.documents import Document

from app.errors import AppError
from app.evaluate.metrics import holds
from app.evaluate.questions import ALL_THE_SAME, EMPTY, Article, Dataset, read_squad
from app.lines import is_valid, read_lines
from app.prompt import REFUSAL, as_it_stands, follow_up, language_of, messages_for
from finetune.config import DataSpec
from finetune.data.grounded import GroundedQuestion, conversations, grounded
from finetune.data.samples import Faults, Sample
from finetune.errors import FinetuneError
from llama.chat import Message

if TYPE_CHECKING:
    from app.config import Settings
    from app.evaluate.corpus import Corpus

NOTHING = "the question or the answer is empty"
FOUND = 12  # passages looked at for each question


class _Prompted:
    """The application's prompt and refusal."""

    def messages(self, question: str, passages: Sequence[Document]) -> list[Message]:
        return messages_for(question, (), passages)

    def again(self, question: str) -> Message:
        return {"role": "user", "content": follow_up(question)}

    def answer(self, question: GroundedQuestion, passages: Sequence[Document]) -> str | None:
        held = [a for a in question.answers if any(holds(each.page_content, a) for each in passages)]
        return as_it_stands(min(held, key=len), passages) if held else None

    def refusal(self, question: str) -> str:
        return REFUSAL[language_of(question)]


class Retrieved(_Prompted):
    """Passages as the retriever finds them in a knowledge base of the data set's own documents."""

    def __init__(self, corpus: Corpus) -> None:
        self._corpus, self._last = corpus, ("", list[Document]())
        retriever = corpus.services.retriever("default", FOUND)
        if retriever is None:
            raise AppError("the data set's documents hold no text to retrieve from")
        self._retriever = retriever

    def _found(self, question: GroundedQuestion) -> list[Document]:
        if self._last[0] != question.id:
            self._last = (question.id, list(self._retriever.invoke(question.text)))
        return self._last[1]

    def is_gold(self, chunk: Document, question: GroundedQuestion) -> bool:
        return question.paragraph in self._corpus.paragraphs_of(chunk) and _answers(chunk, question)

    def gold(self, question: GroundedQuestion) -> Document | None:
        known: list[Document] = [*self._found(question), *self._chunks.get(question.group, ())]
        for chunk in known:
            if self.is_gold(chunk, question):
                return chunk
        return None

    def others(self, question: GroundedQuestion, count: int) -> list[Document]:
        return [chunk for chunk in self._found(question) if not _answers(chunk, question)][:count]

    def rank(self, question: GroundedQuestion) -> int:
        before = 0
        for chunk in self._found(question):
            if self.is_gold(chunk, question):
                return before
            before += not _answers(chunk, question)
        return before

    @cached_property
    def _chunks(self) -> dict[str, list[Document]]:
        """The chunks of every document."""
        services = self._corpus.services
        store = services.store("default")
        rows = services.ingestor.manifest.files("default")
        return {source: store.chunks_of(row.doc_id) for source, row in rows.items() if row.doc_id}


class Neighbours(_Prompted):
    """Whole paragraphs, and as distractors others of the same document; no index is built."""

    def __init__(self, paragraphs: dict[str, tuple[str, str]], seed: int) -> None:
        """paragraphs: id -> (its document, its text)."""
        self._paragraphs, self._seed = paragraphs, seed

    def _document(self, id_: str) -> Document:
        source, text = self._paragraphs[id_]
        return Document(text, metadata={"source": source})

    def gold(self, question: GroundedQuestion) -> Document | None:
        if question.paragraph not in self._paragraphs:
            return None
        own = self._document(question.paragraph)
        return own if _answers(own, question) else None  # else what is learned would stand in no passage

    def is_gold(self, chunk: Document, question: GroundedQuestion) -> bool:
        own = self._paragraphs.get(question.paragraph or "")
        return own is not None and own[1] == chunk.page_content and _answers(chunk, question)

    def others(self, question: GroundedQuestion, count: int) -> list[Document]:
        draw = random.Random(f"{self._seed}/{question.id}")
        same = [id_ for id_, (source, _) in self._paragraphs.items() if source == question.group]
        draw.shuffle(same)
        if question.answers:
            same = [id_ for id_ in same if id_ != question.paragraph]
        else:  # the paragraph that nearly says it comes first
            same.sort(key=lambda id_: id_ != question.paragraph)
        chunks = (self._document(id_) for id_ in same)
        return [chunk for chunk in chunks if not _answers(chunk, question)][:count]

    def rank(self, question: GroundedQuestion) -> int:
        return 0


def _answers(chunk: Document, question: GroundedQuestion) -> bool:
    return any(holds(chunk.page_content, answer) for answer in question.answers)


def squad_reader(settings: Settings) -> Any:
    """A reader for `finetune` of SQuAD files: articles become a throw-away knowledge base, as in evaluation."""

    def read(path: Path, spec: DataSpec, seed: int, faults: Faults) -> list[Sample]:
        from app.evaluate import corpus
        from app.progress import ingest_bar

        dataset = _chosen(read_squad(path), spec)
        told = set(faults.lines)  # by an earlier table of the same file
        for line in dataset.faults:
            if line not in told and not line.endswith(ALL_THE_SAME):
                faults.left_out(line, empty=line.endswith(EMPTY))
        paragraphs = {id_: (a.name, text) for a in dataset.articles for id_, text in a.paragraphs}
        if spec.retrieve:
            with ingest_bar() as show:
                grounding: Any = Retrieved(corpus.of_articles(dataset.articles, settings, show))
        else:
            grounding = Neighbours(paragraphs, seed)
        questions = [
            GroundedQuestion(
                g.id, g.question, tuple(map(_trimmed, g.answers)), g.source or "", f"{path}:{g.line}", g.paragraph
            )
            for g in dataset.questions
        ]
        # Left out only where samples are made: that a question is lost changes no draw of the others.
        drawn = _drawn(path, questions, spec, seed)
        questions = [replace(q, lost=not _is_held(q, paragraphs)) for q in drawn]
        if spec.turns > 1:
            made = conversations(
                questions, grounding, spec.distractors, spec.unanswerable, seed, spec.turns, spec.elsewhere, faults
            )
        else:
            made = grounded(questions, grounding, spec.distractors, spec.unanswerable, seed, faults)
        untitled = {article.name: _hash(article) for article in dataset.articles if not article.titled}
        return [replace(sample, group=untitled.get(sample.group, sample.group)) for sample in made]

    return read


def _is_held(question: GroundedQuestion, paragraphs: dict[str, tuple[str, str]]) -> bool:
    """Whether a question's own paragraph holds its answer, if it has one; evaluation asks it all the same."""
    _, text = paragraphs[question.paragraph or ""]
    return not question.answers or _answers(Document(text), question)


def _hash(article: Article) -> str:
    """What an article without a title is known by: two files number theirs alike."""
    return hashlib.sha256(article.text.encode()).hexdigest()


def _trimmed(answer: str) -> str:
    """The answer without the comma or full stop that was marked along with it; that of an abbreviation stays."""
    bare = answer.rstrip(" ,;:，；：。")
    return bare[:-1] if bare.endswith(".") and "." not in bare[:-1] and " " in bare else bare or answer


def _drawn(path: Path, questions: list[GroundedQuestion], spec: DataSpec, seed: int) -> list[GroundedQuestion]:
    """Those that are short enough to answer and, of them, as many as wanted; before any is retrieved for.

    Questions of one conversation are drawn together. Raises FinetuneError where none is left.
    """
    given, filters = len(questions), list[str]()
    if spec.answer_length is not None:
        longest = spec.answer_length
        short = [q for q in questions if not q.answers or min(map(len, q.answers)) <= longest]
        filters += [f"answer_length = {longest}"] * (len(short) < len(questions))
        questions = short
    draw = random.Random(seed)
    if spec.impossible < 1:
        kept = [q for q in questions if q.answers or draw.random() < spec.impossible]
        filters += [f"impossible = {spec.impossible:g}"] * (len(kept) < len(questions))
        questions = kept
    if filters and not questions:
        leaves = "leave none" if len(filters) > 1 else "leaves none"
        raise FinetuneError(f"{path}: {' and '.join(filters)} {leaves} of {given} questions; a larger value keeps more")
    if spec.num_samples is None or spec.num_samples >= len(questions):
        return questions
    if spec.turns == 1:
        return draw.sample(questions, spec.num_samples)
    paragraphs = list(dict.fromkeys(q.paragraph for q in questions))
    draw.shuffle(paragraphs)
    drawn: list[GroundedQuestion] = []
    for paragraph in paragraphs:
        if len(drawn) >= spec.num_samples:
            break
        drawn += [q for q in questions if q.paragraph == paragraph]
    return drawn


def _chosen(dataset: Dataset, spec: DataSpec) -> Dataset:
    """Only the articles that the table asks for, "3:17" of them in their order. Raises FinetuneError."""
    if not spec.articles:
        return dataset
    try:
        start, end = (int(each) if each else None for each in spec.articles.split(":"))
    except ValueError as error:
        raise FinetuneError(f'articles is "{spec.articles}"; write it as "0:17", from and up to') from error
    articles = dataset.articles[start:end]
    names = {article.name for article in articles}
    if not names:
        raise FinetuneError(f'articles "{spec.articles}" leaves none of the {len(dataset.articles)} articles')
    return replace(dataset, articles=articles, questions=[q for q in dataset.questions if q.source in names])


def reviewed_reader(settings: Settings) -> Any:
    """A reader of what `finetune make-data` wrote: lines of question, answers, source and passage."""

    def read(path: Path, spec: DataSpec, seed: int, faults: Faults) -> list[Sample]:
        if not path.is_file():
            raise FinetuneError(f"there is no data file {path}; paths count from where you are")
        questions, paragraphs = [], {}
        for number, line in read_lines(path):
            origin = f"{path}:{number}"
            try:
                asked, answers, source, passage = _reviewed(line)
            except ValueError as error:
                faults.add(origin, str(error), empty=str(error) == NOTHING)
                continue
            held = tuple(each for each in answers if holds(passage, each))
            for each in (each for each in answers if held and each not in held):
                faults.note(f"{origin}: its answer '{each[:60]}' does not stand in its passage; it is left out")
            if not held:
                faults.add(origin, f"no answer ('{answers[0][:60]}') stands in its passage")
                continue
            paragraphs[f"{number}"] = (source, passage)
            questions.append(GroundedQuestion(f"{number}", asked, held, source, origin, f"{number}"))
        found = Neighbours(paragraphs, seed)
        return list(grounded(questions, found, spec.distractors, spec.unanswerable, seed, faults))

    return read


def _reviewed(line: str) -> tuple[str, list[str], str, str]:
    """Question, answers, source and passage of a line, which people edit. Raises ValueError saying what is wrong."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError("not JSON") from error
    row = row if isinstance(row, dict) else {}
    question, source, passage, answers = (row.get(name) for name in ("question", "source", "passage", "answers"))
    answers = [answers] if isinstance(answers, str) else answers
    if not isinstance(question, str) or not isinstance(source, str) or not isinstance(passage, str) or answers is None:
        raise ValueError("no question, answers, source and passage")
    if not isinstance(answers, list) or not all(isinstance(each, str) for each in answers):
        raise ValueError("'answers' is not a list of texts")
    if not is_valid("".join([line, question, source, passage, *answers])):
        raise ValueError("not UTF-8")
    answers = [each for each in answers if each.strip()]
    if not question.strip() or not answers:
        raise ValueError(NOTHING)
    return question.strip(), answers, source, passage


def readers(settings: Settings) -> dict[str, Any]:
    """Data formats of the application, for `finetune`."""
    return {"squad": squad_reader(settings), "questions": reviewed_reader(settings)}
