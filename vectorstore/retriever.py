"""The retriever: passages by meaning (vectors), by words (BM25), or by both, weighed for each question."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from pydantic import ConfigDict, Field

from vectorstore.fusion import Candidates, Fusion, learned
from vectorstore.keyword import Hit, KeywordIndex, Terms, unindexed
from vectorstore.rerank import Reranker
from vectorstore.rows import doc_of
from vectorstore.scope import DEEPEST, Scope
from vectorstore.store import ChromaStore
from vectorstore.variety import distinct, diverse

Whole = Callable[[Sequence[str]], set[str]]  # ids of documents -> those that are whole
T = TypeVar("T")
Mode = Literal["dense", "keyword", "hybrid"]
DEPTH = 50  # candidates of each side
SPARE = 4  # passages found beyond those asked for, to stand in for near-duplicates
CHOICE = 3  # times as many are found as returned, where they are to differ
TRIES = 4  # to search while no document changes
MOST = 1600  # looked at to find DEPTH that belong to whole documents


def everything(doc_ids: Sequence[str], version: int) -> set[str]:
    """Every document is whole."""
    return set(doc_ids)


def fully(text: str) -> float:
    """Every text can be read by the embedder."""
    return 1.0


@dataclass(frozen=True)
class View:
    """What a question may see: documents that are whole, and those of a filter."""

    whole: Whole = set
    scope: Scope | None = None


@dataclass(frozen=True)
class Found:
    """Candidates by their ids, and as what the fusion judges by, in the same order."""

    store: ChromaStore
    names: list[str]
    judged: Candidates
    terms: Terms  # of the question

    def take(self, places: Sequence[int], **scores: Sequence[float]) -> list[Document]:
        """The passages at these places, in this order, with further scores of each; what is gone is left out."""
        texts = {str(each.id): each for each in self.store.get_by_ids([self.names[i] for i in places])}
        return [
            _passage(
                texts[self.names[i]],
                score=self.judged.cosines[i],
                cosine=self.judged.cosines[i],
                keyword_score=self.judged.shares[i],
                **{name: values[n] for name, values in scores.items()},
            )
            for n, i in enumerate(places)
            if self.names[i] in texts
        ]

    @property
    def passages(self) -> list[Document]:
        """All of them. Their texts are read each time, which takes longer than to find them."""
        return self.take(range(len(self.names)))


class Retriever(BaseRetriever):
    """The k best passages of a knowledge base.

    A passage's metadata has "score" (float: cosine similarity to the question; in keyword mode its share of the best
    BM25 score there could be, see Hit), "keyword_score" (that share; absent in dense mode), "cosine" (that similarity;
    absent in keyword mode), "relevance" (float: what the mode ranks by), "held" and "ordinary" (the share of the
    question's idf whose terms stand in it, and how much of what that idf rests on is ordinary text, see `background`),
    "rerank_score" (float, where it was reranked) and "page" (int, or None without pages).
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    store: ChromaStore
    keyword: KeywordIndex | None = Field(None, description="without it, every mode is dense")
    mode: Mode = "hybrid"
    k: int = Field(4, ge=1, description="passages returned at most")
    min_score: float = Field(0.2, ge=-1.0, le=1.0, description="in dense mode, passages less similar are left out")
    visible: Callable[..., set[str]] = Field(
        everything, description="(doc_ids, version): which of them are whole, and were at that version"
    )
    version: Callable[[], int] = Field(lambda: 0, description="grows whenever a document becomes whole")
    coverage: Callable[[str], float] = Field(fully, description="share of a text that the embedder's vocabulary knows")
    fusion: Fusion = Field(default_factory=learned, description="what each side is worth")
    scope: Callable[[], Scope] | None = Field(None, description="of a filter, which `visible` then knows as well")
    reranker: Reranker | None = Field(None, description="puts the first passages into another order")
    diversity: float = Field(0.0, ge=0.0, le=1.0, description="of maximal marginal relevance; 0 leaves the order")

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        for _ in range(TRIES):
            before = self.version()
            whole = partial(self.visible, version=before)
            found = self._found(query, View(whole, self.scope() if self.scope else None))
            if self.version() == before:
                break  # else a document that was replaced just now is in neither of its versions
        if self.reranker is not None:
            found = self.reranker.compress_documents(found, query)
        if self.diversity:
            found = diverse(found, len(found), self.diversity)
        return distinct(found, self.k)

    @property
    def _needed(self) -> int:
        """Passages to find: all that are reordered, some for those that are found twice, more to choose from."""
        read = 0 if self.reranker is None else self.reranker.candidates
        return max(self.k + SPARE, read, CHOICE * self.k if self.diversity else 0)

    def _found(self, query: str, view: View) -> list[Document]:
        if self.keyword is None or self.mode == "dense":
            return self._dense(query, view)
        by = self._words if self.mode == "keyword" else self._both
        return by(query, self.keyword, view)

    # -- modes -----------------------------------------------------------------------------------------------------

    def _dense(self, query: str, view: View) -> list[Document]:
        near = self._near(self.store.embed(query), self._needed, view)
        found = {name: score for name, score in near if score >= self.min_score}
        passages = [
            _passage(each, score=found[str(each.id)], cosine=found[str(each.id)], relevance=found[str(each.id)])
            for each in self.store.get_by_ids(list(found))
        ]
        terms = unindexed(query, self.store.count()) if self.keyword is None else self.keyword.analyse(query)
        return _held(passages, terms)

    def _words(self, query: str, index: KeywordIndex, view: View) -> list[Document]:
        terms = index.analyse(query)
        found = {hit.chunk_id: hit.score for hit in self._hits(index, terms, self._needed, view)}
        passages = [
            _passage(each, score=share, keyword_score=share, relevance=share)
            for each in self.store.get_by_ids(list(found))
            for share in [found[str(each.id)]]
        ]
        return _held(passages, terms)

    def _both(self, query: str, index: KeywordIndex, view: View) -> list[Document]:
        found = self.candidates(query, index, view)
        ranked = self.fusion.ranked(found.judged)[: self._needed]
        return _held(found.take([i for i, _ in ranked], relevance=[relevance for _, relevance in ranked]), found.terms)

    def candidates(self, query: str, index: KeywordIndex, view: View = View()) -> Found:
        """What either side finds, judged by both, in no order that matters."""
        depth = max(DEPTH, 2 * self.k, self._needed - SPARE)
        vector, terms = self.store.embed(query), index.analyse(query)
        cosines = dict(self._near(vector, depth, view))
        shares = {hit.chunk_id: hit.score for hit in self._hits(index, terms, depth, view)}
        cosines.update(self.store.similarities(vector, [name for name in shares if name not in cosines]))
        shares.update(index.scores(terms, [name for name in cosines if name not in shares]))
        names = list(cosines)
        judged = Candidates(
            [cosines[name] for name in names],
            [shares[name] for name in names],
            known=terms.known,
            covered=self.coverage(query),
        )
        return Found(self.store, names, judged, terms)

    # -- whole documents only --------------------------------------------------------------------------------------

    def _near(self, vector: list[float], n: int, view: View) -> list[tuple[str, float]]:
        return self._whole(
            lambda m: self.store.nearest(vector, m),
            lambda m, scope: scope.nearest(self.store, vector, m),
            lambda pair: doc_of(pair[0]),
            n,
            view,
        )

    def _hits(self, index: KeywordIndex, terms: Terms, n: int, view: View) -> list[Hit]:
        return self._whole(
            lambda m: index.search(terms, m),
            lambda m, scope: index.search(terms, m, scope.doc_ids),
            lambda hit: hit.doc_id,
            n,
            view,
        )

    def _whole(
        self,
        everywhere: Callable[[int], list[T]],
        inside: Callable[[int, Scope], list[T]],
        doc_of: Callable[[T], str],
        n: int,
        view: View,
    ) -> list[T]:
        """The first n results that belong to whole documents in scope; of all documents, or searched for inside it."""
        scope = view.scope
        if scope is not None and not scope.narrow:
            kept, enough = _first(everywhere, doc_of, n, view.whole, scope.asked(n), DEEPEST)
            if enough:
                return kept
        search = everywhere if scope is None else lambda m: inside(m, scope)
        return _first(search, doc_of, n, view.whole, n, MOST)[0]


def _first(
    search: Callable[[int], list[T]], doc_of: Callable[[T], str], n: int, whole: Whole, asked: int, most: int
) -> tuple[list[T], bool]:
    """The first n results that belong to whole documents, and whether no more could be found.

    Begins with `asked` results and looks further, up to about `most`, where others take their places.
    """
    while True:
        found = search(asked)
        known = whole([doc_of(each) for each in found])
        kept = [each for each in found if doc_of(each) in known]
        enough = len(kept) >= n or len(found) < asked
        if enough or asked >= most:
            return kept[:n], enough
        asked *= 4


def _held(passages: list[Document], terms: Terms) -> list[Document]:
    """Passages with what confidence is told from."""
    return [_passage(each, held=terms.held(_read(each)), ordinary=terms.ordinary) for each in passages]


def _read(passage: Document) -> str:
    """Its text with the headings above it."""
    return f"{passage.metadata.get('headings', '')}\n{passage.page_content}"


def _passage(found: Document, **scores: float) -> Document:
    page = found.metadata.get("page")
    return Document(id=found.id, page_content=found.page_content, metadata={**found.metadata, "page": page, **scores})
