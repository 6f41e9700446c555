"""Questions about documents as training data: which are left out, what is said of it, and what is learned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from app.config import Settings
from app.grounded import readers
from app.refusal import is_refusal
from finetune.config import DataSpec
from finetune.data.samples import Faults, Sample


def squad_of(path: Path, *articles: dict[str, Any]) -> Path:
    """articles: `title` where there is one, and paragraphs of (text, {question: its answer, None for impossible})."""
    data = []
    for article in articles:
        paragraphs = []
        for text, asked in article["paragraphs"]:
            qas = [
                {"id": f"{path.stem}/{question}", "question": question, "is_impossible": answer is None,
                 "answers": [] if answer is None else [{"text": answer}]}
                for question, answer in asked.items()
            ]  # fmt: skip
            paragraphs.append({"context": text, "qas": qas})
        data.append({**article, "paragraphs": paragraphs})
    path.write_text(json.dumps({"data": data}, indent=1))
    return path


def told(settings: Settings, path: Path, **spec: Any) -> tuple[list[Sample], list[str]]:
    """The samples and, without where, what is said of those left out."""
    faults, table = Faults(), DataSpec(file=str(path), format="squad", **{"unanswerable": 0.0, **spec})
    samples = list(readers(settings)["squad"](path, table, 1, faults))
    return samples, [line.partition(": ")[2] for line in faults.lines]


LOST = "no passage holds its answer; it is left out"


@pytest.mark.parametrize("turns", [1, 4])
@pytest.mark.parametrize("retrieve", [True, False])
def test_an_answer_that_stands_in_no_passage_is_not_learned(
    retrieve: bool, turns: int, settings: Settings, tmp_path: Path
) -> None:
    """Though evaluation asks it; and whatever is asked beside it in its conversation is learned."""
    asked = {"How many?": "fifty", "When?": "in May", "Where?": "at Sable", "Who was king?": None}
    path = squad_of(tmp_path / "s.json", {"title": "T", "paragraphs": [("The herd is shorn in May at Sable.", asked)]})
    samples, lines = told(settings, path, retrieve=retrieve, turns=turns)
    answers = [m["content"] for sample in samples for m in sample.messages if m["role"] == "assistant"]
    assert sorted(a for a in answers if not is_refusal(a)) == [" at Sable", " in May"]
    assert len(answers) == 3
    assert lines == [LOST]


def test_where_no_question_of_a_conversation_has_its_passage_each_is_told_why(
    settings: Settings, tmp_path: Path
) -> None:
    bad = ("The herd is shorn in May.", {"How many?": "fifty", "Who was king?": None, "How old?": "sixty"})
    good = ("Snow closes the pass in October.", {"When does it snow?": "October"})
    path = squad_of(tmp_path / "s.json", {"title": "T", "paragraphs": [bad, good]})
    samples, lines = told(settings, path, retrieve=False, turns=4)
    assert len(samples) == 1
    assert sorted(lines) == [
        LOST,
        LOST,
        "no question beside it in its conversation has an answer that a passage holds; it is left out",
    ]
