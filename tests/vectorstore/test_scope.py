"""Searching among some documents: the k best of those that match, whatever share of all they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings

from vectorstore import scope as scopes
from vectorstore.keyword import KeywordIndex, folder_of
from vectorstore.retriever import Retriever
from vectorstore.scope import Scope
from vectorstore.store import ChromaStore, open_client

DOCUMENTS, CHUNKS, D = 300, 5, 16
WORDS = ("hay", "gate", "vet", "paddock", "羊驼", "干草", "RS-232C", "salt")


class Known(Embeddings):
    """Vectors by the number in a text."""

    def __init__(self) -> None:
        self.vectors = np.random.default_rng(0).standard_normal((DOCUMENTS * CHUNKS, D)).astype(np.float32)

    def embed_query(self, text: str) -> list[float]:
        draw = np.random.default_rng(len(text))
        found: list[float] = draw.standard_normal(D).tolist()
        return found

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        raise AssertionError("the vectors are given")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[ChromaStore, KeywordIndex]:
    root: Path = tmp_path_factory.mktemp("scope")
    known, draw = Known(), np.random.default_rng(1)
    store = ChromaStore(open_client(root / "chroma"), "default", known, "known@1", create=True)
    index = KeywordIndex(folder_of(root / "keyword", "default"), create=True)
    chunks = []
    for number in range(DOCUMENTS):
        texts = [f"{' '.join(draw.choice(WORDS, 6))} {number * CHUNKS + n}" for n in range(CHUNKS)]  # no two alike
        ids = [f"d{number:03d}-{ordinal:05d}" for ordinal in range(CHUNKS)]
        chunks += [Document(t, id=i, metadata={"doc_id": f"d{number:03d}"}) for i, t in zip(ids, texts, strict=True)]
        index.put(f"d{number:03d}", list(zip(ids, texts, strict=True)))
    index.commit()
    store.add_documents(chunks, embeddings=known.vectors.tolist())
    return store, index


def limited(made: tuple[ChromaStore, KeywordIndex], mode: str, k: int, wanted: Sequence[int]) -> Retriever:
    names = {f"d{number:03d}" for number in wanted}
    scope = Scope(CHUNKS * len(names), len(names) / DOCUMENTS, lambda: names)
    return Retriever(
        store=made[0],
        keyword=made[1],
        mode=mode,
        k=k,
        min_score=-1.0,
        visible=lambda doc_ids, version: names & set(doc_ids),
        scope=lambda: scope,
    )


def nearest(made: tuple[ChromaStore, KeywordIndex], question: str, k: int, wanted: Sequence[int]) -> list[str]:
    """By comparing with every vector."""
    known = made[0].embeddings
    assert isinstance(known, Known)
    unit = known.vectors / np.linalg.norm(known.vectors, axis=1, keepdims=True)
    rows = [number * CHUNKS + ordinal for number in wanted for ordinal in range(CHUNKS)]
    scores = unit[rows] @ np.array(known.embed_query(question))
    best = [rows[i] for i in np.argsort(-scores)[:k]]
    return [f"d{row // CHUNKS:03d}-{row % CHUNKS:05d}" for row in best]


SHARES = {
    "one": [7],
    "few": [3, 99, 100, 250],
    "a third": list(range(0, 300, 3)),
    "most": list(range(20, 300)),
}


@pytest.mark.parametrize("wanted", SHARES.values(), ids=SHARES.keys())
@pytest.mark.parametrize("ways", ["as it is", "by the graph", "passing over"])
def test_the_nearest_of_those_that_match(
    made: tuple[ChromaStore, KeywordIndex], monkeypatch: pytest.MonkeyPatch, wanted: list[int], ways: str
) -> None:
    if ways != "as it is":
        monkeypatch.setattr(scopes, "FEW", 0)
        monkeypatch.setattr(scopes, "RARE", 1.1 if ways == "by the graph" else 0.0)
        monkeypatch.setattr(scopes, "COMPARED", 0)
        monkeypatch.setattr(scopes, "GROUP", 40)
    for question in ("a", "hay and salt", "羊驼"):
        found = limited(made, "dense", 10, wanted).invoke(question)
        assert [each.id for each in found] == nearest(made, question, 10, wanted)


def test_passing_over_ends_and_looks_inside(
    made: tuple[ChromaStore, KeywordIndex], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where what matches is far from the question, going further down would not end soon."""
    monkeypatch.setattr("vectorstore.retriever.DEEPEST", 40)
    monkeypatch.setattr(scopes, "FEW", 0)
    monkeypatch.setattr(scopes, "RARE", 0.0)
    far = [int(name[1:4]) for name in nearest(made, "hay", DOCUMENTS * CHUNKS, range(DOCUMENTS))[-30:]]
    wanted = sorted(set(far))
    found = limited(made, "dense", 50, wanted).invoke("hay")
    assert [each.id for each in found] == nearest(made, "hay", 50, wanted)


@pytest.mark.parametrize("wanted", SHARES.values(), ids=SHARES.keys())
@pytest.mark.parametrize("question", ["hay and salt", "羊驼吃干草 rs232c"])
def test_the_best_by_words_of_those_that_match(
    made: tuple[ChromaStore, KeywordIndex], wanted: list[int], question: str
) -> None:
    _, index = made
    every = index.search(index.analyse(question), DOCUMENTS * CHUNKS)
    names = {f"d{number:03d}" for number in wanted}
    best = sorted((hit.score for hit in every if hit.doc_id in names), reverse=True)[:10]
    found = limited(made, "keyword", 10, wanted).invoke(question)
    assert {each.metadata["doc_id"] for each in found} <= names
    assert [each.metadata["score"] for each in found] == pytest.approx(best)


@pytest.mark.parametrize("wanted", SHARES.values(), ids=SHARES.keys())
def test_hybrid_stays_among_those_that_match(made: tuple[ChromaStore, KeywordIndex], wanted: list[int]) -> None:
    found = limited(made, "hybrid", 8, wanted).invoke("hay and salt")
    assert {each.metadata["doc_id"] for each in found} <= {f"d{number:03d}" for number in wanted}
    assert len(found) == min(8, CHUNKS * len(wanted))
