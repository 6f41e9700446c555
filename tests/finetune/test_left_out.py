"""Rows of which nothing can be learned: what is said of them, and how they are counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finetune.data.quality import quality
from finetune.data.readers import READERS, Layout
from finetune.data.samples import Faults, Sample


def read(path: Path, form: str) -> tuple[list[Sample], Faults]:
    faults = Faults()
    return list(READERS[form](path, Layout(), faults)), faults


def rows(path: Path, *given: dict[str, Any]) -> Path:
    path.write_text("\n".join(map(json.dumps, given)), encoding="utf-8")
    return path


def spoken(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"conversations": [{"from": who, "value": text} for who, text in turns]}


def said(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": who, "content": text} for who, text in turns]}


EMPTY: list[tuple[str, dict[str, Any], str]] = [
    ("alpaca", {"instruction": "", "output": "La."}, "a question is empty"),
    ("alpaca", {"instruction": " \n", "input": "", "output": "La."}, "a question is empty"),
    ("alpaca", {"instruction": "Go on.", "output": "La.", "history": [["", "Do."]]}, "a question is empty"),
    ("alpaca", {"instruction": "Sing.", "output": " "}, "an answer is empty"),
    ("sharegpt", spoken(("human", ""), ("gpt", "La.")), "a question is empty"),
    ("sharegpt", spoken(("system", "Sing."), ("gpt", "La.")), "nothing was asked"),
    ("messages", said(("user", " "), ("assistant", "La.")), "a question is empty"),
    ("messages", said(("system", "Sing."), ("assistant", "La.")), "nothing was asked"),
    ("messages", said(("system", "Sing."), ("system", "Loud."), ("assistant", "La.")), "nothing was asked"),
]


@pytest.mark.parametrize(("form", "row", "why"), EMPTY)
def test_where_nothing_is_asked_nothing_is_learned(form: str, row: dict[str, Any], why: str, tmp_path: Path) -> None:
    path = rows(tmp_path / "a.jsonl", row)
    samples, faults = read(path, form)
    assert samples == []
    assert faults.lines == [f"{path}:1: {why}; it is left out"]
    assert (faults.count, faults.empty) == (1, 1)


@pytest.mark.parametrize(
    ("form", "row"),
    [
        ("alpaca", {"instruction": "", "input": "Sing.", "output": "La."}),
        ("sharegpt", spoken(("system", ""), ("human", "Sing."), ("gpt", "La."))),
        ("messages", said(("assistant", "Hello."), ("user", "Sing."), ("assistant", "La."))),
    ],
)
def test_what_is_asked_in_another_place_is_learned(form: str, row: dict[str, Any], tmp_path: Path) -> None:
    samples, faults = read(rows(tmp_path / "a.jsonl", row), form)
    assert [sample.messages[-1]["content"] for sample in samples] == ["La."]
    assert faults.lines == []


@pytest.mark.parametrize(
    ("form", "row"),
    [
        ("alpaca", {"instruction": "Sing \ud83d", "output": "La."}),
        ("alpaca", {"instruction": "Sing.", "output": "La \udc00."}),
        ("sharegpt", spoken(("human", "Sing \ud83d"), ("gpt", "La."))),
        ("messages", said(("user", "Sing."), ("assistant", "La \ud83d"))),
        ("text", {"text": "La \ud83d"}),
    ],
)
def test_half_a_surrogate_pair_is_one_row_s_fault(form: str, row: dict[str, Any], tmp_path: Path) -> None:
    """JSON can write one, and no vocabulary can read it; a whole pair is a letter."""
    whole = json.loads(json.dumps(row).replace("\\ud83d", "\\ud83e\\udd99").replace("\\udc00", ""))
    path = rows(tmp_path / "a.jsonl", row, whole)
    samples, faults = read(path, form)
    assert [sample.origin for sample in samples] == [f"{path}:2"]
    assert faults.lines == [f"{path}:1: not UTF-8; it is left out"]


def test_tools_speak_with_the_roles_that_the_template_has(tmp_path: Path) -> None:
    """A call is the model's to make; what comes of it is told to the model."""
    talk = (("human", "Snow?"), ("function_call", "weather()"), ("observation", "snow"), ("gpt", "Yes."))
    [sample], faults = read(rows(tmp_path / "a.jsonl", spoken(*talk)), "sharegpt")
    assert [turn["role"] for turn in sample.messages] == ["user", "assistant", "user", "assistant"]
    assert faults.lines == []


def test_a_folder_of_texts(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name, text in (("a.txt", "Snow."), ("deep/b.md", "Ice."), ("c.py", "pass"), ("d.txt", " \n")):
        (tmp_path / name).write_text(text)
    samples, faults = read(tmp_path, "text")
    assert [(s.text, s.group) for s in samples] == [
        ("Snow.", str(tmp_path / "a.txt")),
        ("Ice.", str(tmp_path / "deep" / "b.md")),
    ]
    assert [line.partition(";")[0] for line in faults.lines] == [f"{tmp_path / 'd.txt'} is empty"]
    assert (faults.count, faults.empty) == (1, 1)


def test_the_report_counts_what_is_left_out_and_of_it_what_is_empty() -> None:
    faults = Faults()
    faults.add("f:1", "a question is empty", empty=True)
    faults.add("f:2", "not an object")
    faults.note("f:3: one of its answers is left out")
    report = quality([], [], faults, 0)
    assert (report.left_out, report.empty) == (2, 1)
    assert report.lines()[0] == "0 examples of 0 samples; 2 left out (0 too long, 1 empty)"
    assert report.to_json()["empty"] == 1


def test_rows_of_text_without_a_word_are_empty_and_those_without_a_column_wrong(tmp_path: Path) -> None:
    _, faults = read(rows(tmp_path / "a.jsonl", {"text": " "}, {"txt": "La."}), "text")
    assert (faults.count, faults.empty) == (2, 1)
