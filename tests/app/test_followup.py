"""Which questions lean on the conversation, and what they become."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document

from app.followup import accepted, concerns, expanded, request, stands_alone
from app.prompt import Turn

EVAL = Path(__file__).resolve().parents[2] / "data" / "eval"
ROWS: list[dict[str, Any]] = [json.loads(line) for line in (EVAL / "followups.jsonl").read_text("utf-8").splitlines()]
HUT = [Turn("Where do we sleep on the second night?", "At Sable Hut."), Turn("How high is Sable Hut?", "2,410 m")]
TOWER = [Turn("北塔有多高？", "40米。")]


@pytest.mark.parametrize("row", ROWS, ids=[row["id"] for row in ROWS])
def test_the_rule_on_the_questions_written_for_it(row: dict[str, Any]) -> None:
    assert stands_alone(row["question"]) != row["follows"]


def test_nearly_all_sample_questions_stand_alone() -> None:
    asked = [json.loads(line)["question"] for line in (EVAL / "sample.jsonl").read_text("utf-8").splitlines()]
    assert sum(map(stands_alone, asked)) >= 0.95 * len(asked)


@pytest.mark.parametrize(
    "question",
    [
        "Who is the landlord?",
        "What is the deposit?",
        "When is the sale?",
        "Where's the office?",
        "谁是房东？",
        "办公室在哪里？",
    ],
)
def test_a_short_question_that_names_its_thing_stands_alone(question: str) -> None:
    assert stands_alone(question)
    assert not stands_alone("And the sale?")
    assert not stands_alone("多少？")


def test_what_a_reading_found_concerns_the_question_in_any_form_of_its_words() -> None:
    asked = "How much does it weigh?"
    assert concerns([Document("Weights: 120 g")], asked)
    assert not concerns([Document("Prices: 14.00")], asked)
    assert concerns([Document("羊驼的重量是120斤")], "它的重量呢？")


@pytest.mark.parametrize(
    ("written", "taken"),
    [
        ("What is the code of the key box at Sable Hut?", True),
        ("  What is the code of the key box at Sable Hut?\nIt is 4471.", True),
        ("What is the code of the key box there?", False),  # nothing added
        ("What is the code of the key box at Condor Hut?", False),  # made up
        ("What is the code of Sable Hut?", False),  # the key box is lost
        ("", False),
        ("What is the code of the key box at Sable Hut? " + "Sable Hut " * 40, False),
    ],
)
def test_a_rewrite_keeps_the_question_and_makes_nothing_up(written: str, taken: bool) -> None:
    found = accepted(written, "What is the code of the key box there?", HUT)
    assert found == ("What is the code of the key box at Sable Hut?" if taken else None)


def test_a_chinese_rewrite() -> None:
    assert accepted("北塔是什么时候建的？", "它是什么时候建的？", TOWER) == "北塔是什么时候建的？"
    assert accepted("南塔是什么时候建的？", "它是什么时候建的？", TOWER) is None


def test_the_terms_of_the_last_exchange_stand_behind_the_question() -> None:
    assert expanded("Who built it?", HUT) == "Who built it? (high Sable Hut 2,410)"
    assert expanded("它是谁建的？", TOWER) == "它是谁建的？ (北塔有 40米)"
    assert expanded("How high is Sable Hut, with its 2,410 m?", HUT) == "How high is Sable Hut, with its 2,410 m?"
    assert expanded("Who built it?", []) == "Who built it?"
    assert len(expanded("And?", [Turn(" ".join(f"word{n}" for n in range(99)), "x" * 9999)])) < 200


def test_the_model_is_shown_the_last_two_turns_in_the_question_s_language() -> None:
    messages = request("Who built it?", [Turn("Old?", "Old."), *HUT])
    assert messages[-1]["content"].startswith("Q: Where do we sleep")
    assert messages[-1]["content"].endswith("Last question: Who built it?")
    assert "改写" in request("它是谁建的？", TOWER)[0]["content"]
