"""How common a term is in ordinary text, for knowledge bases that are too small to tell.

In a handful of passages, every word that they are about stands everywhere, and the words of a question that say nothing
("what", "did") stand nowhere: their idf is the wrong way round. So PASSAGES more are thought to be there, of ordinary
text (a prior on document frequencies, as in Bayesian smoothing; Zhai and Lafferty, "A Study of Smoothing Methods", ACM
TOIS 2004, section 3). In a large knowledge base they make no difference. scripts/count_terms.py made background.json.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

DATA = Path(__file__).with_name("background.json")
PASSAGES = 50


@lru_cache(maxsize=1)
def shares() -> Mapping[str, float]:
    """The share of ordinary passages that hold a term, in (0, 1]; those of rare terms are absent."""
    found: Mapping[str, float] = json.loads(DATA.read_text(encoding="utf-8"))["shares"]
    return found


def idf(term: str, found: int, total: int) -> float:
    """The inverse document frequency (that of BM25) of a term in `found` of `total` passages, and in ordinary ones."""
    found_, total_ = found + PASSAGES * shares().get(term, 0.0), total + PASSAGES
    return math.log(1 + (total_ - found_ + 0.5) / (found_ + 0.5))


def share(total: int) -> float:
    """How many of all passages are ordinary text, beside `total` of a knowledge base, in (0, 1]."""
    return PASSAGES / (PASSAGES + total)
