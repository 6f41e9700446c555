"""Many questions from a file: one answer line for every question line, whatever is wrong with single ones."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.answer import Answerer, Question, told
from app.errors import AppError
from app.lines import is_valid, read_lines
from app.result import Answer
from ingest.errors import IngestError
from ingest.filter import Filter

Row = dict[str, Any]
WHOLE = {"id", "question", "answer", "refused", "citations", "retrieved", "model", "timings"}  # of an answer's line


@dataclass(frozen=True)
class Item:
    """One input line. `error` tells why it cannot be asked."""

    id: Any
    question: str = ""
    kb: str | None = None
    extra: Row = field(default_factory=dict)
    filter: Filter | None = None
    adapter: str | None = None
    error: str | None = None


def read_questions(path: Path) -> list[Item]:
    """Reads a .jsonl, .csv or .txt file. Faults of single lines become items with an error.

    Raises AppError when the file as a whole cannot be read.
    """
    readers: dict[str, Callable[[Path], Iterator[Item]]] = {".jsonl": _jsonl, ".csv": _csv, ".txt": _txt}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise AppError(f"{path} is not a .jsonl, .csv or .txt file; questions are read from those")
    try:
        items = list(reader(path))
    except FileNotFoundError as error:
        raise AppError(f"there is no file {path}; give a .jsonl, .csv or .txt file with questions") from error
    except (OSError, csv.Error) as error:
        raise AppError(f"{path} cannot be read ({error})") from error
    if not items:
        raise AppError(f"{path} holds no questions; put one on each line")
    return items


def _jsonl(path: Path) -> Iterator[Item]:
    for number, line in read_lines(path):
        if not is_valid(line):
            yield Item(number, error=f"line {number} is not UTF-8; save the file as UTF-8")
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            yield Item(number, error=f"line {number} is not JSON ({error})")
            continue
        except RecursionError:
            yield Item(number, error=f"line {number} is not a question: its JSON is nested too deeply")
            continue
        yield _item(number, value)


def _csv(path: Path) -> Iterator[Item]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file)
        if "question" not in (reader.fieldnames or ()):
            raise AppError(f"{path} has no column 'question' in its first line; name the columns there")
        for values in reader:
            number = reader.line_num
            row: Row = {key: value for key, value in values.items() if key is not None and value not in (None, "")}
            if not row:
                continue
            if not all(is_valid(value) for value in row.values() if isinstance(value, str)):
                yield Item(number, error=f"line {number} is not UTF-8; save the file as UTF-8")
                continue
            if "answers" in row:
                # A cell holds one gold answer, or a JSON list of several.
                try:
                    parsed = json.loads(row["answers"])
                except ValueError:
                    parsed = None
                row["answers"] = parsed if isinstance(parsed, list) else [row["answers"]]
            yield _item(number, row)


def _txt(path: Path) -> Iterator[Item]:
    for number, line in read_lines(path):
        if is_valid(line):
            yield Item(number, line)
        else:
            yield Item(number, error=f"line {number} is not UTF-8; save the file as UTF-8")


def _item(number: int, value: Any) -> Item:
    """A parsed line as an item; the line's number is its id where it gives none."""
    if not isinstance(value, dict):
        return Item(number, error=f"line {number} is not an object with a 'question'")
    id_, question = value.get("id"), value.get("question")
    id_ = number if id_ is None else id_
    if isinstance(id_, bool) or not isinstance(id_, str | int):
        asked = question if isinstance(question, str) else ""
        return Item(number, asked, error=f"line {number}: 'id' is neither text nor a whole number")
    if question is not None and not isinstance(question, str):
        return Item(id_, error=f"line {number}: 'question' is not text")
    if not question or not question.strip():
        return Item(id_, error=f"line {number} has no 'question'")
    kb, adapter = value.get("kb"), value.get("adapter")
    for name, given in (("kb", kb), ("adapter", adapter)):
        if given is not None and not isinstance(given, str):
            return Item(id_, question, error=f"line {number}: '{name}' is not text")
    extra = {"answers": value["answers"]} if "answers" in value else {}
    try:
        return Item(id_, question, kb, extra, _filter(value.get("filter")), adapter)
    except IngestError as error:
        return Item(id_, question, kb, extra, error=f"line {number}: {error}")


def _filter(value: Any) -> Filter | None:
    """The filter of a line: an object, in a .csv file its JSON. Raises IngestError."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(value)
    if value is not None and not isinstance(value, dict):
        raise IngestError('\'filter\' is not an object such as {"type": "pdf"}')
    return None if value is None else Filter.of(value)


def run(
    items: Sequence[Item],
    out: Path,
    answerer: Answerer,
    kb: str,
    k: int,
    resume: bool = False,
    progress: Callable[[Row], None] = lambda row: None,
    filter: Filter | None = None,
) -> tuple[int, int]:
    """Answers the items, several at once, and writes a line for each to `out`, in order, as soon as it is there.

    resume keeps the answers that `out` already holds and asks what is missing or failed.
    `filter` is for items that have none. Returns how many lines were answered and how many failed in this run.
    Raises AppError when `out` cannot be written, and whatever stops every question (no model, for one).
    """
    done = _kept(out) if resume else {}
    rows = [row for same in done.values() for row in same]
    answered = failed = 0
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        file = _rewritten(out, rows) if resume else out.open("w", encoding="utf-8")
    except OSError as error:
        raise AppError(f"{out} cannot be written ({error.strerror}); choose another file with -o") from error
    with file:
        todo: list[Item] = []
        for item in items:
            if same := done.get(key_of(item.id, item.question)):
                progress(same.pop(0))
            else:
                todo.append(item)
        for row in _in_order(answer_rows(todo, answerer, kb, k, filter)):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            answered, failed = answered + ("error" not in row), failed + ("error" in row)
            progress(row)
    return answered, failed


def answer_rows(
    items: Sequence[Item], answerer: Answerer, kb: str, k: int, filter: Filter | None = None
) -> Iterator[tuple[int, Row]]:
    """(index, output line) of every item, as each is finished; several are answered side by side."""
    asked = []
    for index, item in enumerate(items):
        if item.error is not None:
            yield index, {"id": item.id, "question": item.question, "error": item.error, **item.extra}
        else:
            asked.append(index)
    questions = [
        Question(
            each.question, each.kb or kb, k, filter=filter if each.filter is None else each.filter, adapter=each.adapter
        )
        for each in (items[index] for index in asked)
    ]
    for place, found in answerer.answer_batch(questions):
        item = items[asked[place]]
        result = found.to_json() if isinstance(found, Answer) else {"error": told(found)}
        yield asked[place], {"id": item.id, "question": item.question, **result, **item.extra}


def _in_order(rows: Iterable[tuple[int, Row]]) -> Iterator[Row]:
    """Rows by their index, each as soon as those before it are there."""
    waiting: dict[int, Row] = {}
    following = 0
    for index, row in rows:
        waiting[index] = row
        while following in waiting:
            yield waiting.pop(following)
            following += 1


def key_of(id_: Any, question: str) -> str:
    """What an input line and its answer have in common."""
    return json.dumps([id_, question.strip()], ensure_ascii=False)


def _kept(out: Path) -> dict[str, list[Row]]:
    """Answers of an earlier run. A line cut short by an interruption, a failed one, and one that lacks what an answer
    has, are asked again.
    """
    kept: dict[str, list[Row]] = {}
    if out.exists():
        for _, line in read_lines(out):
            try:
                row = json.loads(line)
                if row.keys() >= WHOLE:
                    kept.setdefault(key_of(row["id"], row["question"]), []).append(row)
            except (ValueError, AttributeError, TypeError):
                continue
    return kept


def _rewritten(out: Path, rows: Iterable[Row]) -> Any:
    """Replaces `out` in one step by the rows that are kept, and opens it behind them."""
    temporary = out.with_name(out.name + ".part")
    with temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    temporary.replace(out)
    return out.open("a", encoding="utf-8")
