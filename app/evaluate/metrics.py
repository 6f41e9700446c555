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
HAN_OR_WORD = re.compile(rf"[{HAN}]|\d+(?:[.,]\d+)*(?![^\W_{HAN}])|[^\W_{HAN}]+")


def normalized(text: str) -> str:
    """SQuAD's form: lower case, without punctuation and articles, single spaces."""
    text = ARTICLES.sub(" ", text.lower().translate(ASCII_PUNCTUATION))
    return " ".join(text.split())


def tokens_zh(text: str) -> list[str]:
    """CMRC's mixed segmentation: Chinese characters one by one, other words and numbers whole, no punctuation."""
    return HAN_OR_WORD.findall(unicodedata.normalize("NFKC", text).lower())


def exact_match(answer: str, golds: Iterable[str], language: str) -> float:
    """Whether the normalized answer is a normalized gold answer."""
    if language == "zh":
        return float(any(tokens_zh(answer) == tokens_zh(gold) for gold in golds))
    return float(any(normalized(answer) == normalized(gold) for gold in golds))


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


def _folded(text: str) -> str:
    """Lower case, full-width letters as plain ones, no space beside Chinese and no doubled space."""
    text = " ".join(unicodedata.normalize("NFKC", text).lower().split())
    return re.sub(rf"(?<=[{HAN}]) | (?=[{HAN}])", "", text)


def holds(text: str, gold: str) -> bool:
    """Whether a gold answer stands in a text: as it is, or with punctuation and articles left out; whole words only."""
    return _stands_in(_folded(text), _folded(gold)) or _stands_in(_bare(text), _bare(gold))


def _bare(text: str) -> str:
    return _folded("".join(c for c in ARTICLES.sub(" ", _folded(text)) if not unicodedata.category(c).startswith("P")))


def _stands_in(text: str, gold: str) -> bool:
    if not gold:
        return False
    at = text.find(gold)
    while at >= 0:
        before, behind = text[at - 1 : at] if at else "", text[at + len(gold) : at + len(gold) + 1]
        if not (_one_word(before, gold[0]) or _one_word(gold[-1], behind)):
            return True
        at = text.find(gold, at + 1)
    return False


def _one_word(left: str, right: str) -> bool:
    """Whether two neighbouring characters belong to one word or number."""
    return bool(left and right) and all(c.isalnum() and not re.match(f"[{HAN}]", c) for c in (left, right))


def contains(answer: str, golds: Iterable[str]) -> float:
    """Whether a gold answer stands in the answer."""
    return float(any(holds(answer, gold) for gold in golds))


class _Tokenizer:
    """For ROUGE: the library's own tokenizer drops everything but ASCII."""

    def tokenize(self, text: str) -> list[str]:
        return tokens_zh(text)


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
