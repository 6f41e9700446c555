"""The prompt fits its budget to the token, and loses whole pieces only."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import AppError
from app.prompt import Turn, as_it_stands, build, language_of, messages_for, passage
from llama.chat import Message

from .fakes import chunk

CHUNKS = [chunk(f"passage {n} " + "word " * 20, f"f{n}.md", n) for n in range(6)]
HISTORY = [Turn(f"earlier question {n}", "earlier answer " + "x " * 10) for n in range(3)]


def count(messages: Sequence[Message]) -> list[int]:
    return [0] * sum(1 + len(message["content"].split()) for message in messages)


def test_everything_stays_when_there_is_room() -> None:
    prompt = build("what?", HISTORY, CHUNKS, count, 10_000)
    assert prompt.chunks == CHUNKS
    assert [m["role"] for m in prompt.messages] == ["system", *["user", "assistant"] * 3, "user"]
    last = prompt.messages[-1]["content"]
    assert last.startswith("Question: what?\n")
    assert last.endswith("Question: what?\nAnswer:")
    assert all(c.page_content.strip() in last for c in CHUNKS)


@given(budget=st.integers(60, 320))
def test_the_budget_holds_and_no_chunk_is_cut(budget: int) -> None:
    try:
        prompt = build("what?", HISTORY, CHUNKS, count, budget)
    except AppError:
        assert len(count(messages_for("what?", [], CHUNKS[:1]))) > budget
        return
    assert len(prompt.ids) <= budget
    assert prompt.chunks == CHUNKS[: len(prompt.chunks)], "chunks go from the end"
    text = prompt.messages[-1]["content"]
    assert [c.page_content.strip() in text for c in CHUNKS] == [c in prompt.chunks for c in CHUNKS]
    one_more = CHUNKS[: len(prompt.chunks) + 1]
    if len(prompt.chunks) < len(CHUNKS):
        assert len(prompt.messages) == 2, "history goes before any chunk does"
        assert len(count(messages_for("what?", [], one_more))) > budget, "a chunk that fits is not dropped"


def test_the_oldest_turn_goes_first() -> None:
    full = len(count(messages_for("what?", HISTORY, CHUNKS)))
    prompt = build("what?", HISTORY, CHUNKS, count, full - 1)
    assert prompt.messages[1]["content"] == "earlier question 1"


def test_a_question_that_leaves_no_room_is_refused() -> None:
    with pytest.raises(AppError, match="shorten the question"):
        build("word " * 500, [], CHUNKS, count, 300)


def test_chinese_questions_are_asked_in_chinese() -> None:
    assert language_of("羊驼吃什么？") == "zh"
    assert language_of("What does a llama eat?") == "en"
    messages = messages_for("羊驼吃什么？", [], [chunk("干草。", "a.pdf", page=3)])
    assert "用中文" in messages[0]["content"]
    assert "第 3 页" in messages[-1]["content"]


def test_a_passage_names_its_place() -> None:
    assert passage(2, chunk(" text ", "h.pdf", page=3, headings="A > B")) == "[2] h.pdf, page 3, A > B\ntext"
    assert passage(1, chunk("text", "h.md")) == "[1] h.md\ntext"


def test_an_answer_begins_as_its_passage_has_it() -> None:
    read = [chunk("It hangs in Somerset House (since 1907), 4 miles off."), chunk("名字是罗马帝国。")]
    for answer, begun in (
        ("Somerset House", " Somerset House"),
        ("since 1907", "since 1907"),
        ("4 miles", "4 miles"),
        ("罗马帝国", "罗马帝国"),
        ("Rome", "Rome"),
    ):
        assert as_it_stands(answer, read) == begun
