"""Scores of single answers against gold answers, in English and Chinese.

English: exact match and token F1 of SQuAD (Rajpurkar et al. 2016, section 6.1). Chinese: those of CMRC 2018 (Cui et
al. 2019, section 4.1), whose F1 is on the longest common run of characters. All are 0 to 1; the best gold answer
counts.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from difflib import SequenceMatcher
from functools import cache
from typing import TYPE_CHECKING

from app.cite import words
from app.prompt import language_of

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

ARTICLES = re.compile(r"\b(a|an|the)\b")
ASCII_PUNCTUATION = str.maketrans("", "", string.punctuation)
HAN = r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
# A Chinese character, or a word or number with its decimals, whatever unit is written onto it.
HAN_OR_WORD = re.compile(rf"[{HAN}]|[^\W_{HAN}]+(?:(?<=\d)[.,](?=\d)[^\W_{HAN}]+)*")
# CMRC 2018's evaluation leaves these out and nothing else: % $ # and the full stop and comma of ASCII are compared.
CMRC_PUNCTUATION = str.maketrans("", "", "-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
CMRC_HAN = re.compile(r"([\u4e00-\u9fa5])")


def normalized(text: str) -> str:
    """SQuAD's form: lower case, without punctuation and articles, single spaces. A text of articles alone keeps them:
    nothing would be left to compare, and an empty answer would be right where the gold answer is "A".
    """
    text = text.lower().translate(ASCII_PUNCTUATION)
    return " ".join(ARTICLES.sub(" ", text).split() or text.split())


def folded_zh(text: str) -> str:
    """CMRC's form: lower case, without its list of punctuation."""
    return text.lower().strip().translate(CMRC_PUNCTUATION)


def tokens_zh(text: str) -> list[str]:
    """CMRC's mixed segmentation of what `folded_zh` leaves: Chinese characters one by one, the text in between as
    NLTK's word tokenizer cuts it (without its splitting into sentences beforehand, which needs a model of its own).
    """
    from nltk.tokenize import NLTKWordTokenizer

    pieces, cut = CMRC_HAN.split(folded_zh(text)), NLTKWordTokenizer().tokenize
    return [token for piece in pieces for token in ([piece] if CMRC_HAN.fullmatch(piece) else cut(piece))]


def exact_match(answer: str, golds: Iterable[str], language: str) -> float:
    """Whether the normalized answer is a normalized gold answer. An answer of which nothing is left is none."""
    form = folded_zh if language == "zh" else normalized
    said = form(answer)
    return float(bool(said.strip()) and any(said == form(gold) for gold in golds))


def f1(answer: str, golds: Sequence[str], language: str) -> float:
    """Overlap of answer and gold answer: shared tokens in English, the longest common run of tokens in Chinese."""
    one = _f1_zh if language == "zh" else _f1_en
    return max((one(answer, gold) for gold in golds), default=0.0)


def _f1_en(answer: str, gold: str) -> float:
    said, wanted = normalized(answer).split(), normalized(gold).split()
    return _harmonic(sum((Counter(said) & Counter(wanted)).values()), len(said), len(wanted))


def _f1_zh(answer: str, gold: str) -> float:
    said, wanted = tokens_zh(answer), tokens_zh(gold)
    return _harmonic(
        SequenceMatcher(None, said, wanted, autojunk=False).find_longest_match().size, len(said), len(wanted)
    )


def _harmonic(shared: int, said: int, wanted: int) -> float:
    return 2 * shared / (said + wanted) if shared else 0.0


# -- whether a gold answer stands in a text --------------------------------------------------------------------------

DASHES = str.maketrans(dict.fromkeys("‐‑‒–—―−", "-"))
SIGNS = "-−"  # before a number
# Between two digits these belong to the number: 2.5, 1,950, 10:30, 1/5, 2026-03-14. A longer dash is of a range, the
# ends of which are numbers of their own.
JOINS = ".,:/-‐‑"
THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
BETWEEN_WORDS = re.compile(r"(?:[^\w\s]|_)+")


def holds(text: str, gold: str) -> bool:
    """Whether a gold answer stands in a text: as it is, or with punctuation and articles left out; whole words and
    whole numbers only.
    """
    return _stands_in(_folded(text), _folded(gold)) or _stands_in(_bare(text), _bare(gold))


def _folded(text: str) -> str:
    """Lower case, full-width letters as plain ones, no space beside Chinese and no doubled space."""
    # The full-width comma never stands within a number, which the plain one that it is folded to may.
    text = " ".join(unicodedata.normalize("NFKC", text.replace("，", ", ")).lower().split())
    return re.sub(rf"(?<=[{HAN}]) | (?=[{HAN}])", "", text)


def _bare(text: str) -> str:
    """The folded text without articles, without punctuation outside of numbers and without the commas of thousands."""
    text = THOUSANDS.sub(lambda number: number[0].replace(",", ""), ARTICLES.sub(" ", _folded(text)))
    return _folded(BETWEEN_WORDS.sub(_without_punctuation, text))


def _without_punctuation(found: re.Match[str]) -> str:
    text, (start, end) = found.string, found.span()
    kept = "".join(c for c in found[0] if not unicodedata.category(c).startswith("P"))
    if _digit(text, start - 1) and _digit(text, end):
        return found[0] if len(found[0]) == 1 and _in_number(text, start) else kept or " "
    return kept + "-" if text[end - 1] == "-" and _is_sign(text, end - 1) else kept


def _digit(text: str, at: int) -> bool:
    return 0 <= at < len(text) and text[at].isdigit()


def _is_sign(text: str, at: int) -> bool:
    """Whether the character is the sign of the number behind it."""
    return text[at] in SIGNS and _digit(text, at + 1) and not (at and _of_word(text[at - 1]))


def _in_number(text: str, at: int) -> bool:
    """Whether the character stands between the digits of one number."""
    return text[at] in JOINS + "–—" and _digit(text, at - 1) and _digit(text, at + 1)


def _of_word(letter: str) -> bool:
    return letter.isalnum() and not re.match(f"[{HAN}]", letter)


def _stands_in(text: str, gold: str) -> bool:
    if not gold:
        return False
    plain, wanted = text.translate(DASHES), gold.translate(DASHES)
    at = plain.find(wanted)
    while at >= 0:
        if not (_cuts(text, at) or _cuts(text, at + len(gold))):
            return True
        at = plain.find(wanted, at + 1)
    return False


def _cuts(text: str, at: int) -> bool:
    """Whether a word or number runs on over the place before this character."""
    if not 0 < at < len(text):
        return False
    joined = any(text[i] in JOINS and _digit(text, i - 1) and _digit(text, i + 1) for i in (at - 1, at))
    return joined or _is_sign(text, at - 1) or (_of_word(text[at - 1]) and _of_word(text[at]))


def contains(answer: str, golds: Iterable[str]) -> float:
    """Whether a gold answer stands in the answer."""
    return float(any(holds(answer, gold) for gold in golds))


class _Tokenizer:
    """For ROUGE: the library's own tokenizer drops everything but ASCII."""

    def tokenize(self, text: str) -> list[str]:
        return HAN_OR_WORD.findall(unicodedata.normalize("NFKC", text).lower())


@cache
def _rouge() -> RougeScorer:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=_Tokenizer())


def rouge_l(answer: str, golds: Sequence[str]) -> float:
    """ROUGE-L's F-measure (Lin 2004) on words and Chinese characters."""
    return float(_rouge().score_multi(list(golds), answer)["rougeL"].fmeasure) if golds else 0.0


def groundedness(answer: str, cited: Iterable[str]) -> float | None:
    """Share of the answer's content words and numbers that stand in the cited chunks; None when it has none."""
    said = words(answer)
    if not said:
        return None
    found: set[str] = set()
    for text in cited:
        found |= words(text)
    return len(said & found) / len(said)


def score(answer: str, golds: Sequence[str], question: str) -> dict[str, float]:
    """All scores of an answer that need nothing but the gold answers. The question decides the language."""
    language = language_of(question)
    metrics: dict[str, Callable[[], float]] = {
        "exact_match": lambda: exact_match(answer, golds, language),
        "f1": lambda: f1(answer, golds, language),
        "contains": lambda: contains(answer, golds),
        "rouge_l": lambda: rouge_l(answer, golds),
    }
    return {name: metric() for name, metric in metrics.items()}
