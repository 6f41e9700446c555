"""Ranks and recall against values worked out by hand."""

from __future__ import annotations

import math

import pytest

from app.errors import AppError
from app.evaluate.corpus import unfindable
from app.evaluate.questions import Article, Gold
from app.evaluate.retrieval import evaluate, figures, latency, over_k

from ..fakes import Backend
from .fakes import corpus, piece

CARE = Article("care.txt", (("care#0", "Llamas eat hay. They like it."), ("care#1", "Salt blocks hang by the door.")))
OTHER = Article("other.txt", (("other#0", "The bridge swings."),))


def test_paragraphs_of_chunks() -> None:
    place = corpus(Backend(), [CARE, OTHER])
    both = piece(CARE.text, "care.txt")
    assert place.paragraphs_of(both) == ["care#0", "care#1"], "two whole ones; the same share, so in their order"
    assert place.paragraphs_of(piece("They like it.", "care.txt")) == ["care#0"], "a part lies in one"
    across = "it.\n\nSalt blocks hang by the door."
    assert place.paragraphs_of(piece(across, "care.txt")) == ["care#1"], "a few letters of the other do not count"
    assert place.paragraphs_of(piece("gone", "care.txt")) == []
    assert place.paragraphs_of(piece("The bridge swings.", "elsewhere.txt")) == []


def test_ranks_and_figures() -> None:
    """Document at rank 2 (two chunks of another before it are one document), paragraph at rank 3."""
    chunks = [
        piece("The bridge", "other.txt"),
        piece("bridge swings.", "other.txt"),
        piece("Salt blocks hang by the door.", "care.txt"),
        piece("Llamas eat hay. They", "care.txt"),
    ]
    gold = Gold("q", "What?", ("hay",), relevant={"document": {"care.txt": 1}, "paragraph": {"care#0": 1}})
    rows = evaluate([gold], corpus(Backend(chunks), [CARE, OTHER]), "default", "dense")
    (row,) = rows
    assert row["retrieved"] == {"document": ["other.txt", "care.txt"], "paragraph": ["other#0", "care#1", "care#0"]}
    assert row["holds_answer"] == [False, False, False, True]
    values = {name: score.value for name, score in figures(rows).items()}
    assert values["document recall@1"] == 0
    assert values["document recall@4"] == 1
    assert values["document mrr@10"] == 0.5
    assert values["document ndcg@10"] == pytest.approx(1 / math.log2(3))
    assert values["paragraph mrr@10"] == pytest.approx(1 / 3)
    assert values["paragraph ndcg@10"] == pytest.approx(1 / math.log2(4))
    assert [values[f"answer in context@{k}"] for k in (1, 4, 5, 10)] == [0, 1, 1, 1]
    assert next(iter(values)) == "document recall@1"
    curves = over_k(rows)
    assert curves["document"] == [0] + [1] * 9
    assert curves["paragraph"] == [0, 0] + [1] * 8
    assert curves["answer in context"] == [0, 0, 0] + [1] * 7


def test_several_relevant_documents_share_the_recall() -> None:
    gold = Gold("q", "What?", relevant={"document": {"a": 2, "b": 1, "gone": 1}})
    rows = evaluate([gold], corpus(Backend([piece("x", "b"), piece("y", "a")])), "default", "dense")
    values = {name: score.value for name, score in figures(rows).items()}
    assert values["document recall@1"] == pytest.approx(1 / 3)
    assert values["document recall@5"] == pytest.approx(2 / 3)
    ideal = 2 + 1 / math.log2(3) + 1 / math.log2(4)
    assert values["document ndcg@10"] == pytest.approx((1 + 2 / math.log2(3)) / ideal)
    assert "answer in context@4" not in values, "no gold answer is known"


def test_pages() -> None:
    gold = Gold("q", "What?", ("x",), relevant={"document": {"a": 1}, "page": {"a#2": 1}})
    chunks = [piece("x", "a", page=1), piece("y", "a", page=2)]
    (row,) = evaluate([gold], corpus(Backend(chunks)), "default", "dense")
    assert row["scores"]["document"]["recall@1"] == 1
    assert row["scores"]["page"]["recall@1"] == 0
    assert row["scores"]["page"]["mrr@10"] == 0.5


def test_nothing_retrieved_counts_as_nothing_found() -> None:
    gold = Gold("q", "What?", ("x",), relevant={"document": {"a": 1}})
    found = evaluate([gold], corpus(Backend([])), "default", "dense")
    assert all(score.value == 0 for score in figures(found).values())
    assert figures(found)["document mrr@10"].n == 1


def test_a_question_of_an_unknown_knowledge_base_is_left_out() -> None:
    right = {"document": {"a": 1}}
    here, gone, empty = (Gold(kb or "here", "What?", ("x",), relevant=right, kb=kb) for kb in (None, "gone", "empty"))
    place = corpus(Backend([piece("x", "a")]))
    rows = evaluate([here, gone, empty], place, "default", "dense")
    assert [(row["id"], row["scores"]["document"]["recall@1"]) for row in rows] == [("here", 1.0), ("empty", 0.0)]
    with pytest.raises(AppError, match="no knowledge base 'gone'"):
        evaluate([gone], place, "default", "dense")
    told = [(gold.id, what) for gold, what in unfindable([here, gone], place)]
    assert told == [("gone", "there is no knowledge base 'gone' for question 'gone'; it is left out")]


def test_ten_documents_are_ranked_where_one_has_many_chunks() -> None:
    """39 chunks of one document come first; the 40th is of the right one, the second document."""
    chunks = [piece(f"{n} words", "long.txt", chunk_id=str(n)) for n in range(39)] + [piece("hay", "right.txt")]
    gold = Gold("q", "What?", relevant={"document": {"right.txt": 1}})
    (row,) = evaluate([gold], corpus(Backend(chunks)), "default", "dense")
    assert row["scores"]["document"]["mrr@10"] == 0.5


def test_what_cannot_be_measured_is_told() -> None:
    gold = Gold("q", "What?", ("x",), relevant={"document": {"a": 1}})
    with pytest.raises(AppError, match="nothing to measure"):
        evaluate([Gold("q", "What?", answerable=False)], corpus(Backend()), "default", "dense")
    with pytest.raises(AppError, match="no documents"):
        evaluate([gold], corpus(Backend()), "empty", "dense")


def test_latency() -> None:
    assert latency([0.001] * 95 + [1.0] * 5) == {"p50_ms": 1.0, "p95_ms": pytest.approx(50.95)}
