"""Citations rest on words that really stand in the passage."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.cite import cite, spans, without_markers, words

from .fakes import chunk

FEED = chunk(
    "# Feeding\nEach adult llama eats 2.3 kilograms of hay a day. Salt blocks are changed on Mondays.\n"
    "| Age | Hay |\n| --- | --- |\n| Older than 15 years | 2.0 kg, soaked |\n",
    "feed.md",
)
PDF = chunk("Highfold was founded in 2009 by Ingrid\nSolvane and Tomas Kerrin, who\nwalked.", "h.pdf", 1, page=2)
ZH = chunk("末班车18:20发车，票价6克朗。请不要把车开到营地门口。", "游客指南.md", 2)


@pytest.mark.parametrize(
    ("answer", "source", "quote"),
    [
        ("2.3 kilograms of hay.", "feed.md", "Each adult llama eats 2.3 kilograms of hay a day."),
        ("They are changed on Mondays", "feed.md", "Salt blocks are changed on Mondays."),
        ("It is 2.0 kg, soaked.", "feed.md", "| Older than 15 years | 2.0 kg, soaked |"),
        (
            "Ingrid Solvane and Tomas Kerrin founded it.",
            "h.pdf",
            "Highfold was founded in 2009 by Ingrid\nSolvane and Tomas Kerrin, who\nwalked.",
        ),
        ("票价是6克朗。", "游客指南.md", "末班车18:20发车，票价6克朗。"),
    ],
)
def test_the_quote_is_the_sentence_that_supports(answer: str, source: str, quote: str) -> None:
    (citation,) = cite(answer, [PDF, FEED, ZH]).citations
    assert (citation.n, citation.source, citation.quote) == (1, source, quote)
    assert citation.quote in citation.text


def test_what_nothing_supports_is_not_cited() -> None:
    cited = cite("The moon is made of green cheese. Salt blocks are changed on Mondays.", [FEED])
    assert [c.n for c in cited.citations] == [1]
    assert [numbers for _, numbers in cited.pieces] == [(), (1,)]


def test_less_than_half_of_the_words_is_no_support() -> None:
    assert not cite("Salt blocks cost seven crowns apiece.", [FEED]).citations, "two words of six"
    assert cite("Salt blocks cost crowns.", [FEED]).citations, "two words of four"


def test_ties_go_to_the_more_similar_chunk() -> None:
    same = [chunk("Salt blocks are changed on Mondays.", name, n, 0.9 - 0.1 * n) for n, name in enumerate("ab")]
    assert [citation.source for citation in cite("They are changed on Mondays.", same).citations] == ["a"]


def test_each_quote_has_a_number() -> None:
    answer = (
        "Llamas eat 2.3 kilograms of hay.\nHighfold was founded in 2009. Hay: 2.3 kilograms. Salt blocks on Mondays."
    )
    cited = cite(answer, [PDF, FEED])
    assert [c.source for c in cited.citations] == ["feed.md", "h.pdf", "feed.md"]
    assert [numbers for _, numbers in cited.pieces] == [(1,), (2,), (1,), (3,)]
    assert cited.citations[2].quote == "Salt blocks are changed on Mondays."


def test_rows_of_a_table_without_marks_are_not_part_of_the_quote() -> None:
    rows = "Place Beds\nTern Lake 6\nBlue Tarn 5\nSable Hut 14\nNotch Hut 10\n"
    table = chunk(rows + "The key box of Sable Hut is opened with the code 4471. The key hangs.", "h.pdf", page=8)
    (citation,) = cite("The code of the key box at Sable Hut is 4471.", [table]).citations
    assert citation.quote == "The key box of Sable Hut is opened with the code 4471."


@given(
    answer=st.text(max_size=120)
    | st.lists(st.sampled_from([FEED, PDF, ZH])).map(lambda c: "".join(x.page_content for x in c)),
    texts=st.lists(st.text(max_size=80), max_size=3),
)
def test_nothing_is_invented_or_lost(answer: str, texts: list[str]) -> None:
    """Whatever the answer: quotes stand in their chunks, numbers in the list, and the pieces joined are the answer."""
    chunks = [FEED, ZH, *(chunk(text, f"{n}.txt", n) for n, text in enumerate(texts))]
    cited = cite(answer, chunks)
    known = {c.metadata["chunk_id"]: c for c in chunks}
    assert all(c.quote and c.quote in known[c.chunk_id].page_content for c in cited.citations)
    assert [c.n for c in cited.citations] == list(range(1, len(cited.citations) + 1))
    assert {n for _, numbers in cited.pieces for n in numbers} == {c.n for c in cited.citations}
    assert "".join(text for text, _ in cited.pieces) == answer


def test_spans() -> None:
    text = "## Head\nA sentence over\ntwo. Another!\n\n| a | b |\n| 1 | 2 |\n1. item one\n- item\n  goes on\n好。再见！"
    assert [text[a:b] for a, b in spans(text)] == [
        "## Head",
        "A sentence over\ntwo.",
        "Another!",
        "| a | b |",
        "| 1 | 2 |",
        "1. item one",
        "- item\n  goes on\n好。",
        "再见！",
    ]


def test_words_fold_what_does_not_matter() -> None:
    assert words("The llamas’ hay, 2.3 kilograms at 05:40") == {"llama", "hay", "2.3", "kilogram", "05:40"}
    assert words("吃干草") == {"吃干", "干草"}


def test_markers_of_the_model_are_dropped() -> None:
    assert without_markers("Hay [1], and salt [12] [3]. [99]") == "Hay, and salt."
    assert without_markers("an array[3000] stays") == "an array[3000] stays"
