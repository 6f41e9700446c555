"""Questions with gold answers, from SQuAD files and our JSON lines (BEIR folders: beir.py).

What is wrong with single questions is told with file and line, and the rest goes on.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from app.errors import AppError
from app.evaluate.metrics import holds
from app.lines import is_valid, read_lines
from ingest.loaders.decode import tidy

# Said of a question whose answers stand nowhere: it is asked, and training tells of it in words of its own.
ALL_THE_SAME = "it is scored all the same"
# Of a question without a word to ask or to answer.
EMPTY = ("has no text; it is left out", "has no gold answers; it is left out")


@dataclass(frozen=True)
class Gold:
    """A question and what is right about it.

    `relevant` maps ids of documents or paragraphs to a grade above 0, by level; a level that is not known is absent.
    """

    id: str
    question: str
    answers: tuple[str, ...] = ()
    answerable: bool = True
    source: str | None = None
    page: int | None = None
    paragraph: str | None = None
    kb: str | None = None
    relevant: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    line: int = 0


@dataclass(frozen=True)
class Article:
    """A document of a throw-away knowledge base: its file's name and its paragraphs (id, text).

    titled: whether its name says what it is; else it is a number that every file has.
    """

    name: str
    paragraphs: tuple[tuple[str, str], ...]
    titled: bool = True

    @property
    def text(self) -> str:
        return "\n\n".join(text for _, text in self.paragraphs)


@dataclass
class Dataset:
    """Questions, the documents that come with them (if any), and the faults that were found, a line each."""

    name: str
    questions: list[Gold]
    articles: list[Article] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def sample(self, limit: int | None, seed: int) -> Dataset:
        """At most `limit` of the questions, drawn by `seed`, in their order; every document stays."""
        if limit is None or limit >= len(self.questions):
            return self
        kept = sorted(random.Random(seed).sample(range(len(self.questions)), limit))
        return replace(self, questions=[self.questions[i] for i in kept])


class Ids:
    """Knows the ids that were seen and where."""

    def __init__(self, path: Path, faults: list[str]) -> None:
        self.path, self.faults, self.seen = path, faults, dict[str, int]()

    def fault(self, line: int, what: str) -> None:
        self.faults.append(f"{self.path}:{line}: {what}")

    def is_new(self, id_: str, line: int) -> bool:
        if id_ in self.seen:
            self.fault(line, f"id '{id_}' was on line {self.seen[id_]} already; this question is left out")
            return False
        self.seen[id_] = line
        return True


def finished(dataset: Dataset, path: Path) -> Dataset:
    """The set itself. Raises AppError when no question of it is left."""
    if not dataset.questions:
        why = f" ({dataset.faults[0]})" if dataset.faults else ""
        raise AppError(f"{path} holds no question that can be scored{why}")
    return dataset


def text_of(path: Path) -> str:
    """A file's text. Raises AppError for one that is absent, empty or cannot be read."""
    try:
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except FileNotFoundError as error:
        raise AppError(f"there is no file {path}; give one that exists") from error
    except OSError as error:
        raise AppError(f"{path} cannot be read ({error.strerror})") from error
    if not text.strip():
        raise AppError(f"{path} is empty; give a file with questions")
    return text


# -- our JSON lines ----------------------------------------------------------------------------------------------


def read_jsonl(path: Path) -> Dataset:
    """Lines of {question, answers, id?, source?, page?, answerable?, kb?}. Raises AppError when none can be scored."""
    text_of(path)
    dataset = Dataset(path.stem, [])
    ids = Ids(path, dataset.faults)
    for number, line in read_lines(path):
        try:
            gold = _gold(number, line)
        except ValueError as error:
            ids.fault(number, f"{error}; this line is left out")
            continue
        if ids.is_new(gold.id, number):
            dataset.questions.append(gold)
    return finished(dataset, path)


def _gold(number: int, line: str) -> Gold:
    """A line as a question. Raises ValueError saying what is wrong with it."""
    if not is_valid(line):
        raise ValueError("not UTF-8")
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError("not JSON") from error
    if not isinstance(row, dict) or not isinstance(row.get("question"), str) or not row["question"].strip():
        raise ValueError("no 'question'")
    answers = row.get("answers", [])
    answers = [answers] if isinstance(answers, str) else answers
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise ValueError("'answers' is not a list of texts")
    answers = [answer for answer in answers if answer.strip()]
    answerable = row.get("answerable", True)
    if not isinstance(answerable, bool):
        raise ValueError("'answerable' is neither true nor false")
    if answerable and not answers:
        raise ValueError('no gold answers (a question without one has "answerable": false)')
    source, page, kb = row.get("source"), row.get("page"), row.get("kb")
    if not all(value is None or isinstance(value, str) for value in (source, kb)):
        raise ValueError("'source' or 'kb' is not text")
    if page is not None and (isinstance(page, bool) or not isinstance(page, int)):
        raise ValueError("'page' is not a whole number")
    relevant: dict[str, dict[str, int]] = {}
    if answerable and source:
        relevant["document"] = {source: 1}
        if page is not None:
            relevant["page"] = {page_id(source, page): 1}
    return Gold(
        id=str(row.get("id", number)),
        question=row["question"].strip(),
        answers=tuple(answers) if answerable else (),
        answerable=answerable,
        source=source,
        page=page,
        kb=kb,
        relevant=relevant,
        line=number,
    )


def page_id(source: str, page: int | None) -> str:
    """How a page is named among the results."""
    return f"{source}#{page}"


# -- SQuAD -------------------------------------------------------------------------------------------------------


def read_squads(paths: Sequence[Path]) -> Dataset:
    """Several files as one set; with more than one, ids and documents carry their file's name in front."""
    if len(paths) == 1:
        return read_squad(paths[0])
    name = "+".join(path.stem for path in paths)
    if len({path.stem for path in paths}) < len(paths):
        raise AppError(f"{name}: two of the files have the same name; rename one, their documents would mix")
    sets = [read_squad(path, f"{path.stem}-") for path in paths]
    return Dataset(
        name,
        [gold for each in sets for gold in each.questions],
        [article for each in sets for article in each.articles],
        [fault for each in sets for fault in each.faults],
    )


def read_squad(path: Path, prefix: str = "") -> Dataset:
    """SQuAD v1.1 and v2.0, and the sets in its form (XQuAD, DRCD, CMRC 2018). One document for each article.

    `prefix` stands before every id and document's name.
    """
    text = text_of(path)
    try:
        articles = json.loads(text)["data"]
        if not isinstance(articles, list):
            raise TypeError
    except json.JSONDecodeError as error:
        raise AppError(f"{path}:{error.lineno}: not JSON ({error.msg}); give a file in SQuAD's form") from error
    except (KeyError, TypeError, RecursionError) as error:
        raise AppError(f"{path} is not in SQuAD's form: an object with a list 'data' of articles") from error
    return finished(_Squad(path, text, prefix).read(articles), path)


class _Squad:
    def __init__(self, path: Path, text: str, prefix: str) -> None:
        self.path, self.text, self.prefix = path, text, prefix
        self.dataset = Dataset(path.stem, [])
        self.ids = Ids(path, self.dataset.faults)
        self.at = 0  # questions are looked for behind the last one, so that the file is searched once
        self.line = 1

    def read(self, articles: list[Any]) -> Dataset:
        for number, article in enumerate(articles, 1):
            paragraphs = article.get("paragraphs") if isinstance(article, dict) else None
            if not isinstance(paragraphs, list):
                self.ids.fault(self.line, f"article {number} has no list 'paragraphs'; it is left out")
                continue
            title = file_stem(article.get("title"))
            name = f"{self.prefix}{title or 'article'}-{number:04d}.txt"
            kept: list[tuple[str, str]] = []
            for place, paragraph in enumerate(paragraphs):
                context = paragraph.get("context") if isinstance(paragraph, dict) else None
                if not isinstance(context, str) or not context.strip():
                    self.ids.fault(self.line, f"a paragraph of article {number} has no 'context'; it is left out")
                    continue
                if not is_valid(context):
                    self.find(context[:40])
                    self.ids.fault(self.line, f"a paragraph of article {number} is not UTF-8; it is left out")
                    continue
                id_ = f"{name}#{place}"
                kept.append((id_, tidy(context.strip())))
                self.questions(paragraph.get("qas"), name, *kept[-1])
            if kept:
                self.dataset.articles.append(Article(name, tuple(kept), bool(title)))
        return self.dataset

    def questions(self, asked: Any, name: str, paragraph: str, context: str) -> None:
        for number, row in enumerate(asked if isinstance(asked, list) else [], 1):
            id_ = str(row.get("id", f"{paragraph}.{number}")) if isinstance(row, dict) else ""
            self.find(json.dumps(id_, ensure_ascii=False))
            question = row.get("question") if isinstance(row, dict) else None
            if not isinstance(question, str) or not question.strip():
                self.ids.fault(self.line, f"question '{id_}' {EMPTY[0]}")
                continue
            texts = _answers(row.get("answers"))
            answerable = not row.get("is_impossible", False)
            if not is_valid(question + "".join(texts)):
                self.ids.fault(self.line, f"question '{id_}' is not UTF-8; it is left out")
            elif answerable and not texts:
                self.ids.fault(self.line, f"question '{id_}' {EMPTY[1]}")
            elif self.ids.is_new(id_, self.line):
                if answerable and not any(text in context or holds(context, text) for text in texts):
                    self.ids.fault(
                        self.line,
                        f"no gold answer of question '{id_}' ('{texts[0][:60]}') stands in its paragraph; "
                        f"{ALL_THE_SAME}",
                    )
                levels = {"document": {name: 1}, "paragraph": {paragraph: 1}}
                self.dataset.questions.append(
                    Gold(
                        id=self.prefix + id_,
                        question=question.strip(),
                        answers=texts if answerable else (),
                        answerable=answerable,
                        source=name,
                        paragraph=paragraph,
                        relevant=levels if answerable else {},
                        line=self.line,
                    )
                )

    def find(self, what: str) -> None:
        """Moves on to where `what` stands in the file, for the line's number."""
        found = self.text.find(what, self.at)
        if found >= 0:
            self.line += self.text.count("\n", self.at, found)
            self.at = found


def _answers(given: Any) -> tuple[str, ...]:
    """Gold answers, each once: a list of {"text"}, or {"text": [...]} as the datasets library writes them."""
    if isinstance(given, dict) and isinstance(given.get("text"), list):
        given = [{"text": text} for text in given["text"]]
    texts = [each.get("text") for each in given if isinstance(each, dict)] if isinstance(given, list) else []
    return tuple(dict.fromkeys(text.strip() for text in texts if isinstance(text, str) and text.strip()))


def file_stem(title: Any) -> str:
    """A title as part of a file's name."""
    if not isinstance(title, str) or not is_valid(title):
        return ""
    return "".join(letter if letter.isalnum() else "-" for letter in title)[:60].strip("-")
