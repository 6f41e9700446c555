"""The retriever in its modes: what is found, in which order, and what is left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document

from tests.vectorstore.fakes import WordEmbeddings
from vectorstore import retriever
from vectorstore.fusion import Fusion
from vectorstore.keyword import KeywordIndex, folder_of
from vectorstore.rerank import Reranker
from vectorstore.retriever import Retriever
from vectorstore.store import ChromaStore, open_client

TEXTS = {
    "hay": "Llamas eat hay and the hay is dry.",
    "gate": "The gate of the paddock has the code RS-232C.",
    "vet": "The vet comes on Mondays and looks at the llamas.",
    "zh": "羊驼吃干草，也喝水。",
    "zh2": "獸醫每週一來看羊駝。",
}


@pytest.fixture
def store(tmp_path: Path) -> ChromaStore:
    made = ChromaStore(open_client(tmp_path / "chroma"), "default", WordEmbeddings(), "words@1", create=True)
    documents = [Document(text, id=name, metadata={"doc_id": name, "source": name}) for name, text in TEXTS.items()]
    documents[1].metadata["page"] = 2
    made.add_documents(documents)
    return made


@pytest.fixture
def keyword(tmp_path: Path) -> KeywordIndex:
    index = KeywordIndex(folder_of(tmp_path / "keyword", "default"), create=True)
    for name, text in TEXTS.items():
        index.put(name, [(name, text)])
    index.commit()
    return index


@pytest.fixture
def make(store: ChromaStore, keyword: KeywordIndex) -> Callable[..., Retriever]:
    def made(**fields: Any) -> Retriever:
        return Retriever(**{"store": store, "keyword": keyword, "min_score": -1.0, **fields})

    return made


def ids(found: Sequence[Document]) -> list[str]:
    return [str(each.id) for each in found]


class TestDense:
    def test_scores_pages_and_order(self, store: ChromaStore) -> None:
        store.add_texts(["red green", "red", "blue"], [{"page": 2}, {"source": "s"}, {"page": 1}], ids=["a", "b", "c"])
        found = Retriever(store=store, mode="dense", k=3, min_score=0.4).invoke("red")
        assert ids(found) == ["b", "a"]
        assert [each.metadata["page"] for each in found] == [None, 2]
        assert [each.metadata["score"] for each in found] == pytest.approx([1.0, 2**-0.5], abs=1e-5)
        assert all(isinstance(each.metadata["score"], float) for each in found)
        assert found[0].metadata["source"] == "s"

    def test_k_limits(self, make: Callable[..., Retriever]) -> None:
        assert len(make(mode="dense", k=2).invoke("llamas")) == 2

    def test_nothing_near_enough(self, make: Callable[..., Retriever]) -> None:
        assert make(mode="dense", min_score=0.99).invoke("zebra") == []

    @pytest.mark.parametrize("mode", ["keyword", "hybrid"])
    def test_stands_in_for_a_missing_keyword_index(self, make: Callable[..., Retriever], mode: str) -> None:
        question = "what do llamas eat"
        assert ids(make(mode=mode, keyword=None).invoke(question)) == ids(make(mode="dense").invoke(question))


class TestKeyword:
    def test_needs_no_embedder(self, store: ChromaStore, make: Callable[..., Retriever]) -> None:
        bare = ChromaStore(store.client, "default", None, "words@1")
        (found,) = make(store=bare, mode="keyword").invoke("rs232c")
        assert (found.id, found.page_content, found.metadata["page"]) == ("gate", TEXTS["gate"], 2)
        assert 0 < found.metadata["score"] <= 1

    def test_order_and_k(self, make: Callable[..., Retriever]) -> None:
        assert ids(make(mode="keyword", k=1).invoke("羊駝喝水")) == ["zh"]
        assert ids(make(mode="keyword", k=5).invoke("羊駝喝水")) == ["zh", "zh2"]


@pytest.mark.parametrize("mode", ["dense", "keyword", "hybrid", "without an index"])
def test_what_confidence_is_told_from_is_there_in_every_mode(make: Callable[..., Retriever], mode: str) -> None:
    asked = {"mode": "dense", "keyword": None} if mode == "without an index" else {"mode": mode}
    best = make(k=5, **asked).invoke("rs232c zebra code")[0]
    data = best.metadata
    assert 0 < data["held"] < 1
    assert 0.9 < data["ordinary"] < 1, "of few chunks"
    assert "relevance" in data
    assert ("cosine" in data) == (mode != "keyword")


class TestHybrid:
    def test_every_passage_is_judged_by_both(
        self, make: Callable[..., Retriever], keyword: KeywordIndex, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Also one that only one side has among its first."""
        monkeypatch.setattr(retriever, "DEPTH", 2)
        question = "a vet and code for the hay gate 羊驼也喝水"
        sides = [set(ids(make(mode=mode, k=2).invoke(question))) for mode in ("dense", "keyword")]
        assert sides[0] - sides[1], "or nothing is tested"
        assert sides[1] - sides[0], "or nothing is tested"
        found = make(k=1).candidates(question, keyword).passages
        assert set(ids(found)) == sides[0] | sides[1]
        near = {str(each.id): each.metadata["score"] for each in make(mode="dense", k=5).invoke(question)}
        words = keyword.scores(keyword.analyse(question), list(TEXTS))
        for each in found:
            assert each.metadata["score"] == pytest.approx(near[str(each.id)], abs=1e-5)
            assert each.metadata["keyword_score"] == pytest.approx(words[str(each.id)])

    def test_best_first(self, make: Callable[..., Retriever]) -> None:
        found = make(k=5).invoke("the code of the gate")
        assert found[0].id == "gate"
        relevance = [each.metadata["relevance"] for each in found]
        assert relevance == sorted(relevance, reverse=True)

    def test_agrees_with_the_side_that_is_trusted(self, make: Callable[..., Retriever]) -> None:
        question = "the llamas and the vet on Mondays"
        for mode, constant in (("dense", 50.0), ("keyword", -50.0)):
            found = ids(make(k=3, fusion=Fusion((constant, 0.0, 0.0, 0.0))).invoke(question))
            assert found[:2] == ids(make(mode=mode, k=2).invoke(question))

    def test_what_the_embedder_reads_is_asked_for(self, make: Callable[..., Retriever]) -> None:
        asked: list[str] = []

        def coverage(text: str) -> float:
            asked.append(text)
            return 0.5

        make(coverage=coverage).invoke("hay?")
        assert asked == ["hay?"]

    def test_no_limit_comes_before_confidence(self, make: Callable[..., Retriever]) -> None:
        for question in ("rs232c", "what does the zebra think of algebra and opera"):
            assert len(make(min_score=0.99).invoke(question)) == 4

    @pytest.mark.parametrize(
        "question",
        ["the of and", "?!…", " ", "🦙", "hay 干草 RS-232C", "'; DROP TABLE chunks; --", '{"$ne": 1}', "a" * 20_000],
    )
    @pytest.mark.parametrize("mode", ["dense", "keyword", "hybrid"])
    def test_odd_questions(self, make: Callable[..., Retriever], mode: str, question: str) -> None:
        found = make(mode=mode, k=3).invoke(question)
        assert len(found) == len(set(ids(found))) <= 3

    def test_mixed_scripts(self, make: Callable[..., Retriever]) -> None:
        assert set(ids(make(mode="keyword").invoke("hay 獸醫 RS-232C"))) == {"hay", "zh2", "gate"}


class TestWholeDocuments:
    @pytest.mark.parametrize("mode", ["dense", "keyword", "hybrid"])
    def test_others_are_not_seen(self, make: Callable[..., Retriever], mode: str) -> None:
        def visible(doc_ids: Sequence[str], version: int) -> set[str]:
            return set(doc_ids) - {"hay", "zh"}

        for question in ("llamas eat hay", "羊驼吃干草"):
            assert set(ids(make(mode="dense", k=5).invoke(question))) >= {"hay", "zh"}
            found = set(ids(make(mode=mode, k=5, visible=visible).invoke(question)))
            assert found
            assert not found & {"hay", "zh"}

    @pytest.mark.parametrize("mode", ["dense", "keyword", "hybrid"])
    def test_a_large_half_written_document_does_not_hide_the_others(
        self, make: Callable[..., Retriever], store: ChromaStore, keyword: KeywordIndex, mode: str
    ) -> None:
        crowd = [Document("hay hay", id=f"new-{i:05d}", metadata={"doc_id": "new"}) for i in range(300)]
        store.add_documents(crowd)
        keyword.put("new", [(str(each.id), each.page_content) for each in crowd])
        keyword.commit()
        found = make(mode=mode, k=1, visible=lambda doc_ids, version: set(doc_ids) - {"new"}).invoke("hay")
        assert ids(found) == ["hay"]

    def test_a_chunk_that_the_store_no_longer_has(self, make: Callable[..., Retriever], store: ChromaStore) -> None:
        store.delete(["gate"])
        for mode in ("keyword", "hybrid"):
            assert "gate" not in ids(make(mode=mode, k=5).invoke("rs232c"))


class TestReranked:
    @pytest.mark.parametrize("mode", ["dense", "keyword", "hybrid"])
    def test_more_are_read_than_returned(self, make: Callable[..., Retriever], mode: str) -> None:
        question = "what do the llamas eat"
        plain = ids(make(mode=mode, k=5).invoke(question))
        read: list[str] = []

        def scorer(asked: str, head: Sequence[Document]) -> list[float]:
            assert asked == question
            read.extend(ids(head))
            return list(range(len(head)))

        reranker = Reranker(scorer=scorer, candidates=len(plain), relevance=0, weight=1)
        found = make(mode=mode, k=1, reranker=reranker).invoke(question)
        assert len(plain) > 1
        assert (read, ids(found)) == (plain, plain[-1:])
        reranker = Reranker(scorer=scorer, candidates=2, relevance=0, weight=1)
        assert ids(make(mode=mode, k=5, reranker=reranker).invoke(question)) == [plain[1], plain[0], *plain[2:]]

    def test_nothing_found_is_not_scored(self, make: Callable[..., Retriever]) -> None:
        reranker = Reranker(scorer=lambda asked, head: pytest.fail("asked"), weight=1)
        assert make(mode="keyword", reranker=reranker).invoke("zebra") == []
