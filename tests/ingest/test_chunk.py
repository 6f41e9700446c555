"""Splitting: by structure, within the limit, losing nothing, in linear time."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.documents import Document

from ingest.chunk import embed_text, split
from ingest.embed import Embedder
from tests.ingest.fakes import TOKEN

ENGLISH = "Llamas eat hay. They spit when they are cross! Is that so? Yes, 2.5 times a day. "
CHINESE = "羊驼每天吃干草。它们生气时会吐口水！真的吗？是的；每天两次。"


def count(text: str) -> int:
    return len(TOKEN.findall(text))


def cut(text: str, limit: int = 30, overlap: int = 0, counter: Callable[[str], int] = count) -> list[Document]:
    return split([Document(text)], counter, limit, overlap)


def texts(chunks: list[Document]) -> list[str]:
    return [chunk.page_content for chunk in chunks]


def visible(text: str) -> str:
    return "".join(text.split())


class TestStructure:
    def test_sections_have_their_path_and_do_not_mix(self) -> None:
        chunks = cut("intro\n\n# A\n\none\n\n## B\n\ntwo\n\n### C\n\nthree\n\n## D\n\nfour\n\n# E\n\nfive\n")
        assert [(chunk.metadata["headings"], chunk.page_content) for chunk in chunks] == [
            ("", "intro"),
            ("A", "# A\n\none"),
            ("A > B", "## B\n\ntwo"),
            ("A > B > C", "### C\n\nthree"),
            ("A > D", "## D\n\nfour"),
            ("E", "# E\n\nfive"),
        ]

    def test_a_heading_without_text_goes_with_the_section_under_it(self) -> None:
        chunks = cut("# Guide\n\n## Food\n\nhay\n\n# Alone\n\n# Next\n\ntext\n")
        assert [(chunk.metadata["headings"], chunk.page_content) for chunk in chunks] == [
            ("Guide > Food", "# Guide\n\n## Food\n\nhay"),
            ("Alone", "# Alone"),
            ("Next", "# Next\n\ntext"),
        ]

    def test_no_headings_inside_code(self) -> None:
        chunks = cut("# A\n\n```sh\n# not a heading\n| no | table |\n```\n\n~~~\n# nor here\n~~~\n", limit=100)
        assert [chunk.metadata["headings"] for chunk in chunks] == ["A"]
        assert cut("````\n```\n# x\n````\n# B\n\ny")[-1].metadata["headings"] == "B"

    def test_headings_are_stripped_of_marks(self) -> None:
        assert cut("## **Food** ##\n\nx")[0].metadata["headings"] == "Food"
        assert cut("#hashtag\n\nx")[0].metadata["headings"] == ""

    def test_pages_stay_apart_and_headings_go_on(self) -> None:
        pages = [
            Document("# Rules\n\nfirst page", metadata={"page": 1}),
            Document("second page", metadata={"page": 2}),
        ]
        chunks = split(pages, count, 50, 10)
        assert [(chunk.metadata["page"], chunk.metadata["headings"], chunk.page_content) for chunk in chunks] == [
            (1, "Rules", "# Rules\n\nfirst page"),
            (2, "Rules", "second page"),
        ]

    def test_paragraphs_stay_whole_where_they_fit(self) -> None:
        paragraphs = [f"Paragraph {i} has a few words. And a second sentence." for i in range(6)]
        for chunk in texts(cut("\n\n".join(paragraphs), limit=26)):
            assert all(part in paragraphs for part in chunk.split("\n\n"))

    @pytest.mark.parametrize(("text", "ends"), [(ENGLISH, ".!?"), (CHINESE, "。！？；")])
    def test_long_paragraphs_end_at_sentences(self, text: str, ends: str) -> None:
        chunks = texts(cut(text * 12))
        assert len(chunks) > 5
        assert all(chunk.rstrip()[-1] in ends for chunk in chunks)

    def test_urls_and_decimals_are_no_sentence_ends(self) -> None:
        text = "See https://a.example/x?y=1&z=2.5 for v1.2.3 now " * 8
        assert all("?y=1&z=2.5" in chunk for chunk in texts(cut(text, limit=40)))

    def test_list_items_stay_whole(self) -> None:
        items = [f"- item {i} goes on\n  over two lines" for i in range(12)]
        for chunk in texts(cut("\n".join(items), limit=24)):
            assert chunk.startswith("- item")


class TestTables:
    TABLE = "| Trek | Price |\n| --- | --- |\n" + "".join(f"| trek {i} | {i} euro |\n" for i in range(30))

    def test_rows_stay_whole_under_a_repeated_header(self) -> None:
        chunks = texts(cut("# Prices\n\n" + self.TABLE + "\nAfter the table.", limit=60))
        rows = [line for chunk in chunks for line in chunk.split("\n") if line.startswith("| trek")]
        assert rows == [f"| trek {i} | {i} euro |" for i in range(30)]
        tables = [chunk for chunk in chunks if "| trek" in chunk]
        assert len(tables) > 4
        assert all(chunk.count("| Trek | Price |\n| --- | --- |\n") == 1 for chunk in tables)

    def test_the_header_is_not_repeated_where_the_table_begins(self) -> None:
        chunks = texts(cut("A sentence of eight words stands here first. " * 3 + "\n\n" + self.TABLE, limit=60))
        assert all(chunk.count("| Trek |") <= 1 for chunk in chunks)

    def test_a_huge_header_is_not_repeated(self) -> None:
        table = "| " + "word " * 40 + "|\n| --- |\n" + "| a |\n" * 50
        assert sum(chunk.count("---") for chunk in texts(cut(table))) == 1

    def test_a_row_above_the_limit(self) -> None:
        table = "| H |\n| --- |\n| " + "word " * 100 + "|\n| b |\n"
        chunks = texts(cut(table))
        assert sum(chunk.count("word") for chunk in chunks) == 100
        assert all(count(chunk) <= 30 for chunk in chunks)

    def test_pipes_without_a_rule_are_no_table(self) -> None:
        assert "".join(texts(cut("| a |\n| b |\n" * 40))).count("| a |") == 40


class TestLimits:
    def test_overlap_is_whole_sentences(self) -> None:
        sentences = [f"Llama number {i} eats hay." for i in range(40)]  # 6 tokens each
        chunks = [chunk.strip().split(". ") for chunk in texts(cut(" ".join(sentences), limit=30, overlap=13))]
        assert len(chunks) > 5
        for before, after in pairwise(chunks):
            assert after[:2] == [each.rstrip(".") for each in before[-2:]], "two sentences fit into 13 tokens"

    def test_no_overlap_between_sections(self) -> None:
        assert texts(cut("# A\n\nOne. Two.\n\n# B\n\nThree.", limit=30, overlap=15))[1] == "# B\n\nThree."

    def test_the_path_counts(self) -> None:
        text = "# A long heading of seven words here\n\n" + ENGLISH * 20
        chunks = cut(text, limit=40)
        assert all(count(chunk.metadata["headings"] + "\n" + chunk.page_content) <= 40 for chunk in chunks)

    def test_a_path_that_is_too_long_is_shortened(self) -> None:
        text = "# Outer heading of five words\n## " + "very " * 400 + "long\n\n### Inner\n\nbody text"
        chunks = cut(text, limit=30)
        assert chunks[-1].metadata["headings"].endswith("Inner")
        assert all(count(embed_text(chunk)) <= 30 for chunk in chunks)
        assert visible("".join(texts(chunks))) == visible(text)

    def test_a_counter_that_is_not_additive(self) -> None:
        """Parts may count less than the whole; the limit holds all the same."""
        for counter in (lambda text: len(text) // 40, lambda text: len(text.encode()) // 3, len):
            chunks = cut(ENGLISH * 30, limit=50, counter=counter)
            assert all(counter(chunk.page_content) <= 50 for chunk in chunks)
            assert visible("".join(texts(chunks))) == visible(ENGLISH * 30)

    def test_characters_of_many_tokens(self) -> None:
        chunks = cut("🦙" * 100, limit=32, counter=lambda text: 12 * len(text))
        assert all(len(chunk) <= 2 for chunk in texts(chunks))
        assert "".join(texts(chunks)) == "🦙" * 100


PIECES = st.sampled_from(
    [
        *("# Head\n", "## Sub\n\n", "text. ", "more text! ", "\n", "\n\n", "羊驼。", "| a | b |\n", "| --- | --- |\n"),
        *(
            "```\n",
            "~~~\n",
            "- item\n",
            "word ",
            "x" * 90,
            "\t",
            "   ",
            "1. one\n",
            "=====\n",
            "?",
            "#",
            "é",
            "🦙",
            "\u2028",
        ),
    ]
)


class TestNothingIsLost:
    @settings(max_examples=300, deadline=None)
    @given(st.one_of(st.lists(PIECES, max_size=60).map("".join), st.text(max_size=400)), st.integers(20, 60))
    def test_every_character_in_order(self, text: str, limit: int) -> None:
        chunks = cut(text, limit)
        assert is_within(visible(text), visible("".join(texts(chunks))))
        if "---" not in text:  # else a table's header may be repeated
            assert visible("".join(texts(chunks))) == visible(text)
        for chunk in chunks:
            assert count(embed_text(chunk)) <= limit
            assert count(chunk.metadata["headings"] + "\n" + chunk.page_content) <= limit
            assert chunk.page_content.strip()

    @settings(max_examples=100, deadline=None)
    @given(st.lists(PIECES, max_size=60).map("".join), st.integers(0, 30))
    def test_overlap_only_repeats(self, text: str, overlap: int) -> None:
        assert is_within(visible(text), visible("".join(texts(cut(text, 30, overlap)))))

    def test_empty(self) -> None:
        assert cut(" \n\n\t\n") == []
        assert split([], count, 30, 0) == []


def is_within(short: str, long: str) -> bool:
    """Whether all characters of one text stand in the other in order."""
    rest = iter(long)
    return all(letter in rest for letter in short)


class TestEmbedText:
    def test_path_before_the_text_without_its_own_headings(self) -> None:
        first, second = cut("# Guide\n\n## Food\n\nhay. " + "Llamas like it. " * 10, limit=30)[:2]
        assert embed_text(first).startswith("Guide > Food\nhay.")
        assert embed_text(second).startswith("Guide > Food\nLlamas")

    def test_without_headings(self) -> None:
        assert embed_text(Document("text")) == "text"


@pytest.mark.parametrize(
    "text",
    [
        "a" * 5_000_000,
        "word " * 1_000_000,
        ENGLISH * 60_000,
        CHINESE * 55_000,
        "| a | b |\n" * 500_000,
        "# x\n" * 100_000,
    ],
    ids=["one-word", "words", "sentences", "chinese", "table", "headings"],
)
def test_five_megabytes_on_one_line(text: str) -> None:
    started = time.perf_counter()
    chunks = cut(text, limit=200, overlap=32, counter=lambda part: len(part) // 4 + 1)
    taken = time.perf_counter() - started
    assert len(chunks) > 1000
    assert max(len(chunk.page_content) for chunk in chunks) <= 1600
    assert taken < 30, "a quadratic splitter would take hours"


class TestRealTokenizer:
    def test_limit_holds(self, embedder_folder: Path) -> None:
        embedder = Embedder(embedder_folder)
        text = ("# Food\n\n" + ENGLISH * 30 + "\n\n## 食物\n\n" + CHINESE * 30 + "\n\n" + TestTables.TABLE) * 3
        for batch in (None, embedder.count_tokens_batch):
            chunks = split([Document(text)], embedder.count_tokens, 120, 20, batch)
            counts = embedder.count_tokens_batch([embed_text(chunk) for chunk in chunks])
            assert max(counts) <= 120
            assert sum(counts) / len(counts) > 70, "chunks are filled"

    def test_endless_word(self, embedder_folder: Path) -> None:
        """The tokenizer makes one unknown token of it; the chunks must not be endless."""
        embedder = Embedder(embedder_folder)
        chunks = split([Document("x" * 200_000)], embedder.count_tokens, 200, 0, embedder.count_tokens_batch)
        assert max(len(chunk.page_content) for chunk in chunks) <= 1600

    def test_words_of_unknown_signs(self, embedder_folder: Path) -> None:
        """Each is one unknown token, however long; a chunk must not be huge for that."""
        embedder = Embedder(embedder_folder)
        chunks = split([Document(("🦙" * 60 + " ") * 2000)], embedder.count_tokens, 200, 0)
        assert max(len(chunk.page_content) for chunk in chunks) <= 2000
