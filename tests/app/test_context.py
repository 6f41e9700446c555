"""Chunks become passages: neighbours one, sections whole where there is room, and citations name real chunks."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.documents import Document

from app.answer import Answerer
from app.context import merged, near_best, parts_of, widened
from app.prompt import build
from ingest.chunk import split
from llama.sampling import SamplingParams

from .fakes import Backend, chunk

EN = " ".join(f"The hut number {n} has {n + 3} beds and stands at {n * 7 + 1200} metres." for n in range(60))
ZH = "".join(f"第{n}号山屋有{n + 3}张床，位于海拔{n * 7 + 1200}米。" for n in range(60))


def chunks_of(text: str, doc: str = "d", headings: str = "", overlap: int = 20, tokens: int = 60) -> list[Document]:
    """As ingest cuts and names them; a token is a word, or a Chinese character."""

    def count(piece: str) -> int:
        return len(piece.split()) if piece.isascii() else len(piece)

    found = split([Document(text)], count, tokens, overlap)
    for n, each in enumerate(found):
        each.metadata = {
            "chunk_id": f"{doc}-{n:05d}", "doc_id": doc, "ordinal": n, "source": f"{doc}.md", "page": None,
            "headings": headings, "score": 0.5,
        }  # fmt: skip
    return found


def ids(found: list[Document]) -> list[str]:
    return [each.metadata["chunk_id"] for each in found]


@pytest.mark.parametrize("text", [EN, ZH])
@pytest.mark.parametrize("overlap", [0, 20])
def test_all_chunks_merged_are_the_text(text: str, overlap: int) -> None:
    chunks = chunks_of(text, overlap=overlap)
    assert len(chunks) > 5
    random.Random(1).shuffle(chunks)
    [passage] = merged(chunks)
    assert "".join(passage.page_content.split()) == "".join(text.split())
    assert passage.metadata["chunk_id"] == chunks[0].metadata["chunk_id"], "the best one gives its name"
    assert [each.metadata["ordinal"] for each in parts_of(passage)] == list(range(len(chunks)))


@given(st.permutations(range(7)), st.integers(1, 7))
def test_merging_loses_and_invents_nothing(order: list[int], count: int) -> None:
    chunks = chunks_of(EN)[:7]
    chosen = [chunks[i] for i in order[:count]]
    found = merged(chosen)
    assert sorted(each for passage in found for each in ids(parts_of(passage))) == sorted(ids(chosen))
    places = [min(order.index(part.metadata["ordinal"]) for part in parts_of(each)) for each in found]
    assert places == sorted(places), "in the order of the best of each"
    runs = sum(1 for i in set(order[:count]) if i - 1 not in order[:count])
    assert len(found) == runs
    for passage in found:
        for part in parts_of(passage):
            assert part.page_content.strip() in passage.page_content


@pytest.mark.parametrize("key", ["doc_id", "headings", "page"])
def test_only_neighbours_of_a_section_are_merged(key: str) -> None:
    a, b = chunks_of(EN)[:2]
    assert len(merged([a, b])) == 1
    b.metadata[key] = "other"
    assert merged([a, b]) == [a, b]
    assert merged([Document("x", metadata={"chunk_id": "x"}), a]) == [Document("x", metadata={"chunk_id": "x"}), a]


def test_sections_grow_as_far_as_there_is_room() -> None:
    chunks = chunks_of(EN)

    def grown(room: int) -> list[str]:
        return ids(widened([chunks[4]], lambda chunk: chunks, room, lambda text: 10))

    assert grown(0) == ids([chunks[4]])
    assert set(grown(20)) == set(ids(chunks[3:6]))
    assert set(grown(10_000)) == set(ids(chunks))
    two = ids(widened([chunks[0], chunks[9]], lambda chunk: chunks, 30, lambda text: 10))
    assert (two[:2], set(two[2:])) == (ids([chunks[0], chunks[9]]), set(ids(chunks[1:4]))), "the best one's first"
    by_hand = Document("x", metadata={"chunk_id": "x"})
    assert widened([by_hand], lambda chunk: chunks, 99, len) == [by_hand]


def test_what_does_not_fit_ends_the_growth_on_its_side() -> None:
    chunks = chunks_of(EN)
    long = chunks[5].page_content
    found = widened([chunks[4]], lambda chunk: chunks, 100, lambda text: 1000 if text == long else 10)
    assert set(ids(found)) == set(ids(chunks[:5])), "nothing behind the gap"


class Sectioned(Backend):
    """A backend whose chunks are those of one document, two of which are found."""

    def section(self, kb: str, chunk: Document) -> list[Document]:
        return chunks_of(EN)

    @property
    def engine(self):  # type: ignore[no-untyped-def]
        found = super().engine
        found.tokenizer = type("T", (), {"encode": staticmethod(str.split)})
        return found


@pytest.mark.parametrize(("sections", "context", "neighbours"), [(False, 4096, 0), (True, 4096, 8), (True, 420, 0)])
def test_citations_name_chunks_that_were_read(sections: bool, context: int, neighbours: int) -> None:
    chunks = chunks_of(EN)
    backend = Sectioned([chunks[2], chunks[6]], "The hut number 9 has 12 beds.", context)
    answerer = Answerer(backend, 3072, SamplingParams(max_tokens=192), sections=sections)
    answer = answerer.answer("How many beds has hut number 9?", "default", 2)
    real = {each.metadata["chunk_id"]: each.page_content for each in chunks}
    assert answer.retrieved[:2] == ids([chunks[2], chunks[6]])
    assert len(answer.retrieved) - 2 >= neighbours
    assert len(answer.retrieved) == 2 or neighbours
    assert len(set(answer.retrieved)) == len(answer.retrieved)
    assert answer.citations
    for citation in answer.citations:
        assert citation.chunk_id in answer.retrieved
        assert citation.text == real[citation.chunk_id]
        assert citation.quote in citation.text
    if neighbours:
        assert "number 9 has 12" in answer.citations[0].quote
        assert len(backend.messages[-1]["content"].split("[2]")) == 1, "one passage, as there is no gap left"


@pytest.mark.parametrize("best_last", [False, True])
def test_order_and_what_goes_first_when_it_is_too_much(best_last: bool) -> None:
    chunks = [Document(f"text {n} " * 20, metadata={"chunk_id": str(n), "source": f"{n}.md"}) for n in range(4)]

    def encode(messages):  # type: ignore[no-untyped-def]
        return [0] * sum(len(each["content"].split()) for each in messages)

    whole = build("What?", [], chunks, encode, 5000, best_last)
    text = whole.messages[-1]["content"]
    order = sorted(range(4), key=lambda n: text.index(f"{n}.md"))
    assert order == ([3, 2, 1, 0] if best_last else [0, 1, 2, 3])
    assert text.index("[1]") < text.index("[2]")
    less = build("What?", [], chunks, encode, len(whole.ids) - 1, best_last)
    assert [each.metadata["chunk_id"] for each in less.chunks] == ["0", "1", "2"], "the worst goes, wherever it stands"


@pytest.mark.parametrize(
    ("relevances", "read"),
    [
        ([0.9, 0.6, 0.5], 2),
        ([0.9, 0.5, 0.6, 0.1], 3),  # put into this order by what read them
        ([0.5, 0.9, 0.1], 2),
        ([0.9], 1),
        ([-0.1, -0.4], 2),
        ([0.4, -0.1], 1),
        ([None, None], 2),
        ([], 0),
    ],
)
def test_what_is_far_behind_the_best_is_not_read(relevances: list[float | None], read: int) -> None:
    found = [chunk("x", number=n, **({} if r is None else {"relevance": r})) for n, r in enumerate(relevances)]
    assert near_best(found, 0.6) == found[:read]
    assert near_best(found, 0.0) == found


def test_what_is_not_read_is_found_all_the_same() -> None:
    near, far = chunk("The key has the code 4471.", "a.md", relevance=0.9), chunk("Snow.", "b.md", relevance=0.2)
    backend = Backend([near, far], "The key has the code 4471.")
    for least, passages in ((0.6, [near]), (0.0, [near, far])):
        answerer = Answerer(backend, 3072, SamplingParams(max_tokens=9), min_relevance=least)
        answer = answerer.answer("What code has the key?", "default", 2)
        assert answer.passages == passages
        assert answer.retrieved == [each.metadata["chunk_id"] for each in (near, far)]
