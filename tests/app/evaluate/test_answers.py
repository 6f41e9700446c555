"""Figures of answers against values worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.errors import AppError
from app.evaluate.answers import ask, bleu, figures, gold_passages, plan, read_rows, require_answers, scored
from app.evaluate.corpus import Corpus
from app.evaluate.questions import Article, Gold
from app.prompt import REFUSAL
from app.result import Answer
from llama.errors import LlamaError

from ..fakes import Backend, chunk
from .fakes import corpus, piece

HAY = chunk("Each adult llama eats 2.3 kilograms of hay a day.", "feed.txt")
BRIDGE = chunk("The bridge swings over the river.", "bridge.md", 1, 0.4)
ASKED = Gold("hay", "How much hay?", ("2.3 kilograms",), source="feed.txt")
UNKNOWN = Gold("none", "Who is the king?", answerable=False)


def evaluate(questions: Sequence[Gold], place: Corpus, *more: Any, **named: Any) -> list[dict[str, Any]]:
    """Rows in the order in which a run has them."""
    found = plan(questions, place, *more, **named)
    return [*found.kept, *found.failed, *ask(found.todo, place)]


def rows_of(says: str, *questions: Gold) -> list[dict[str, Any]]:
    return evaluate(questions, corpus(Backend([HAY, BRIDGE], says)), "default", 2)


def test_a_right_answer() -> None:
    (row,) = rows_of("A llama eats 2.3 kilograms of hay.", ASKED)
    assert row["scores"]["contains"] == 1.0
    assert row["scores"]["f1"] == pytest.approx(2 * 2 / (6 + 2))
    assert (row["in_context"], row["chunks_cited"], row["chunks_holding"]) == (True, 1, 1)
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
    rows = evaluate([short, long, UNKNOWN], place, "default", 2, gold_context=True)
    by = {row["id"]: row for row in rows}
    assert by["s"]["passages"][0]["text"] == "Llamas eat hay."
    assert by["s"]["retrieved"] == ["care.txt#0"]
    assert by["l"]["passages"][0]["text"] == "They need Salt.", "too long for the prompt: its chunk"
    assert "--gold-context" in by["none"]["error"]
    assert [c.page_content for c in gold_passages(Gold("x", "q", ("gone",), source="care.txt"), place, "default")] == []


def test_a_chunk_counts_once_however_often_it_is_quoted() -> None:
    feed = chunk("Llamas eat 2.3 kilograms of hay. Hay lies dry in the barn. The barn stands by the river.", "feed.txt")
    said = "Llamas eat 2.3 kilograms of hay. Hay lies dry in the barn. The barn stands by the river. The bridge swings."
    (row,) = evaluate([ASKED], corpus(Backend([feed, BRIDGE], said)), "default", 2)
    assert [citation["source"] for citation in row["citations"]] == ["feed.txt"] * 3 + ["bridge.md"]
    assert (row["chunks_cited"], row["chunks_holding"]) == (2, 1)
    assert figures([row])["citation precision"].value == 0.5, "a chunk of two, not three quotes of four"
    assert figures([row])["citation recall"].value == 1.0


def test_gold_passages_are_of_the_page() -> None:
    pages = [piece(f"Page {n} says hay.", "book.pdf", page=n) for n in (1, 2)]
    place = corpus(Backend(pages))
    found = gold_passages(Gold("p", "What?", ("hay",), source="book.pdf", page=2), place, "default")
    assert [passage.metadata["page"] for passage in found] == [2]
    found = gold_passages(Gold("p", "What?", ("hay",), source="book.pdf", page=9), place, "default")
    assert [passage.metadata["page"] for passage in found] == [1, 2], "none is on that page: those that hold the answer"


def test_rows_that_are_known_are_not_asked_again() -> None:
    backend = Backend([HAY], "2.3 kilograms")
    place = corpus(backend)
    first = {row["id"]: row for row in evaluate([ASKED], place, "default", 1)}
    backend.asked = 0
    assert evaluate([ASKED], place, "default", 1, known=first) == list(first.values())
    assert backend.asked == 0
    for other in (Gold("hay", "Another question?", ("x",)), replace(ASKED, kb="default")):
        assert plan([other], place, "default", 1, known=first).kept == []


def test_known_answers_are_scored_by_the_gold_answers_of_today() -> None:
    place = corpus(Backend([HAY], "A llama eats 2.3 kilograms of hay."))
    first = {row["id"]: row for row in evaluate([ASKED], place, "default", 1)}
    for changed in (replace(ASKED, answers=("4 kilograms",)), replace(ASKED, answers=(), answerable=False)):
        (kept,) = plan([changed], place, "default", 1, known=first).kept
        (anew,) = evaluate([changed], place, "default", 1)
        assert kept | {"timings": 0} == anew | {"timings": 0}


def test_another_gold_passage_is_read_anew() -> None:
    pages = [piece(f"Page {n} says hay.", "book.pdf", page=n) for n in (1, 2)]
    place = corpus(Backend(pages, "hay"))
    gold = Gold("p", "What?", ("hay",), source="book.pdf", page=1)
    first = {row["id"]: row for row in evaluate([gold], place, "default", 1, gold_context=True)}
    assert len(plan([gold], place, "default", 1, gold_context=True, known=first).kept) == 1
    assert plan([replace(gold, page=2)], place, "default", 1, gold_context=True, known=first).kept == []


def test_rows_from_a_file(tmp_path: Path) -> None:
    (row,) = rows_of("hay", ASKED)
    whole = json.dumps(row)
    (tmp_path / "r.jsonl").write_text("\n".join([whole, '{"id": "e", "error": "x"}', "[]", whole[: len(whole) // 2]]))
    assert list(read_rows(tmp_path / "r.jsonl")) == ["hay"]
    assert read_rows(tmp_path / "absent.jsonl") == {}


def test_faults_are_rows() -> None:
    (row,) = rows_of("x", Gold("long", "x" * 50_000, ("y",)))
    assert set(row) == {"id", "question", "answers", "error"}
    backend = Backend([HAY], "hay")
    backend.faults = {0: LlamaError("no room")}
    broken, good = evaluate([ASKED, replace(ASKED, id="again")], corpus(backend), "default", 1)[::-1]
    assert (broken["id"], broken["error"]) == ("hay", "no room")
    assert good["scores"]
    with pytest.raises(AppError, match="eval retrieval"):
        require_answers([Gold("q", "What?", relevant={"document": {"a": 1}})])


def test_scored_is_json() -> None:
    backend = Backend([HAY], "hay")
    answer = corpus(backend).services.answerer.answer("How much hay?", "default", 1)
    assert isinstance(answer, Answer)
    assert json.loads(json.dumps(scored(ASKED, answer)))["id"] == "hay"
