"""Scores against values worked out by hand and the definitions' own examples."""

from __future__ import annotations

import pytest

from app.evaluate.metrics import (
    contains,
    exact_match,
    f1,
    groundedness,
    holds,
    normalized,
    rouge_l,
    score,
    tokens_zh,
)


def test_normalizing_is_squad_s() -> None:
    assert normalized("The  U.S.A.'s (an) Answer!") == "usas answer"
    assert normalized("a theatre") == "theatre", "articles go as words only"


@pytest.mark.parametrize(
    ("answer", "golds", "em", "overlap"),
    [
        ("Saint Bernadette Soubirous", ["Saint Bernadette Soubirous"], 1.0, 1.0),
        ("the saint bernadette soubirous.", ["Saint Bernadette Soubirous"], 1.0, 1.0),
        ("Bernadette", ["Saint Bernadette Soubirous"], 0.0, 0.5),  # p = 1, r = 1/3
        (
            "in the year 1974",
            ["1974", "the year of 1974"],
            0.0,
            2 / 3,
        ),  # the second: p = r = 2/3
        ("to be or not to be", ["to be"], 0.0, 0.5),  # p = 2/6, r = 1: each word counts as often as in both
        ("blue", ["red"], 0.0, 0.0),
        ("", ["red"], 0.0, 0.0),
        ("the", ["red"], 0.0, 0.0),
    ],
)
def test_english(answer: str, golds: list[str], em: float, overlap: float) -> None:
    assert exact_match(answer, golds, "en") == em
    assert f1(answer, golds, "en") == pytest.approx(overlap)


@pytest.mark.parametrize(
    ("answer", "gold", "language"),
    [
        ("A", "the", "en"),
        ("", "A", "en"),
        ("!", "...", "en"),
        ("，", "。", "zh"),
        ("", "！", "zh"),
        ("， ，", "。 。", "zh"),
    ],
)
def test_what_says_nothing_is_never_right(answer: str, gold: str, language: str) -> None:
    assert (exact_match(answer, [gold], language), f1(answer, [gold], language)) == (0.0, 0.0)


def test_an_article_may_be_the_answer() -> None:
    assert (exact_match("A.", ["a"], "en"), f1("A.", ["a"], "en")) == (1.0, 1.0)


def test_a_refusal_has_no_score() -> None:
    for gold in ("A", "The", "an", "...", "，", "x"):
        for question in ("Which?", "哪个？"):
            assert set(score("", [gold], question).values()) == {0.0}


def test_chinese_tokens() -> None:
    assert tokens_zh("《范廷颂》1919年，ABC 3.5 元！") == ["范", "廷", "颂", "1919", "年", "abc", "3.5", "元"]
    assert tokens_zh("重3.5kg") == ["重", "3.5kg"]
    assert tokens_zh("约50% of C#") == ["约", "50", "%", "of", "c", "#"], "only CMRC's own punctuation is left out"


@pytest.mark.parametrize(
    ("answer", "golds", "em", "overlap"),
    [
        ("1963年。", ["1963年"], 1.0, 1.0),
        ("在1963年", ["1963年"], 0.0, 0.8),  # longest common run 2 of 3 and of 2
        ("范廷颂枢机", ["范廷颂枢机（，）"], 1.0, 1.0),
        # The run counts, not the bag: 光荣 is the longest, 2 of 4 and of 4.
        ("光荣日本", ["日本光荣"], 0.0, 0.5),
        ("KOEI", ["koei", "光荣"], 1.0, 1.0),
        ("ＫＯＥＩ", ["koei"], 0.0, 0.0),  # CMRC's evaluation does not fold the width
        ("50%", ["50"], 0.0, 2 / 3),  # 50 and %, of which the run of one is shared
        ("$5", ["5"], 0.0, 2 / 3),
        ("C#", ["C"], 0.0, 2 / 3),
        ("5°", ["5"], 0.0, 0.0),  # one word to NLTK
        ("3~4天", ["34天"], 1.0, 1.0),  # ~ - and / are of its punctuation, and go before anything is cut
        ("北京, 上海", ["北京，上海"], 0.0, 4 / 9),  # the plain comma is compared: run 2 of 5 and of 4
        ("红", ["蓝"], 0.0, 0.0),
        ("", ["蓝"], 0.0, 0.0),
    ],
)
def test_chinese(answer: str, golds: list[str], em: float, overlap: float) -> None:
    assert exact_match(answer, golds, "zh") == em
    assert f1(answer, golds, "zh") == pytest.approx(overlap)


@pytest.mark.parametrize(
    ("text", "gold", "found"),
    [
        ("It opened in 1950.", "1950", True),
        ("It opened in 1950.", "5", False),
        ("It opened in 1950.", "50", False),
        ("There are 5 of them", "5", True),
        ("a heart", "art", False),
        ("The  Eiffel\nTower stands.", "eiffel tower", True),
        ("2.3 kg of hay", "2.3 kg", True),
        ("about 12.3 kg", "2.3 kg", False),
        ("the well-known man", "well known man", False),
        ("the well-known man", "the wellknown man", True),
        ("opened by the Queen of England", "Queen of the England", True),
        ("art is the heart", "the art", True),
        ("the heart is art", "art", True),  # not at its first place, but at another
        ("It costs 2.5 euros", "5 euros", False),
        ("It takes 1.5 hours", "15 hours", False),
        ("It takes 15 hours", "1.5 hours", False),
        ("1,950 metres", "950 metres", False),
        ("1,950 metres", "1950 metres", True),
        ("1950 metres", "1,950 metres", True),
        ("in 2001,1950 and 7", "20011950", False),
        ("at 10:30", "30", False),
        ("at 10:30.", "10:30", True),
        ("It was −5 °C", "5 °C", False),
        ("气温-5度", "5度", False),
        ("It was −5 °C", "-5 °C", True),
        ("1/5", "5", False),
        ("3-4 days", "34 days", False),
        ("3-4 days", "4 days", False),
        ("3, 4 days", "34 days", False),
        ("(1)5 apples", "15 apples", False),
        ("open 9:00–17:00", "17:00", True),  # the ends of a range are numbers of their own
        ("open 9:00–17:00", "1700", False),
        ("won 24–10", "24-10", True),
        ("on 2026-03-14", "14", False),
        ("1998，1999年", "1999年", True),
        ("No.5", "5", True),
        ("It costs 5.", "5", True),
        ("会议在１９６３年 5 月召开", "1963年5月", True),
        ("会议在1963年召开", "963年", False),
        ("他住在“北京”。", "北京", True),
        ("anything", "", False),
        ("", "x", False),
    ],
)
def test_a_gold_answer_stands_in_a_text(text: str, gold: str, found: bool) -> None:
    assert holds(text, gold) is found
    assert contains(text, [gold, "quite another thing"]) == float(found)


def test_rouge_l() -> None:
    # Lin (2004), section 3: "police killed the gunman" and "police kill the gunman": LCS 3 of 4 and of 4.
    assert rouge_l("police kill the gunman", ["police killed the gunman"]) == pytest.approx(0.75)
    assert rouge_l("the gunman kill police", ["police killed the gunman"]) == pytest.approx(0.5)
    assert rouge_l("我爱北京", ["我爱北京天安门"]) == pytest.approx(2 * 4 / 11), "the library's own tokenizer gives 0"
    assert rouge_l("x", []) == 0.0


def test_groundedness() -> None:
    cited = ["Each adult llama eats 2.3 kilograms of hay."]
    assert groundedness("Llamas eat 2.3 kilograms of straw", cited) == pytest.approx(4 / 5)
    assert groundedness("An adult llama", cited) == 1.0
    assert groundedness("2.4 kilograms", cited) == 0.5, "numbers count as wholes"
    assert groundedness("It is so.", cited) is None
    assert groundedness("An adult llama", []) == 0.0


def test_the_question_decides_the_language() -> None:
    assert score("在1963年", ["1963年"], "什么时候？")["f1"] == pytest.approx(0.8)
    assert set(score("x", ["x"], "what?")) == {"exact_match", "f1", "contains", "rouge_l"}
