"""Citations rest on words that really stand in the passage."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.documents import Document

from app.cite import MARKER, cite, spans, unmarked, without_markers, words

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


@settings(deadline=None)  # a busy machine is no fault
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


def test_what_stands_there_to_the_letter_comes_before_words() -> None:
    """Both chunks have the words; one has the sentence."""
    loose = chunk("On Mondays, the salt blocks of last week are changed.", "loose.md")
    tight = chunk("They say: salt  blocks are changed\non Mondays. And so on.", "tight.md", 1, 0.3)
    cited = cite("Salt blocks are changed on Mondays.", [loose, tight])
    assert [(c.source, c.quote) for c in cited.citations] == [
        ("tight.md", "They say: salt  blocks are changed\non Mondays.")
    ]
    assert cited.sentences[0].support == "exact"
    assert cite("On Mondays salt blocks get changed.", [loose, tight]).sentences[0].support == "words"
    assert cite("salt blocks are changed on Monday", [tight]).sentences[0].support == "words", "whole words only"


def test_a_number_that_the_passage_lacks_is_not_supported_by_it() -> None:
    cited = cite("Each adult llama eats 3.5 kilograms of hay a day.", [FEED])
    assert (cited.citations, cited.sentences[0].support) == ([], None)
    year = chunk("The voucher is valid 18 months.", "policy-2026.md", headings="Version 4")
    assert cite("In version 4 of 2026 the voucher is valid 18 months.", [year]).citations


PRICES = chunk(
    "# Price list 2026\n\n| Code | Article | Price |\n| --- | --- | --- |\n| BW-101 | Espresso cup | £14.00 |\n"
    "| BW-311 | Tea pot | £104.00 |\n",
    "prices.md",
)


@pytest.mark.parametrize(
    ("answer", "quote"),
    [
        ("The price of BW-311 is £104.00.", "| BW-311 | Tea pot | £104.00 |"),
        ("The price of BW-311 is £14.00.", None),
        ("The tea pot costs £14.00.", None),
        ("Price list 2026", None),
        ("The list is of 2026.", None),
    ],
)
def test_a_number_stands_in_the_quote_and_a_quote_is_one_row_and_no_heading(answer: str, quote: str | None) -> None:
    assert [each.quote for each in cite(answer, [PRICES]).citations] == ([] if quote is None else [quote])


def test_a_number_may_stand_in_the_heading_above_or_the_file_s_name() -> None:
    text = chunk("The tea pot is sold out.", "prices-2026.md", headings="Shop > Stall 14")
    for said in ("In 2026 the tea pot is sold out.", "At stall 14 the tea pot is sold out."):
        assert len(cite(said, [text]).citations) == 1
    assert cite("In 2025 the tea pot is sold out.", [text]).citations == []


def test_a_title_ends_no_sentence() -> None:
    answer = "The contact is Dr. Anke Vogel. She is in on Mondays."
    assert [answer[a:b] for a, b in spans(answer)] == ["The contact is Dr. Anke Vogel.", "She is in on Mondays."]


def test_numbers_of_empty_list_items_are_not_cited() -> None:
    table = chunk("| Tents | 15 |\n| Trunks | 2 |", "gear.md")
    assert not cite("1. 2.\n2.\n15.", [table]).citations
    assert cite("15.", [table]).citations, "alone it may be the answer"
    items = cite("8. Trunks: 2\n9. Tents: 15", [table]).sentences
    assert [item.support for item in items] == ["words", "words"], "an item's number is none of the passage's"


def test_likelihood_finds_what_words_do_not() -> None:
    sentence = "The beasts receive mineral licks weekly."
    assert cite(sentence, [PDF, FEED]).sentences[0].support is None
    cited = cite(sentence, [PDF, FEED], lambda said, chunks: 1)
    assert (cited.sentences[0].support, cited.citations[0].source) == ("likelihood", "feed.md")
    assert cited.citations[0].quote in FEED.page_content
    assert not cite(sentence, [PDF, FEED], lambda said, chunks: None).citations


@pytest.mark.parametrize(
    ("sentence", "likeliest", "supported"),
    [
        ("The beasts receive 4 mineral licks weekly.", 1, False),
        ("The beasts receive mineral licks for 2.3 weeks.", 1, True),
        ("The beasts receive mineral licks for 2.3 weeks.", 0, False),  # another chunk has the number
        ("营地每周供应25次晚餐。", 2, False),
        ("营地每周供应6次晚餐。", 2, True),
    ],
)
def test_likelihood_supports_no_number_that_the_passage_lacks(sentence: str, likeliest: int, supported: bool) -> None:
    cited = cite(sentence, [PDF, FEED, ZH], lambda said, chunks: likeliest)
    assert [each.support for each in cited.sentences] == (["likelihood"] if supported else [None])
    assert bool(cited.citations) == supported


def test_likelihood_supports_no_number_of_another_row() -> None:
    assert not cite("Whoever buys one tea pot now pays 14.00 pounds.", [PRICES], lambda said, chunks: 0).citations
    assert cite("Whoever buys one tea pot now pays 104.00 pounds.", [PRICES], lambda said, chunks: 0).citations


def test_the_model_is_not_asked_about_a_number_that_no_passage_has() -> None:
    def likely(said: str, chunks: Sequence[Document]) -> int | None:
        raise AssertionError("the model was asked")

    assert not cite("The beasts receive 4 mineral licks weekly.", [PDF, FEED], likely).citations


def test_what_only_repeats_the_question_is_not_cited() -> None:
    said = "Salt blocks are changed. They are changed on Mondays."
    cited = cite(said, [FEED], lambda said, chunks: 0, "When are salt blocks changed?")
    assert [each.support for each in cited.sentences] == [None, "words"]
    assert [numbers for _, numbers in cited.pieces] == [(), (1,)]
    yes = cite(said, [FEED], question="Are salt blocks changed?")
    assert [each.support for each in yes.sentences] == ["exact", "words"]


MARKS = st.lists(
    st.sampled_from(["hay", " ", "[", "]", "1", "23", "[4]", "【", "】", "［5］", ",", "、", "-", "[1, 2]", "a", "。"]),
    max_size=14,
)


@settings(deadline=None)
@given(parts=MARKS, cuts=st.lists(st.integers(0, 40), max_size=6))
def test_no_citation_number_of_the_model_is_ever_shown(parts: list[str], cuts: list[int]) -> None:
    """Whatever the model writes, in whatever pieces: no number in brackets is left, and nothing else goes."""
    text = "".join(parts)
    assert not MARKER.search(without_markers(text))
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    streamed = "".join(unmarked(text[a:b] for a, b in pairwise(places)))
    assert streamed.rstrip() == without_markers(text), "what a page shows as it comes begins where the answer does"


@settings(deadline=None)
@given(parts=MARKS, chunks=st.lists(st.sampled_from([FEED, PDF, ZH]), max_size=3))
def test_no_citation_outside_of_what_was_retrieved(parts: list[str], chunks: list[Document]) -> None:
    words_of = [word for each in (FEED, PDF, ZH) for word in each.page_content.split()[:6]]
    text = without_markers("".join(part + " " + words_of[i % len(words_of)] for i, part in enumerate(parts)))
    cited = cite(text, chunks, lambda said, given: 0)
    known = {each.metadata["chunk_id"] for each in chunks}
    assert {c.chunk_id for c in cited.citations} <= known
    shown = {n for sentence in cited.sentences for n in sentence.citations}
    assert shown == {c.n for c in cited.citations} == set(range(1, len(cited.citations) + 1))
    assert all(bool(sentence.citations) == (sentence.support is not None) for sentence in cited.sentences)


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
