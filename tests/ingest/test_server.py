"""Vectors on a Chroma server: ingested, found, renamed, deleted; the server absent, emptied, or shared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ingest.sync import Ingestor
from tests.ingest.fakes import FakeEmbedder, open_ingestor, store_of
from tests.vectorstore.chroma_server import free_port, running_server
from vectorstore.errors import StoreError
from vectorstore.hnsw import DEFAULT_HNSW
from vectorstore.keyword import KeywordIndex, folder_of
from vectorstore.retriever import Retriever

Write = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_server(tmp_path_factory.mktemp("server"), free_port()) as address:
        yield address


@pytest.fixture
def far(home: Path, embedder: FakeEmbedder, url: str) -> Ingestor:
    return open_ingestor(home, embedder, url)


def found(ingestor: Ingestor, question: str, kb: str = "farm") -> list[str]:
    manifest = ingestor.manifest
    retriever = Retriever(
        store=store_of(ingestor, kb),
        keyword=KeywordIndex(folder_of(ingestor.keyword, kb)),
        k=3,
        min_score=-1.0,
        visible=lambda doc_ids, version: manifest.known_docs(kb, doc_ids, version),
        version=manifest.version,
    )
    return [str(each.metadata["source"]) for each in retriever.invoke(question)]


def test_from_the_file_to_the_passage_and_back(
    far: Ingestor, home: Path, write: Write, embedder: FakeEmbedder, url: str
) -> None:
    write("farm/hay.md", "Llamas eat hay in the evening.\n")
    vet = write("farm/vet.md", "The vet comes on Mondays.\n")
    assert far.sync("farm").added == 2
    assert found(far, "llamas hay")[0] == "hay.md"
    assert not (home / "index" / "chroma").exists(), "nothing of it lies here"

    vet.rename(vet.with_name("doctor.md"))
    (home / "inbox" / "farm" / "hay.md").write_text("Llamas drink water in the evening.\n")
    report = open_ingestor(home, embedder, url).sync("farm")
    assert (report.changed, report.renamed) == (1, 1)
    assert found(far, "the vet on Mondays")[0] == "doctor.md"
    assert store_of(far, "farm").count() == 2

    before = len(embedder.embedded)
    again = open_ingestor(home, embedder, url).sync("farm")
    assert (again.unchanged, len(embedder.embedded)) == (2, before)

    far.delete_document("farm", "doctor.md")
    assert found(far, "the vet on Mondays") == ["hay.md"]
    far.delete_kb("farm")
    assert far.vectors.collection_id("farm") is None
    with pytest.raises(StoreError, match="not indexed yet"):
        store_of(far, "farm")


def test_a_server_that_does_not_answer(home: Path, write: Write, embedder: FakeEmbedder) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    write("hay.md", "Llamas eat hay.\n")
    with pytest.raises(StoreError) as raised:
        open_ingestor(home, embedder, nobody).sync("default")
    assert f"the Chroma server {nobody} cannot be used" in str(raised.value)
    assert "start it, or mend the setting `store`" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_server_that_goes_and_comes_back(home: Path, write: Write, embedder: FakeEmbedder, tmp_path: Path) -> None:
    port = free_port()
    write("hay.md", "Llamas eat hay.\n")
    with running_server(tmp_path / "data", port) as address:
        ingestor = open_ingestor(home, embedder, address)
        ingestor.sync("default")
        store = store_of(ingestor, "default")
        assert store.count() == 1
    with pytest.raises(StoreError, match="cannot be used"):
        store.count()
    with running_server(tmp_path / "data", port):
        assert store.count() == 1
        assert found(ingestor, "hay", "default") == ["hay.md"]
        assert ingestor.sync("default").unchanged == 1


def test_a_server_that_lost_its_data_is_filled_again(
    home: Path, write: Write, embedder: FakeEmbedder, url: str
) -> None:
    write("farm/hay.md", "Llamas eat hay.\n")
    ingestor = open_ingestor(home, embedder, url)
    ingestor.sync("farm")
    ingestor.vectors.drop("farm")
    report = open_ingestor(home, embedder, url).sync("farm")
    assert (report.added, report.chunks) == (1, 1)
    assert found(ingestor, "hay") == ["hay.md"]


def test_moving_between_folder_and_server_indexes_anew(
    home: Path, write: Write, embedder: FakeEmbedder, url: str
) -> None:
    write("farm/hay.md", "Llamas eat hay.\n")
    for address in ("", url, ""):
        ingestor = open_ingestor(home, embedder, address)
        assert ingestor.sync("farm").added == 1
        assert found(ingestor, "hay") == ["hay.md"]


def test_installations_share_a_server(tmp_path: Path, url: str) -> None:
    found_by = []
    for name in ("one", "two"):
        home = tmp_path / name
        (home / "inbox" / "farm").mkdir(parents=True)
        (home / "inbox" / "farm" / f"{name}.md").write_text("Llamas eat hay.\n")
        ingestor = open_ingestor(home, FakeEmbedder(), url)
        ingestor.sync("farm")
        found_by.append(ingestor)
    assert [found(ingestor, "hay") for ingestor in found_by] == [["one.md"], ["two.md"]]
    found_by[0].delete_kb("farm")
    assert found(found_by[1], "hay") == ["two.md"]


@pytest.mark.parametrize("place", ["folder", "server"])
def test_parameters_of_the_graph(home: Path, write: Write, embedder: FakeEmbedder, url: str, place: str) -> None:
    """They are what the collection was made with; those of a search are taken over later, without embedding anew."""
    address = url if place == "server" else ""
    write("farm/hay.md", "Llamas eat hay.\n")

    def held(ingestor: Ingestor) -> list[int]:
        graph = store_of(ingestor, "farm")._collection().configuration["hnsw"]
        assert graph["space"] == "cosine"
        return [graph[name] for name in ("max_neighbors", "ef_construction", "ef_search", "sync_threshold")]

    first = replace(DEFAULT_HNSW, neighbors=8, ef_construction=50, ef_search=30, sync=70)
    ingestor = open_ingestor(home, embedder, address, hnsw=first)
    ingestor.sync("farm")
    assert held(ingestor) == [8, 50, 30, 70]
    before = len(embedder.embedded)
    ingestor = open_ingestor(home, embedder, address, hnsw=replace(first, neighbors=9, ef_search=31, sync=71))
    assert ingestor.sync("farm").unchanged == 1
    assert held(ingestor) == [8, 50, 31, 71]
    assert len(embedder.embedded) == before
