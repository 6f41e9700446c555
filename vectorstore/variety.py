"""Passages that repeat each other are found once, and, if asked for, those that say something else come sooner."""

from __future__ import annotations

import re
from collections.abc import Sequence

from langchain_core.documents import Document

from vectorstore.rerank import priors

SHINGLE = 5  # characters
WORD = re.compile(r"[\u3400-\u9fff]|[^\W_\u3400-\u9fff]+")
SAME = 0.8  # resemblance from which two passages are one


def shingles(text: str) -> frozenset[str]:
    """All runs of SHINGLE letters of a text; white space and case play no part."""
    text = "".join(text.casefold().split())
    return frozenset(text[i : i + SHINGLE] for i in range(max(1, len(text) - SHINGLE + 1)))


def words(text: str) -> frozenset[str]:
    """The words and numbers of a text, Chinese ones by their characters."""
    return frozenset(WORD.findall(text.casefold()))


def resemblance(a: frozenset[str], b: frozenset[str]) -> float:
    """What two texts share of all their shingles, in [0, 1] (Broder 1997, section 2)."""
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared)


def distinct(passages: Sequence[Document], k: int) -> list[Document]:
    """The first k, without those that say the same as one before them in the same words.

    Two versions of a rule often differ in a number or a weekday: a single word of its own makes a passage another one.
    """
    kept: list[Document] = []
    seen: list[tuple[frozenset[str], frozenset[str]]] = []
    for passage in passages:
        if len(kept) == k:
            break
        own, said = shingles(passage.page_content), words(passage.page_content)
        # Texts of different lengths cannot resemble each other so much: most comparisons end here.
        alike = (each for each, of in seen if of == said and SAME <= len(each) / len(own) <= 1 / SAME)
        if not any(resemblance(own, each) >= SAME for each in alike):
            kept.append(passage)
            seen.append((own, said))
    return kept


def diverse(passages: Sequence[Document], k: int, diversity: float) -> list[Document]:
    """k passages by maximal marginal relevance (Carbonell and Goldstein 1998), best first as they come.

    diversity in [0, 1]: what unlikeness to those chosen is worth; relevance is worth the rest.
    """
    given = [(prior, passage, shingles(passage.page_content))
             for prior, passage in zip(standings(passages), passages, strict=True)]  # fmt: skip
    chosen: list[tuple[float, Document, frozenset[str]]] = []
    while given and len(chosen) < k:
        worth = [
            (1 - diversity) * prior - diversity * max((resemblance(own, each) for _, _, each in chosen), default=0.0)
            for prior, _, own in given
        ]
        chosen.append(given.pop(max(range(len(given)), key=worth.__getitem__)))
    return [passage for _, passage, _ in chosen]


def standings(passages: Sequence[Document]) -> list[float]:
    """Relevance that falls with the order: where passages were reordered, none has less than those behind it."""
    found = priors(passages) if passages else []
    for i in range(len(found) - 2, -1, -1):
        found[i] = max(found[i], found[i + 1])
    return found
