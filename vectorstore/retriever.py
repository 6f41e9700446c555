"""The retriever: passages by meaning (vectors), by words (BM25), or by both, weighed for each question."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from pydantic import ConfigDict, Field

from vectorstore.fusion import Candidates, Fusion, default_fusion
from vectorstore.keyword import Hit, KeywordIndex
from vectorstore.store import ChromaStore

Whole = Callable[[Sequence[str]], set[str]]  # ids of documents -> those that are whole
Mode = Literal["dense", "keyword", "hybrid"]
DEPTH = 50  # candidates of each side
TRIES = 4  # to search while no document changes
MOST = 1600  # looked at to find DEPTH that belong to whole documents


def everything(doc_ids: Sequence[str], version: int) -> set[str]:
    """Every document is whole."""
    return set(doc_ids)


def fully(text: str) -> float:
    """Every text can be read by the embedder."""
    return 1.0


@dataclass(frozen=True)
class Found:
    """Candidates as passages, and as what the fusion judges by, in the same order."""

    passages: list[Document]
    judged: Candidates


class Retriever(BaseRetriever):
    """The k best passages of a knowledge base.

    A passage's metadata has "score" (float: cosine similarity to the question; in keyword mode its share of the best
    BM25 score there could be, see Hit), "keyword_score" (that share; absent in dense mode), "relevance" (float: what
    hybrid mode ranks by), "held" (in hybrid mode, the share of the question's idf whose terms stand in it) and "page"
    (int, or None without pages).
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    store: ChromaStore
    keyword: KeywordIndex | None = Field(None, description="without it, every mode is dense")
    mode: Mode = "hybrid"
    k: int = Field(4, ge=1, description="passages returned at most")
    min_score: float = Field(0.2, ge=-1.0, le=1.0, description="in dense mode, passages less similar are left out")
    min_match: float = Field(
        default=0.35, ge=0.0, le=1.0, description="in hybrid mode nothing is found without a passage of either limit"
    )
    visible: Callable[[Sequence[str], int], set[str]] = Field(
        everything, description="which documents (ids) are whole, and were at that version"
    )
    version: Callable[[], int] = Field(lambda: 0, description="grows whenever a document becomes whole")
    coverage: Callable[[str], float] = Field(fully, description="share of a text that the embedder's vocabulary knows")
    fusion: Fusion = Field(default_factory=default_fusion)

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        for _ in range(TRIES):
            before = self.version()
            found = self._found(query, lambda doc_ids: self.visible(doc_ids, before))  # noqa: B023
            if self.version() == before:
                break  # else a document that was replaced just now is in neither of its versions
        return found

    def _found(self, query: str, whole: Whole) -> list[Document]:
        if self.keyword is None or self.mode == "dense":
            return self._dense(query, whole)
        by = self._words if self.mode == "keyword" else self._both
        return by(query, self.keyword, whole)

    # -- modes -----------------------------------------------------------------------------------------------------

    def _dense(self, query: str, whole: Whole) -> list[Document]:
        found = self._near(self.store.embed(query), self.k, whole)
        return [_passage(each, score=score) for each, score in found if score >= self.min_score]

    def _words(self, query: str, index: KeywordIndex, whole: Whole) -> list[Document]:
        terms = index.analyse(query)
        hits = self._whole(lambda n: index.search(terms, n), lambda hit: hit.doc_id, self.k, whole)
        texts = {str(each.id): each for each in self.store.get_by_ids([hit.chunk_id for hit in hits])}
        return [
            _passage(texts[hit.chunk_id], score=hit.score, keyword_score=hit.score)
            for hit in hits
            if hit.chunk_id in texts
        ]

    def _both(self, query: str, index: KeywordIndex, whole: Whole) -> list[Document]:
        found = self.candidates(query, index, whole)
        # Of the question, not of each passage: one that is right may be below both limits beside one that is not.
        if not any(
            near >= self.min_score or words >= self.min_match
            for near, words in zip(found.judged.cosines, found.judged.shares, strict=True)
        ):
            return []
        ranked = self.fusion.ranked(found.judged)[: self.k]
        terms = index.analyse(query)
        return [
            _passage(each, relevance=relevance, held=terms.held(_read(each)))
            for each, relevance in ((found.passages[i], relevance) for i, relevance in ranked)
        ]

    def candidates(self, query: str, index: KeywordIndex, whole: Whole = set) -> Found:
        """What either side finds, judged by both, in no order that matters."""
        depth = max(DEPTH, 2 * self.k)
        vector, terms = self.store.embed(query), index.analyse(query)
        near = self._near(vector, depth, whole)
        hits: list[Hit] = self._whole(lambda n: index.search(terms, n), lambda hit: hit.doc_id, depth, whole)
        passages = {str(each.id): each for each, _ in near}
        cosines = {str(each.id): score for each, score in near}
        shares = {hit.chunk_id: hit.score for hit in hits}
        new = [name for name in shares if name not in cosines]
        passages.update((str(each.id), each) for each in self.store.get_by_ids(new))
        cosines.update(self.store.similarities(vector, new))
        shares.update(index.scores(terms, [name for name in cosines if name not in shares]))
        names = [name for name in cosines if name in passages]  # Chroma may have lost a chunk just now
        judged = Candidates(
            [cosines[name] for name in names],
            [shares[name] for name in names],
            known=terms.known,
            covered=self.coverage(query),
        )
        scored = [_passage(passages[name], score=cosines[name], keyword_score=shares[name]) for name in names]
        return Found(scored, judged)

    # -- whole documents only --------------------------------------------------------------------------------------

    def _near(self, vector: list[float], n: int, whole: Whole) -> list[tuple[Document, float]]:
        return self._whole(
            lambda m: self.store.similarity_search_by_vector_with_score(vector, m),
            lambda pair: str(pair[0].metadata.get("doc_id")),
            n,
            whole,
        )

    def _whole(
        self, search: Callable[[int], list[Any]], doc_of: Callable[[Any], str], n: int, whole: Whole
    ) -> list[Any]:
        """The first n results that belong to whole documents; looks further where others take their places."""
        asked = n
        while True:
            found = search(asked)
            known = whole([doc_of(each) for each in found])
            kept = [each for each in found if doc_of(each) in known]
            if len(kept) >= n or len(found) < asked or asked >= MOST:
                return kept[:n]
            asked *= 4


def _read(passage: Document) -> str:
    """Its text with the headings above it."""
    return f"{passage.metadata.get('headings', '')}\n{passage.page_content}"


def _passage(found: Document, **scores: float) -> Document:
    page = found.metadata.get("page")
    return Document(id=found.id, page_content=found.page_content, metadata={**found.metadata, "page": page, **scores})
