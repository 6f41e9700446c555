"""Figures of answers against values worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.answer import Answer
from app.errors import AppError
from app.evaluate.answers import bleu, evaluate, figures, gold_passages, read_rows, require_answers, scored
from app.evaluate.questions import Article, Gold
from app.prompt import REFUSAL

from ..fakes import Backend, chunk
from .fakes import corpus, piece

HAY = chunk("Each adult llama eats 2.3 kilograms of hay a day.", "feed.txt")
BRIDGE = chunk("The bridge swings over the river.", "bridge.md", 1, 0.4)
ASKED = Gold("hay", "How much hay?", ("2.3 kilograms",), source="feed.txt")
UNKNOWN = Gold("none", "Who is the king?", answerable=False)


def rows_of(says: str, *questions: Gold) -> list[dict]:
    return list(evaluate(questions, corpus(Backend([HAY, BRIDGE], says)), "default", 2))


def test_a_right_answer() -> None:
    (row,) = rows_of("A llama eats 2.3 kilograms of hay.", ASKED)
    assert row["scores"]["contains"] == 1.0
    assert row["scores"]["f1"] == pytest.approx(2 * 2 / (6 + 2))
    assert (row["in_context"], row["citations_holding"], row["cited_holding"]) == (True, 1, 1)
    assert row["groundedness"] == 1.0
    assert [p["chunk_id"] for p in row["passages"]] == ["feed.txt-0", "bridge.md-1"]
    values = {name: score.value for name, score in figures([row]).items()}
    assert values["citation precision"] == values["citation recall"] == values["groundedness"] == 1.0
    assert "refusal f1" not in values, "nothing here should have been refused"


def test_a_wrong_citation_costs_precision_and_recall() -> None:
    (row,) = rows_of("The bridge swings.", ASKED)
    values = {name: score.value for name, score in figures([row]).items()}
    assert (values["contains"], values["citation precision"], values["citation recall"]) == (0, 0, 0)
    assert values["answer in context"] == 1
    assert values["contains, if in context"] == 0


def test_refusals() -> None:
    """Of two refusals one is right; of two unanswerable questions one is refused: P = R = F1 = 1/2."""
    refused = rows_of(REFUSAL["en"], ASKED, UNKNOWN)
    invented = rows_of("King Arthur.", UNKNOWN)
    rows = [*refused, *invented, *rows_of("2.3 kilograms", ASKED)]
    values = {name: score.value for name, score in figures(rows).items()}
    assert values["refusal precision"] == values["refusal recall"] == values["refusal f1"] == 0.5
    assert values["false refusals"] == 0.5
    assert (figures(rows)["contains"].value, figures(rows)["contains"].n) == (0.5, 2)
    assert refused[0]["scores"] == {"exact_match": 0, "f1": 0, "contains": 0, "rouge_l": 0}
    assert refused[0]["groundedness"] is None


def test_bleu_with_its_signature() -> None:
    en = rows_of("the cat sat on the mat today", Gold("a", "Where?", ("the cat sat on the mat today",)))
    zh = rows_of("我爱北京天安门", Gold("b", "爱什么？", ("我爱北京天安门", "天安门")))
    by = {each["language"]: each for each in bleu([*en, *zh])}
    assert (by["en"]["value"], by["zh"]["value"]) == (pytest.approx(100), pytest.approx(100))
    assert ("tok:13a" in by["en"]["signature"], "tok:zh" in by["zh"]["signature"]) == (True, True)
    # Papineni et al. (2002), section 2.1: the candidate "the the the ..." has a clipped unigram precision of 2/7.
    the = rows_of("the the the the the the the", Gold("c", "What?", ("the cat is on the mat",)))
    assert bleu(the)[0]["value"] < 10
    refused = rows_of(REFUSAL["en"], Gold("c", "What?", (REFUSAL["en"],)))
    assert bleu(refused)[0]["value"] == 0, "a refusal is no answer"


def test_gold_context_replaces_retrieval() -> None:
    article = Article("care.txt", (("care.txt#0", "Llamas eat hay."), ("care.txt#1", "word " * 200 + "Salt.")))
    backend = Backend([BRIDGE, piece("They need Salt.", "care.txt")], "hay")
    place = corpus(backend, [article])
    short = Gold("s", "What?", ("hay",), source="care.txt", paragraph="care.txt#0")
    long = Gold("l", "What?", ("Salt",), source="care.txt", paragraph="care.txt#1")
    rows = list(evaluate([short, long, UNKNOWN], place, "default", 2, gold_context=True))
    by = {row["id"]: row for row in rows}
    assert by["s"]["passages"][0]["text"] == "Llamas eat hay."
    assert by["s"]["retrieved"] == ["care.txt#0"]
    assert by["l"]["passages"][0]["text"] == "They need Salt.", "too long for the prompt: its chunk"
    assert "--gold-context" in by["none"]["error"]
    assert [c.page_content for c in gold_passages(Gold("x", "q", ("gone",), source="care.txt"), place, "default")] == []


def test_rows_that_are_known_are_not_asked_again() -> None:
    backend = Backend([HAY], "2.3 kilograms")
    place = corpus(backend)
    first = {row["id"]: row for row in evaluate([ASKED], place, "default", 1)}
    backend.asked = 0
    assert list(evaluate([ASKED], place, "default", 1, known=first)) == list(first.values())
    assert backend.asked == 0
    other = Gold("hay", "Another question?", ("x",))
    list(evaluate([other], place, "default", 1, known=first))
    assert backend.asked == 1


def test_rows_from_a_file(tmp_path: Path) -> None:
    (row,) = rows_of("hay", ASKED)
    whole = json.dumps(row)
    (tmp_path / "r.jsonl").write_text("\n".join([whole, '{"id": "e", "error": "x"}', "[]", whole[: len(whole) // 2]]))
    assert list(read_rows(tmp_path / "r.jsonl")) == ["hay"]
    assert read_rows(tmp_path / "absent.jsonl") == {}


def test_faults_are_rows() -> None:
    (row,) = rows_of("x", Gold("long", "x" * 50_000, ("y",)))
    assert set(row) == {"id", "question", "answers", "error"}
    with pytest.raises(AppError, match="eval retrieval"):
        require_answers([Gold("q", "What?", relevant={"document": {"a": 1}})])


def test_scored_is_json() -> None:
    backend = Backend([HAY], "hay")
    answer = corpus(backend).services.answerer.answer("How much hay?", "default", 1)
    assert isinstance(answer, Answer)
    assert json.loads(json.dumps(scored(ASKED, answer)))["id"] == "hay"
