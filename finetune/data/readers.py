"""Files of conversations and texts. Single samples that cannot be used are told and left out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from finetune.data.samples import EmptyFile, Faults, Sample, text_of
from finetune.errors import FinetuneError
from llama.chat import Message

# What a conversation's speakers are called in the files, and what the chat template calls them.
OURS = {"user": "user", "assistant": "assistant", "system": "system"}


@dataclass(frozen=True)
class Layout:
    """Names of a file's columns and tags, LLaMA-Factory's where nothing else is said."""

    columns: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)

    def column(self, name: str, default: str) -> str:
        return self.columns.get(name, default)


Reader = Callable[[Path, Layout, Faults], Iterator[Sample]]


def rows_of(path: Path, faults: Faults) -> Iterator[tuple[str, dict[str, Any]]]:
    """(origin, object) of a JSON list or of JSON lines. Raises FinetuneError for a file that is neither."""
    text = text_of(path)
    if text.lstrip().startswith("["):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise FinetuneError(f"{path} is not JSON ({error}); give a list of objects or one object a line") from error
        numbered = [(f"{path}[{number}]", row) for number, row in enumerate(found)]
    else:
        numbered = []
        # Not splitlines(): JSON allows U+2028 and U+0085 in a text as they are, and those are no ends of a row.
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                try:
                    numbered.append((f"{path}:{number}", json.loads(line)))
                except (ValueError, RecursionError):
                    faults.add(f"{path}:{number}", "not JSON")
    for origin, row in numbered:
        if isinstance(row, dict):
            yield origin, row
        else:
            faults.add(origin, "not an object")


def _told(row: Mapping[str, Any]) -> str:
    return ", ".join(map(str, list(row)[:8]))


def read_alpaca(path: Path, layout: Layout, faults: Faults) -> Iterator[Sample]:
    """Rows of instruction, input, output, system, history (Taori et al. 2023, as LLaMA-Factory extends it)."""
    prompt, query = layout.column("prompt", "instruction"), layout.column("query", "input")
    response, system = layout.column("response", "output"), layout.column("system", "system")
    history = layout.column("history", "history")
    for origin, row in rows_of(path, faults):
        asked, answer = row.get(prompt), row.get(response)
        if answer is None and isinstance(row.get("instances"), list) and row["instances"]:
            # The hand-written seed tasks keep input and output one level deeper.
            first = row["instances"][0] if isinstance(row["instances"][0], dict) else {}
            answer, row = first.get("output"), {**row, query: first.get("input", "")}
        if not isinstance(asked, str) or not isinstance(answer, str):
            faults.add(origin, f"no text in '{prompt}' and '{response}' (it has {_told(row)})")
            continue
        try:
            turns, more = [*_system(row, system), *_earlier(row, history)], _text(row, query)
        except FinetuneError as error:
            faults.add(origin, str(error))
            continue
        turns.append({"role": "user", "content": f"{asked}\n{more}" if more else asked})
        for sample in _conversation([*turns, {"role": "assistant", "content": answer}], origin, faults):
            yield replace(sample, input=more)


def _text(row: Mapping[str, Any], column: str) -> str:
    """A column's text, "" where it has none. Raises FinetuneError for anything else."""
    given = row.get(column)
    if given is not None and not isinstance(given, str):
        raise FinetuneError(f"'{column}' is not a text")
    return given or ""


def _system(row: Mapping[str, Any], column: str) -> list[Message]:
    """The system message of a row, if it has one. Raises FinetuneError."""
    text = _text(row, column)
    return [{"role": "system", "content": text}] if text else []


def _earlier(row: Mapping[str, Any], column: str) -> list[Message]:
    """The turns before an Alpaca row's own. Raises FinetuneError."""
    turns: list[Message] = []
    given = row.get(column)
    for pair in [] if given is None else given if isinstance(given, list) else [given]:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(each, str) for each in pair):
            raise FinetuneError(f"'{column}' is not a list of pairs of texts, question and answer")
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return turns


def read_sharegpt(path: Path, layout: Layout, faults: Faults) -> Iterator[Sample]:
    """Rows of conversations: [{from, value}]."""
    tags = layout.tags
    roles = {
        **{tags.get(f"{ours}_tag", theirs): role for ours, theirs, role in (
            ("user", "human", "user"), ("assistant", "gpt", "assistant"), ("observation", "observation", "user"),
            ("function", "function_call", "assistant"), ("system", "system", "system"))},
    }  # fmt: skip
    column = layout.column("messages", "conversations")
    return _turns(path, faults, column, tags.get("role_tag", "from"), tags.get("content_tag", "value"), roles, layout)


def read_messages(path: Path, layout: Layout, faults: Faults) -> Iterator[Sample]:
    """Rows of messages: [{role, content}], as OpenAI has them."""
    return _turns(path, faults, layout.column("messages", "messages"), "role", "content", OURS, layout)


def _turns(
    path: Path, faults: Faults, column: str, by: str, said: str, roles: Mapping[str, str], layout: Layout
) -> Iterator[Sample]:
    system = layout.column("system", "system")
    for origin, row in rows_of(path, faults):
        given = row.get(column)
        if not isinstance(given, list):
            faults.add(origin, f"no list '{column}' (it has {_told(row)})")
            continue
        try:
            turns, unlearned = _system(row, system), list[int]()
            for turn in given:
                role = roles.get(str(turn.get(by))) if isinstance(turn, dict) else None
                if role is None or not isinstance(turn.get(said), str):
                    raise FinetuneError(f"a turn without a known '{by}' ({', '.join(roles)}) and a text in '{said}'")
                if role == "assistant" and not _weight(turn):
                    unlearned.append(len(turns))
                turns.append({"role": role, "content": turn[said]})
        except FinetuneError as error:
            faults.add(origin, str(error))
            continue
        for sample in _conversation(turns, origin, faults):
            yield replace(sample, unlearned=tuple(unlearned))


def _weight(turn: Mapping[str, Any]) -> int:
    """Whether an answer is learned, as OpenAI's files say it. Raises FinetuneError for shares of it."""
    weight = 1 if turn.get("weight") is None else turn["weight"]
    if weight not in (0, 1):
        raise FinetuneError(f"an answer has the weight {weight!r}; there are 0 and 1")
    return int(weight)


def _conversation(turns: list[Message], origin: str, faults: Faults) -> Iterator[Sample]:
    """The sample, unless there is no answer or nothing that it answers, or either is empty."""
    while turns and turns[-1]["role"] != "assistant":
        turns = turns[:-1]
    empty = {turn["role"] for turn in turns if not turn["content"].strip()}
    if not turns:
        faults.add(origin, "no answer to learn from")
    elif "assistant" in empty:
        faults.add(origin, "an answer is empty", empty=True)
    elif "user" in empty:
        faults.add(origin, "a question is empty", empty=True)
    elif len(turns) < 2 or turns[-2]["role"] == "assistant" or all(turn["role"] != "user" for turn in turns):
        faults.add(origin, "nothing was asked", empty=True)
    elif not all(_is_unicode(turn["content"]) for turn in turns):
        faults.add(origin, "not UTF-8")
    else:
        yield Sample(tuple(turns), group=origin, origin=origin)


def _is_unicode(text: str) -> bool:
    """Whether no half of a surrogate pair stands alone in it, as JSON can write one; no vocabulary has it."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def read_text(path: Path, layout: Layout, faults: Faults) -> Iterator[Sample]:
    """Plain text: a .jsonl or .json of rows with `text`, a folder of text files, or one text file."""
    if path.is_dir():
        for each in sorted(p for p in path.rglob("*") if p.suffix in (".txt", ".md")):
            try:
                yield Sample(text=text_of(each), group=str(each), origin=str(each))
            except FinetuneError as error:
                faults.left_out(str(error), empty=isinstance(error, EmptyFile))
    elif path.suffix in (".jsonl", ".json"):
        column = layout.column("prompt", "text")
        for origin, row in rows_of(path, faults):
            text = row.get(column)
            if not isinstance(text, str) or not text.strip():
                faults.add(origin, f"no text in '{column}' (it has {_told(row)})", empty=isinstance(text, str))
            elif not _is_unicode(text):
                faults.add(origin, "not UTF-8")
            else:
                yield Sample(text=text, group=origin, origin=origin)
    else:
        yield Sample(text=text_of(path), group=str(path), origin=str(path))


READERS: dict[str, Reader] = {
    "alpaca": read_alpaca,
    "sharegpt": read_sharegpt,
    "messages": read_messages,
    "text": read_text,
}
