"""Counts how common terms are in ordinary text: vectorstore/background.json, from the word lists of wordfreq.

    pip install wordfreq==3.1.1
    python scripts/count_terms.py

A passage of WORDS words holds a term of frequency f with probability 1 - exp(-f * WORDS). The words of a language are
brought to terms as everything is (`vectorstore.analyze`), and the frequencies of those that become the same term are
added; of several languages, a term has the highest share. Terms below LEAST are left out: they count as never met.
"""

from __future__ import annotations

import json
import math
from collections import Counter

from vectorstore import analyze
from vectorstore.background import DATA

LANGUAGES = ("en", "zh", "de", "es", "fr", "it", "ja", "ko", "nl", "pl", "pt", "ru")
WORDS = 150  # of a passage
LEAST = 0.03
RAREST = 2e-6  # words of which even many together do not reach it


def main() -> None:
    from wordfreq import get_frequency_dict

    shares: dict[str, float] = {}
    for language in LANGUAGES:
        frequency: Counter[str] = Counter()
        for word, value in get_frequency_dict(language).items():
            if value >= RAREST:
                for term in set(analyze.terms(word)):
                    frequency[term] += value
        for term, value in frequency.items():
            share = round(1 - math.exp(-value * WORDS), 2)
            if share >= LEAST:
                shares[term] = max(share, shares.get(term, 0.0))
    ordered = dict(sorted(shares.items(), key=lambda item: (-item[1], item[0])))
    written = {"terms": analyze.VERSION, "shares": ordered}
    DATA.write_text(json.dumps(written, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{len(shares)} terms, {DATA.stat().st_size} bytes")


if __name__ == "__main__":
    main()
