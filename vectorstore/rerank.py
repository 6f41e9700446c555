"""Reorders the first candidates with a scorer that is given: a LLaMA, a cross-encoder, anything that gives log-odds.

The fusion's relevance is what is believed of a candidate before the scorer reads it, the score is the evidence: their
weighted sum is the logarithm of what is believed afterwards, but for a constant (Bayes' rule; for query likelihood
Ponte and Croft, "A Language Modeling Approach to Information Retrieval", SIGIR 1998, and Sachan et al., "Improving
Passage Retrieval with Zero-Shot Question Generation", EMNLP 2022, section 2). The weights lie in rerank.json; they were
learned from 62 weighted questions of XQuAD English; scripts/fit_rerank.py learns them anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from pydantic import Field

# A question and passages -> the logarithm of each one's likelihood or odds; differences count, a constant does not.
# None where the scorer knows nothing about such a question.
Scorer = Callable[[str, Sequence[Document]], Sequence[float] | None]
DATA = Path(__file__).with_name("rerank.json")


@lru_cache(maxsize=1)
def learned() -> dict[str, float]:
    """The weights that were learned: of "relevance", and of a "likelihood"."""
    found = json.loads(DATA.read_text(encoding="utf-8"))["parameters"]
    return {name: float(value) for name, value in found.items()}


class Reranker(BaseDocumentCompressor):
    """Puts passages that come best first into a better order; their metadata gets "rerank_score", the scorer's.

    The relevance of a passage is its metadata's "relevance", or its "score" as a share of the best one's.
    """

    scorer: Scorer
    candidates: int = Field(8, ge=1, description="how many of the first passages are reordered")
    relevance: float = Field(default_factory=lambda: learned()["relevance"], description="weight of the relevance")
    weight: float = Field(description="weight of the score; 1 where it is a logarithm of odds")

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """All the passages, the first `candidates` of them best first by relevance and score."""
        head, rest = documents[: self.candidates], documents[self.candidates :]
        if len(head) < 2:
            return list(documents)
        found = self.scorer(query, head)
        if found is None:
            return list(documents)
        scores = [float(score) for score in found]
        believed = [
            self.relevance * prior + self.weight * score for prior, score in zip(priors(head), scores, strict=True)
        ]
        order = sorted(range(len(head)), key=lambda i: -believed[i])  # equals stay as they came
        judged = [
            Document(id=head[i].id, page_content=head[i].page_content,
                     metadata={**head[i].metadata, "rerank_score": scores[i]}) for i in order
        ]  # fmt: skip
        return [*judged, *rest]


def priors(passages: Sequence[Document]) -> list[float]:
    """What is believed of each passage before it is scored, at most 1."""
    if all("relevance" in each.metadata for each in passages):
        return [float(each.metadata["relevance"]) for each in passages]
    scores = [float(each.metadata["score"]) for each in passages]
    best = max(scores)
    return [score / best if best > 0 else 0.0 for score in scores]
