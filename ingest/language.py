"""The languages that a document is written in, as ISO 639-1 codes.

Chinese, Japanese and Korean are told by their scripts, everything else by py3langid's n-grams, chunk by chunk: single
lines are often names or figures, which say nothing.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import regex

UNKNOWN = "und"  # undetermined (ISO 639-2): a document of figures alone
SHARE = 0.25  # of a document's text, from which a language counts
FEWEST = 20  # letters that are enough to tell a language
MOST = 2000  # letters of a chunk that are looked at
LETTERS_OF_A_CHARACTER = 3  # an English word of five letters or six takes two Chinese characters

# Those that documents are likely to be in; rarer ones are mostly mistaken for them or their neighbours.
LANGUAGES = (
    *("ar", "bg", "bn", "ca", "cs", "da", "de", "el", "en", "es", "et", "fa", "fi", "fr", "he", "hi", "hr", "hu", "id"),
    *("is", "it", "ja", "ko", "lt", "lv", "nl", "no", "pl", "pt", "ro", "ru", "sk", "sl", "sr", "sv", "sw", "ta", "th"),
    *("tr", "uk", "ur", "vi", "zh"),
)
_HAN, _KANA, _HANGUL = (
    regex.compile(r"\p{Han}"),
    regex.compile(r"[\p{Hiragana}\p{Katakana}]"),
    regex.compile(r"\p{Hangul}"),
)
_EAST_ASIAN = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}]+")
_WORDS = regex.compile(r"[\p{L}\p{M}'’]{2,}")
_lock = threading.Lock()


@lru_cache(maxsize=1)
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    found = LanguageIdentifier.from_model_file(MODEL_FILE)
    found.set_languages(LANGUAGES)
    return found


def languages_of(texts: Iterable[str]) -> tuple[str, ...]:
    """The languages of a document's texts, the most used first; (UNKNOWN,) where none can be told."""
    amounts: Counter[str] = Counter()
    for text in texts:
        amounts.update(_amounts(text))
    whole = sum(amounts.values())
    return tuple(name for name, amount in amounts.most_common() if amount >= SHARE * whole) or (UNKNOWN,)


def _amounts(text: str) -> dict[str, int]:
    """Letters of a text by language."""
    found: Counter[str] = Counter()
    han, kana, hangul = (len(each.findall(text)) for each in (_HAN, _KANA, _HANGUL))
    if han + kana:
        found["ja" if kana > (han + kana) / 10 else "zh"] += LETTERS_OF_A_CHARACTER * (han + kana)
    if hangul:
        found["ko"] += LETTERS_OF_A_CHARACTER * hangul
    rest = " ".join(_WORDS.findall(_EAST_ASIAN.sub(" ", text)))
    if len(rest) >= FEWEST:
        with _lock:
            found[_identifier().classify(rest[:MOST])[0]] += len(rest)
    return found
