"""ChromaStore against LangChain's VectorStore interface, and what it adds to it."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from chromadb.errors import InternalError
from langchain_core.documents import Document

from tests.vectorstore.fakes import DIMENSIONS, WordEmbeddings
from vectorstore.check import is_sound
from vectorstore.errors import StoreError
from vectorstore.marker import read_marker
from vectorstore.store import ChromaStore, drop_kb, find_collection, open_client

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "index" / "chroma"


@pytest.fixture
def store(folder: Path) -> ChromaStore:
    return ChromaStore(open_client(folder), "default", WordEmbeddings(), "words@1", create=True)


def texts(documents: list[Document]) -> list[str]:
    return [document.page_content for document in documents]


def test_documents_come_back_with_id_text_and_metadata(store: ChromaStore) -> None:
    metadata = {"source": "手册.pdf", "page": 3, "ordinal": 0, "headings": "", "score": 0.5, "new": True}
    ids = store.add_documents([Document("羊驼吃干草。", id="a", metadata=metadata)])
    assert ids == ["a"]
    (found,) = store.similarity_search("羊驼")
    assert (found.id, found.page_content, found.metadata) == ("a", "羊驼吃干草。", metadata)


def test_none_and_empty_metadata(store: ChromaStore) -> None:
    store.add_documents([Document("one", metadata={"page": None, "source": "x"}), Document("two")], ids=["1", "2"])
    assert [each.metadata for each in store.get_by_ids(["1", "2"])] == [{"source": "x"}, {}]


def test_empty_collection_finds_nothing(store: ChromaStore) -> None:
    assert store.similarity_search("anything", k=5) == []
    assert (store.ids(), store.count(), store.get_by_ids(["x"]), store.chunks_of("d")) == ([], 0, [], [])


def test_k_beyond_the_count_and_below_one(store: ChromaStore) -> None:
    store.add_texts(["hay", "salt"])
    assert len(store.similarity_search("hay", k=50)) == 2
    assert store.similarity_search("hay", k=0) == []


def test_scores_are_cosine_similarities_best_first(store: ChromaStore) -> None:
    store.add_texts(["red green", "red", "blue"], ids=["half", "same", "none"])
    found = store.similarity_search_with_score("red", k=3)
    assert [document.id for document, _ in found] == ["same", "half", "none"]
    assert [score for _, score in found] == pytest.approx([1.0, 2**-0.5, 0.0], abs=1e-5)


def test_relevance_scores_stay_within_zero_and_one(store: ChromaStore) -> None:
    opposite = [-value for value in WordEmbeddings().embed_query("red")]
    store.add_documents([Document("x")], ids=["x"], embeddings=[opposite])
    assert store.similarity_search_with_score("red")[0][1] == pytest.approx(-1.0, abs=1e-5)
    assert store.similarity_search_with_relevance_scores("red")[0][1] == 0.0


def test_langchain_retriever_filter_and_async(store: ChromaStore) -> None:
    store.add_texts(["red one", "red two"], [{"page": 1}, {"page": 2}])
    assert texts(store.as_retriever(search_kwargs={"k": 1}).invoke("red two")) == ["red two"]
    assert texts(store.similarity_search("red", filter={"page": 1})) == ["red one"]
    assert texts(asyncio.run(store.asimilarity_search("red two", k=1))) == ["red two"]


def test_search_by_vector(store: ChromaStore) -> None:
    store.add_texts(["red", "blue"])
    assert texts(store.similarity_search_by_vector(WordEmbeddings().embed_query("blue"), k=1)) == ["blue"]


def test_from_texts(folder: Path) -> None:
    made = ChromaStore.from_texts(
        ["a", "b"], WordEmbeddings(), [{"n": 1}, {"n": 2}], client=open_client(folder), kb="k"
    )
    assert made.count() == 2
    assert find_collection(made.client, "k") == made.collection_id


def test_same_id_replaces(store: ChromaStore) -> None:
    store.add_texts(["old"], [{"page": 1}], ids=["a"])
    store.add_texts(["new"], [{"page": 2}], ids=["a"])
    assert [(each.page_content, each.metadata) for each in store.get_by_ids(["a"])] == [("new", {"page": 2})]
    assert store.count() == 1


def test_given_vectors_are_used(store: ChromaStore) -> None:
    embedder = store.embeddings
    assert isinstance(embedder, WordEmbeddings)
    store.add_documents([Document("blue")], embeddings=[embedder.embed_query("red")])
    assert embedder.embedded == []
    assert store.similarity_search_with_score("red")[0][1] == pytest.approx(1.0, abs=1e-5)


def test_numbers_that_do_not_match_are_refused(store: ChromaStore) -> None:
    with pytest.raises(ValueError):
        store.add_texts(["a", "b"], ids=["1"])
    with pytest.raises(ValueError):
        store.add_documents([Document("a")], embeddings=[])
    store.add_texts(["first"])
    with pytest.raises(StoreError, match="dimension"):
        store.add_documents([Document("a")], embeddings=[[1.0, 0.0]])


def test_get_by_ids_keeps_the_order_and_skips_unknown_ones(store: ChromaStore) -> None:
    store.add_texts(["a", "b", "c"], ids=["1", "2", "3"])
    assert texts(store.get_by_ids(["3", "nope", "1", "3"])) == ["c", "a"]


def test_delete(store: ChromaStore) -> None:
    store.add_texts(["a", "b", "c"], ids=["1", "2", "3"])
    assert store.delete(["1", "unknown"])
    assert store.delete([])
    assert store.ids() == ["2", "3"]
    assert store.delete()
    assert store.ids() == []


def test_documents_of_many_chunks(store: ChromaStore) -> None:
    vector = [1.0] + [0.0] * (DIMENSIONS - 1)
    for doc in ("d1", "d2"):
        chunks = [Document(f"{doc} {i}", metadata={"doc_id": doc, "ordinal": i, "source": doc}) for i in range(1200)]
        store.add_documents(chunks, ids=[f"{doc}-{i:05d}" for i in range(1200)], embeddings=[vector] * 1200)
    assert [each.metadata["ordinal"] for each in store.chunks_of("d2")] == list(range(1200))
    store.update_source("d2", "renamed")
    assert {each.metadata["source"] for each in store.chunks_of("d2")} == {"renamed"}
    assert {each.metadata["source"] for each in store.chunks_of("d1")} == {"d1"}
    store.delete_documents(["d1"])
    assert store.ids() == [f"d2-{i:05d}" for i in range(1200)]


def test_update_source_keeps_vectors_and_the_rest(store: ChromaStore) -> None:
    store.add_texts(["red"], [{"doc_id": "d", "source": "a", "page": 7}], ids=["x"])
    store.update_source("d", "新.txt")
    (found, score) = store.similarity_search_with_score("red")[0]
    assert found.metadata == {"doc_id": "d", "source": "新.txt", "page": 7}
    assert score == pytest.approx(1.0, abs=1e-5)
    assert store.embeddings.embedded == ["red"]  # type: ignore[union-attr]


def test_knowledge_bases_are_apart_in_any_script(folder: Path) -> None:
    client = open_client(folder)
    names = ["a", "游客 指南", "x" * 200, "Ünï/cödé"]
    for name in names:
        ChromaStore(client, name, WordEmbeddings(), "w", create=True).add_texts([name], ids=["1"])
    assert len({find_collection(client, name) for name in names} - {None}) == len(names)
    assert texts(ChromaStore(client, "游客 指南", WordEmbeddings(), "w").get_by_ids(["1"])) == ["游客 指南"]
    drop_kb(client, "a")
    drop_kb(client, "a")
    assert [name for name in names if find_collection(client, name) is None] == ["a"]
    assert read_marker(folder, "a") is None
    assert read_marker(folder, "游客 指南")


def test_another_embedder_is_refused(store: ChromaStore) -> None:
    for create in (False, True):
        with pytest.raises(StoreError) as error:
            ChromaStore(store.client, "default", WordEmbeddings(), "words@2", create=create)
        assert str(error.value) == (
            "knowledge base 'default' was indexed with words@1 but the embedder is now words@2; "
            "run `paddock ingest --rebuild --kb default`"
        )


def test_absent_or_dropped_collection(store: ChromaStore) -> None:
    with pytest.raises(StoreError, match="'nowhere' is not indexed yet"):
        ChromaStore(store.client, "nowhere", None, "w")
    drop_kb(store.client, "default")
    with pytest.raises(StoreError, match="not indexed yet"):
        store.count()


def test_store_without_embedder_says_so(store: ChromaStore) -> None:
    plain = ChromaStore(store.client, "default", None, "words@1")
    with pytest.raises(StoreError, match="without an embedder"):
        plain.similarity_search("x")


@pytest.mark.parametrize("damage", ["garbage", "cut", "folder"])
def test_corrupt_index_is_one_clear_line(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "chroma"
    ChromaStore(open_client(folder), "default", WordEmbeddings(), "w", create=True).add_texts(["a"])
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    database = broken / "chroma.sqlite3"
    if damage == "garbage":
        database.write_bytes(b"rubbish " * 4000)
    elif damage == "cut":
        database.write_bytes(database.read_bytes()[:5000])
    else:
        database.unlink()
        database.mkdir()
    with pytest.raises(StoreError) as error:
        ChromaStore(open_client(broken), "default", WordEmbeddings(), "w").similarity_search("a")
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 400
    assert str(broken) in message
    assert "run `paddock ingest` again" in message


def test_an_index_that_is_written_to_is_not_called_damaged(store: ChromaStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Chroma says it after a minute of waiting for another process."""

    def fail(*args: object, **kwargs: object) -> None:
        raise InternalError("Database error: error returned from database: (code: 5) database is locked")

    monkeypatch.setattr("chromadb.api.models.Collection.Collection.upsert", fail)
    with pytest.raises(StoreError, match=r"in use by another process .*locked.*; try again"):
        store.add_documents([Document("x", id="x")])


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="cannot be made"):
        open_client(tmp_path / "file" / "chroma")


OTHER_PROCESS = """
import sys
from pathlib import Path
from langchain_core.documents import Document
from tests.vectorstore.fakes import WordEmbeddings
from vectorstore.store import ChromaStore, open_client
store = ChromaStore(open_client(Path(sys.argv[1])), "default", WordEmbeddings(), "words@1", create=True)
{}
"""


def other_process(folder: Path, code: str) -> None:
    subprocess.run([sys.executable, "-c", OTHER_PROCESS.format(code), str(folder)], cwd=ROOT, check=True, timeout=120)


def test_what_another_process_writes_is_seen(store: ChromaStore, folder: Path) -> None:
    """A web UI stays open while `paddock ingest` runs beside it."""
    store.add_texts(["red", "blue"], ids=["red", "blue"])
    assert texts(store.similarity_search("red", k=1)) == ["red"]
    other_process(folder, "store.add_texts(['green'], ids=['green']); store.delete(['red'])")
    assert texts(store.similarity_search("green", k=1)) == ["green"]
    assert {each.id for each in store.similarity_search("red", k=9)} == {"blue", "green"}


def test_writing_after_another_process_loses_nothing(store: ChromaStore, folder: Path) -> None:
    """Chroma alone loses the other's vectors here once it writes its own to disk, after 1,000 of them."""
    store.add_texts(["red"], ids=["red"])
    other_process(folder, "store.add_texts([f'w{i}' for i in range(1500)], ids=[f'b{i}' for i in range(1500)])")
    store.add_texts([f"v{i}" for i in range(1100)], ids=[f"c{i}" for i in range(1100)])
    assert len(store.similarity_search("w7", k=3000)) == 2601
    other_process(folder, "assert len(store.similarity_search('w7', k=3000)) == 2601")


def test_index_folder_replaced_while_open(store: ChromaStore, folder: Path, tmp_path: Path) -> None:
    store.add_texts(["old"])
    folder.rename(tmp_path / "away")
    with pytest.raises(StoreError, match="not indexed yet"):
        store.count()
    again = ChromaStore(store.client, "default", WordEmbeddings(), "words@1", create=True)
    again.add_texts(["new"])
    assert texts(store.similarity_search("new")) == ["new"]


def test_reading_does_not_reopen(store: ChromaStore) -> None:
    store.add_texts(["a"])
    before = store.client.generation
    for _ in range(5):
        store.similarity_search("a")
        store.add_texts(["b"], ids=["b"])
    assert store.client.generation == before


def test_marker_goes_with_the_database(store: ChromaStore, folder: Path) -> None:
    assert read_marker(folder, "default") == store.collection_id
    (folder / "chroma.sqlite3").unlink()
    assert read_marker(folder, "default") is None
    open_client(folder)
    assert (folder / "chroma.sqlite3").exists()
    assert read_marker(folder, "default") is None, "a fresh database has no collection, whatever files lie beside it"


@pytest.mark.parametrize("name", ["index_metadata.pickle", "data_level0.bin"])
def test_torn_vectors_are_noticed(store: ChromaStore, folder: Path, name: str) -> None:
    store.add_texts([f"w{i}" for i in range(1100)])
    assert is_sound(folder, "default")
    (vectors,) = folder.glob(f"*/{name}")
    vectors.write_bytes(vectors.read_bytes()[: vectors.stat().st_size // 3])
    assert not is_sound(folder, "default")


def test_few_vectors_are_in_the_database_alone(store: ChromaStore, folder: Path) -> None:
    """So that a kill cannot tear them: is_sound relies on it."""
    store.add_texts([f"w{i}" for i in range(900)])
    for path in folder.glob("*/*"):
        path.unlink()
    other_process(folder, "assert len(store.similarity_search('w7', k=900)) == 900")


def test_telemetry_is_off(store: ChromaStore) -> None:
    chroma, _ = store.client.current()
    assert chroma.get_settings().anonymized_telemetry is False


def test_space_is_cosine(store: ChromaStore, folder: Path) -> None:
    with sqlite3.connect(folder / "chroma.sqlite3") as database:
        assert "cosine" in str(database.execute("SELECT * FROM collections").fetchall())


def test_similarities(store: ChromaStore) -> None:
    store.add_texts(["red", "red green", "blue"], ids=["a", "b", "c"])
    found = store.similarities([2 * value for value in store.embed("red")], ["b", "a", "x"])
    assert found == pytest.approx({"a": 1.0, "b": 2**-0.5}, abs=1e-5)
    assert store.similarities(store.embed("red"), []) == {}
