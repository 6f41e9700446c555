"""Text to the terms of the keyword index, in the same way for passages and for questions.

Everything is brought to one form first: NFKC, case and accents folded, traditional Chinese characters to simplified
ones, one by one. Then words of letters are stemmed (Porter's English stemmer as Snowball has it; it leaves most words
of other languages whole), and scripts that put no spaces between words become overlapping pairs of characters, Chinese
single characters beside them. Numbers, codes and identifiers stay whole, and their parts are terms too: RS-232C is
found by rs232c, by rs232, by rs and by 232. There is no list of stop words: BM25 gives words that stand everywhere
next to no weight, and a question of nothing else still finds something.
"""

from __future__ import annotations

import threading
import unicodedata
from functools import lru_cache
from itertools import pairwise

import regex
import Stemmer

VERSION = 2  # a higher number makes keyword indexes be built again, from the passages that are stored
MOST_PIECES = 8  # a hash or a key falls into more, which nobody looks for
LONG_NUMBER = 7  # digits from which hyphens only group: dates, telephone numbers, ISBN
LONGEST = 64  # characters of a term; what is beyond is cut off, on both sides

# Scripts that are written without spaces, or (Hangul) with endings that a space does not part from the word.
_PAIRED = r"\p{Han}\p{Hiragana}\p{Katakana}ー\p{Hangul}\p{Bopomofo}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
_LETTER = rf"[[\p{{L}}\p{{M}}\p{{N}}]--[{_PAIRED}]]"
# Words, and words held together by signs without a space: 2,450 v1.2.3 foo_bar a.b@c.org 978-3-16-148410-0 R&D 3/4
_TOKEN = regex.compile(rf"(?V1)(?P<pairs>[{_PAIRED}]+)|(?P<word>{_LETTER}+(?:[-_.,:/@&+'’\u2060]{_LETTER}+)*[+#]*)")
_HAN = regex.compile(r"\p{Han}")
_PIECE = regex.compile(r"\p{N}+|[\p{L}\p{M}]+")
_CAMEL = regex.compile(r"(?<=\p{Ll})(?=\p{Lu})")
_JOINTS = regex.compile(r"[-_.,:/@&+'’\u2060]")
_JOINED = regex.compile(r"[-'’\u2060]")
_LETTERS_JOINED = regex.compile(r"['’\u2060]|-(?!\d)|(?<!\d)-")
_GROUPED = regex.compile(r"\d{1,3}(?:,\d{3})+(?!\d)")  # 2,450 is 2450
_POSSESSIVE = regex.compile(r"['’]s?$")
_ACCENTS = regex.compile(r"[\u0300-\u036f]+")
_HAN_RANGES = ((0x3400, 0xA000), (0xF900, 0xFB00), (0x20000, 0x32000))

_stemmers = threading.local()  # a stemmer keeps a buffer of its own and is not to be shared


@lru_cache(maxsize=1)
def _simplified() -> dict[int, str]:
    """Traditional character -> simplified. By single characters: OpenCC's own phrases depend on what stands beside."""
    from opencc import OpenCC

    han = [chr(code) for start, end in _HAN_RANGES for code in range(start, end)]
    folded = OpenCC("t2s").convert("\n".join(han)).split("\n")
    return {ord(old): new for old, new in zip(han, folded, strict=True) if old != new and len(new) == 1}


def fold(text: str) -> str:
    """The text in the form that is compared: NFKC, case, accents and traditional characters folded."""
    text = unicodedata.normalize("NFKC", text)
    if not text.isascii():
        text = unicodedata.normalize("NFC", _ACCENTS.sub("", unicodedata.normalize("NFD", text)))
        text = text.translate(_simplified())
    return text.casefold()


def terms(text: str) -> list[str]:
    """The terms of a text, in its order, as often as they stand there. None of them holds white space."""
    text = _CAMEL.sub("\u2060", text) if not text.islower() else text  # a word joiner: fooBar is foo and bar as well
    found: list[str] = []
    for match in _TOKEN.finditer(fold(text)):
        word = match[0]
        found += _of_run(word) if match.lastgroup == "pairs" else _of_word(word)
    return found


def _of_run(run: str) -> list[str]:
    """Overlapping pairs of characters; the Chinese characters one by one, too."""
    if len(run) == 1:
        return [run]
    return [*map("".join, pairwise(run)), *_HAN.findall(run)]


@lru_cache(maxsize=1 << 16)  # a text has far fewer different words than words
def _of_word(word: str) -> tuple[str, ...]:
    """A word's stem; of what is put together from several pieces the whole and the pieces."""
    word = _GROUPED.sub(lambda found: found[0].replace(",", ""), _POSSESSIVE.sub("", word))
    parts = _JOINTS.split(word.rstrip("+#"))
    pieces = [piece for part in parts for piece in _PIECE.findall(part)]
    if len(pieces) == 1 and pieces[0] == word:
        found = [word]
    else:
        found = [_whole(word)]
        if len(parts) > 1:
            found += [part for part in parts if part not in pieces]  # 232c of rs-232c
        if len(pieces) <= MOST_PIECES:
            found += pieces
            joined = (one + other for one, other in pairwise(pieces) if one.isnumeric() != other.isnumeric())
            found += [each for each in joined if each not in found]  # rs232 of rs-232c
    return tuple(_stem(each)[:LONGEST] for each in found)


def _whole(word: str) -> str:
    """One spelling of e-mail and email, 2026-11-21 and 20261121; 3-4 stays what it is."""
    if sum(map(str.isdigit, word)) < LONG_NUMBER:
        return str(_LETTERS_JOINED.sub("", word))
    return str(_JOINED.sub("", word))


def _stem(word: str) -> str:
    if not (word.isascii() and word.isalpha()):
        return word
    stemmer = getattr(_stemmers, "english", None)
    if stemmer is None:
        stemmer = _stemmers.english = Stemmer.Stemmer("english")
    return str(stemmer.stemWord(word))
