"""Text to terms: what must be found by what, in several scripts."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vectorstore.analyze import LONGEST, terms

# passage, question: every term of the question must be one of the passage's.
FOUND = [
    ("The RS-232C port", "rs-232c"),
    ("The RS-232C port", "RS232C"),
    ("The RS-232C port", "232c"),
    ("The RS-232C port", "RS 232"),
    ("The RS-232C port", "rs232"),
    ("用 RS-232C 接口", "RS232接口"),
    ("the A4-80g paper", "a4"),
    ("costs 2,450 euros", "2450"),
    ("costs 2450 euros", "2,450"),
    ("ＦＵＬＬ　ｗｉｄｔｈ ２，４５０", "full width 2,450"),
    ("since v1.2.3 only", "v1.2.3"),
    ("the field foo_bar", "foo_bar"),
    ("the field foo_bar", "bar"),
    ("call getUserName()", "user name"),
    ("call getUserName()", "getusername"),
    ("mail a.llama@highfold.example.", "A.Llama@Highfold.example"),
    ("mail a.llama@highfold.example.", "highfold"),
    ("ISBN 978-3-16-148410-0", "9783161484100"),
    ("on 2026-11-21", "20261121"),
    ("an e-mail", "emails"),
    ("COVID-19", "covid19"),
    ("in C++ and C#", "c++"),
    ("The runners were running", "run"),
    ("the llama’s wool", "Llama's"),
    ("naïve café", "NAIVE CAFE"),
    ("Straße", "STRASSE"),
    ("臺灣的電腦軟體", "台湾的电脑"),
    ("台湾的电脑", "臺灣"),
    ("乾隆皇帝", "乾隆"),
    ("一只狗", "狗"),
    ("用RS-232C接口", "RS-232C"),
    ("用RS-232C接口", "接口"),
    ("データベースを設計する", "データベース"),
    ("ﾃﾞｰﾀ", "データ"),
    ("한국어를 배웁니다", "한국어"),
    ("सुंदर हिन्दी भाषा", "हिन्दी"),
    ("ภาษาไทย", "ไทย"),
    ("Москва и Ёлка", "елка"),
]


@pytest.mark.parametrize(("passage", "question"), FOUND)
def test_found(passage: str, question: str) -> None:
    asked = set(terms(question))
    assert asked
    assert asked <= set(terms(passage))


# passage, question: none of the question's terms may be the passage's.
APART = [
    ("pages 3-4", "34"),
    ("1.23", "123"),
    ("3.5 kg", "35"),
    ("organisation", "organ"),
    ("国中", "狗"),
    ("", "x"),
]


@pytest.mark.parametrize(("passage", "question"), APART)
def test_kept_apart(passage: str, question: str) -> None:
    assert not set(terms(passage)) & set(terms(question))


def test_pairs_tell_the_order() -> None:
    assert "国中" not in terms("中国")
    assert "国中" in terms("国中")


def test_stop_words_are_terms() -> None:
    assert terms("To be or not to be") == ["to", "be", "or", "not", "to", "be"]


@pytest.mark.parametrize("text", ["", "  \n", "?!… — «»", "🦙🦙", "'; --"])
def test_nothing_to_find(text: str) -> None:
    assert terms(text) == []


def test_a_hash_does_not_fall_into_pieces() -> None:
    digest = "b1794c9523d0e6a0f98a330c7562b682"
    assert terms(digest) == [digest]


@given(st.text(max_size=300))
def test_terms_hold_no_space_and_come_out_again(text: str) -> None:
    """The index takes a text's terms joined by spaces; folding what is folded must change nothing of note."""
    found = terms(text)
    assert " ".join(found).split() == found
    assert all(0 < len(term) <= LONGEST for term in found)


@given(st.text(alphabet="aB1-_. ,'中臺", max_size=60))
def test_case_does_not_matter_without_camels(text: str) -> None:
    assert terms(text.upper()) == terms(text.lower())


def test_threads_do_not_share_a_stemmer() -> None:
    words = ["running", "generously", "ponies", "relational", "hopefulness"] * 200
    expected = terms(" ".join(words))
    wrong: list[bool] = []

    def work() -> None:
        wrong.extend(terms(" ".join(words)) != expected for _ in range(20))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [False] * 80
