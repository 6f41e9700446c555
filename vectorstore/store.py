"""Chroma behind LangChain's VectorStore: one knowledge base is one collection. The only import of chromadb."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar, cast

from chromadb.api import ClientAPI
from chromadb.api.client import Client
from chromadb.api.models.Collection import Collection
from chromadb.api.types import GetResult
from chromadb.config import Settings, System
from chromadb.errors import InvalidArgumentError, NotFoundError
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore

from vectorstore.client import IndexClient, shared_client, unusable
from vectorstore.errors import StoreError, other_embedder
from vectorstore.marker import collection_name, remove_marker, write_marker
from vectorstore.rows import batches, cosines, document, storable

T = TypeVar("T")

HNSW = {"space": "cosine", "ef_construction": 200, "ef_search": 200, "max_neighbors": 24}
WRITE_BATCH = 1000


def _connect(folder: Path) -> ClientAPI:
    """A client with a state of its own; PersistentClient would hand out the same stale state for the same path."""
    system = System(Settings(anonymized_telemetry=False, is_persistent=True, persist_directory=str(folder)))
    system.start()
    client = Client.from_system(system)
    client.count_collections()
    return client


def open_client(folder: Path) -> IndexClient:
    """Opens the index, or hands out the one already open in this process. Raises StoreError."""
    return shared_client(folder, _connect)


@contextmanager
def _in_plain_words(folder: Path) -> Iterator[None]:
    """Turns Chroma's errors into StoreError; NotFoundError passes, as it means different things to callers."""
    try:
        yield
    except (StoreError, NotFoundError):
        raise
    except InvalidArgumentError as error:
        raise StoreError(f"the index does not take this: {error}") from error
    except Exception as error:
        raise unusable(folder, error) from error


def list_kbs(client: IndexClient) -> list[str]:
    """Names of the knowledge bases that have a collection."""
    with _in_plain_words(client.folder):
        chroma, _ = client.current()
        found = [(each.metadata or {}).get("kb") for each in chroma.list_collections()]
    return sorted(str(name) for name in found if name is not None)


def drop_kb(client: IndexClient, kb: str) -> None:
    """Removes the knowledge base's collection; nothing happens if there is none."""
    with client.writing(), _in_plain_words(client.folder):
        remove_marker(client.folder, kb)
        chroma, _ = client.current()
        with suppress(NotFoundError):
            chroma.delete_collection(collection_name(kb))


def has_all_vectors(client: IndexClient, kb: str) -> bool:
    """Whether each chunk of the knowledge base has a vector and a search finds chunks. Raises StoreError."""
    with _in_plain_words(client.folder):
        chroma, _ = client.current()
        collection = chroma.get_collection(collection_name(kb), embedding_function=None)
        count, start, vector = collection.count(), 0, None
        while start < count:
            page = collection.get(limit=WRITE_BATCH, offset=start, include=["embeddings"])
            if not page["ids"] or len(page["embeddings"]) != len(page["ids"]):
                return False
            start, vector = start + len(page["ids"]), page["embeddings"][0]
        k = min(count, 100)
        return vector is None or len(collection.query(query_embeddings=[vector], n_results=k)["ids"][0]) == k


class ChromaStore(VectorStore):
    """The chunks of one knowledge base. Scores are cosine similarities: 1 is the same direction, higher is better."""

    def __init__(
        self,
        client: IndexClient,
        kb: str,
        embeddings: Embeddings | None,
        identity: str,
        create: bool = False,
    ) -> None:
        """Opens the collection of `kb`, or makes it. `identity` names the embedder and its exact weights.

        Raises StoreError if there is no such collection, or if it was made with another embedder.
        """
        self.client = client
        self.kb = kb
        self.identity = identity
        self._embeddings = embeddings
        self._held: tuple[Collection, int] | None = None
        if create:
            self._create()
        self._check_identity(self._collection())

    def _create(self) -> None:
        name = collection_name(self.kb)
        self.client.reopen()  # a writer that was killed may have written after its last stamp
        with self.client.writing(), _in_plain_words(self.client.folder):
            chroma, _ = self.client.current()
            if name not in {each.name for each in chroma.list_collections()}:
                metadata = {"kb": self.kb, "identity": self.identity}
                chroma.create_collection(name, configuration={"hnsw": HNSW}, metadata=metadata, embedding_function=None)
            write_marker(self.client.folder, self.kb, str(chroma.get_collection(name, None).id))

    def _collection(self) -> Collection:
        chroma, generation = self.client.current()
        held = self._held
        if held is not None and held[1] == generation:
            return held[0]
        try:
            with _in_plain_words(self.client.folder):
                found: Collection = chroma.get_collection(collection_name(self.kb), embedding_function=None)
        except NotFoundError as error:
            raise StoreError(
                f"knowledge base '{self.kb}' is not indexed yet; run `paddock ingest --kb {self.kb}`"
            ) from error
        self._held = (found, generation)
        return found

    def _check_identity(self, collection: Collection) -> None:
        made_with = str((collection.metadata or {}).get("identity", ""))
        if made_with != self.identity:
            raise other_embedder(self.kb, made_with, self.identity)

    @property
    def collection_id(self) -> str:
        """Chroma's id of the collection; another one after it was dropped and made again."""
        return str(self._collection().id)

    def _read(self, call: Callable[[Collection], T]) -> T:
        """Runs `call`; tries again if another process was just writing the files it read."""
        for pause in (0.1, 0.3):
            try:
                return call(self._collection())
            except (StoreError, InvalidArgumentError):
                break
            except Exception:
                time.sleep(pause)
                self.client.reopen()
        collection = self._collection()
        try:
            with _in_plain_words(self.client.folder):
                return call(collection)
        except NotFoundError as error:
            raise unusable(self.client.folder, error) from error

    def _write(self, call: Callable[[Collection], object]) -> None:
        with self.client.writing(), _in_plain_words(self.client.folder):
            call(self._collection())

    @property
    def embeddings(self) -> Embeddings | None:
        return self._embeddings

    def _embedder(self) -> Embeddings:
        if self._embeddings is None:
            raise StoreError("this store was opened without an embedder; pass vectors or open it with one")
        return self._embeddings

    def add_documents(
        self,
        documents: list[Document],
        *,
        ids: Sequence[str] | None = None,
        embeddings: Sequence[Sequence[float]] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Adds documents, replacing those with the same ids. `embeddings` (n, d) spares embedding their text.

        Ids come from `ids`, else from the documents, else they are made up. Returns them. Raises StoreError.
        """
        names = list(ids) if ids is not None else [each.id or str(uuid.uuid4()) for each in documents]
        if len(names) != len(documents) or (embeddings is not None and len(embeddings) != len(documents)):
            raise ValueError(f"{len(documents)} documents, but {len(names)} ids or another number of embeddings")
        if not documents:
            return []
        texts = [each.page_content for each in documents]
        vectors = embeddings if embeddings is not None else self._embedder().embed_documents(texts)
        metadatas = [storable(each.metadata) for each in documents]
        for start in range(0, len(names), WRITE_BATCH):
            part = slice(start, start + WRITE_BATCH)
            self._write(
                lambda collection, part=part: collection.upsert(  # type: ignore[misc]
                    ids=names[part],
                    embeddings=cast(Any, vectors[part]),
                    documents=texts[part],
                    metadatas=cast(Any, metadatas[part]),
                )
            )
        return names

    def add_texts(
        self, texts: Iterable[str], metadatas: list[dict[str, Any]] | None = None, *, ids: Any = None, **kwargs: Any
    ) -> list[str]:
        """Adds texts with their metadata; see add_documents."""
        texts = list(texts)
        if ids is not None and len(ids) != len(texts):  # the base class would silently drop what is too much
            raise ValueError(f"{len(texts)} texts, but {len(ids)} ids")
        return super().add_texts(texts, metadatas, ids=ids, **kwargs)

    @classmethod
    def from_texts(  # type: ignore[override]
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        client: IndexClient,
        kb: str = "default",
        identity: str = "",
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> ChromaStore:
        """Makes the collection of `kb` if need be and adds the texts."""
        store = cls(client, kb, embedding, identity, create=True)
        store.add_texts(texts, metadatas, ids=ids)
        return store

    def delete(self, ids: Sequence[str] | None = None, **kwargs: Any) -> bool:
        """Deletes chunks by id, all of them if `ids` is None; unknown ids are passed over."""
        names = list(self.ids() if ids is None else ids)
        for part in batches(names, WRITE_BATCH):
            self._write(lambda collection, part=part: collection.delete(ids=part))  # type: ignore[misc]
        return True

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        """The k nearest chunks, best first."""
        return [document for document, _ in self.similarity_search_with_score(query, k, **kwargs)]

    def similarity_search_with_score(self, query: str, k: int = 4, **kwargs: Any) -> list[tuple[Document, float]]:
        """The k nearest chunks and their cosine similarities, best first."""
        return self.similarity_search_by_vector_with_score(self.embed(query), k, **kwargs)

    def embed(self, query: str) -> list[float]:
        """The vector (d,) of a question."""
        return self._embedder().embed_query(query)

    def similarity_search_by_vector(self, embedding: list[float], k: int = 4, **kwargs: Any) -> list[Document]:
        """The k chunks nearest to a vector (d,), best first."""
        return [document for document, _ in self.similarity_search_by_vector_with_score(embedding, k, **kwargs)]

    def similarity_search_by_vector_with_score(
        self,
        embedding: Sequence[float],
        k: int = 4,
        *,
        filter: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> list[tuple[Document, float]]:
        """The k chunks nearest to a vector (d,) and their cosine similarities; `filter` is a Chroma `where`."""
        if k < 1:
            return []
        found = self._read(
            lambda collection: collection.query(
                query_embeddings=cast(Any, [list(embedding)]),
                n_results=k,
                where=filter or None,
                include=["documents", "metadatas", "distances"],
            )
        )
        texts, metadatas, distances = found["documents"], found["metadatas"], found["distances"]
        if texts is None or metadatas is None or distances is None:
            return []
        rows = zip(found["ids"][0], texts[0], metadatas[0], distances[0], strict=True)
        scored = [
            (document(name, text, metadata), max(-1.0, min(1.0, 1.0 - float(distance))))
            for name, text, metadata, distance in rows
            if text is not None
        ]
        return sorted(scored, key=lambda pair: -pair[1])

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        """LangChain wants relevance within [0, 1]; opposite meaning is as irrelevant as no relation."""
        return lambda similarity: max(0.0, min(1.0, similarity))

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """The chunks with these ids, in this order; unknown ids are left out."""
        names = list(dict.fromkeys(ids))
        if not names:
            return []
        found = {each.id: each for each in self._get(ids=names)}
        return [found[name] for name in names if name in found]

    def _get(self, **where: Any) -> list[Document]:
        found: GetResult = self._read(lambda collection: collection.get(**where, include=["documents", "metadatas"]))
        rows = zip(found["ids"], found["documents"] or [], found["metadatas"] or [], strict=True)
        return [document(name, text, metadata) for name, text, metadata in rows]

    def similarities(self, embedding: Sequence[float], ids: Sequence[str]) -> dict[str, float]:
        """The cosine similarity of a vector (d,) and each of these chunks; unknown ids are left out."""
        if not ids:
            return {}
        found = self._read(lambda collection: collection.get(ids=list(ids), include=["embeddings"]))
        return dict(zip(found["ids"], cosines(embedding, found["embeddings"]), strict=True))

    def chunks_of(self, doc_id: str, places: Sequence[int] = ()) -> list[Document]:
        """The chunks of one document, in its order; with `places`, those with these ordinals."""
        where: dict[str, Any] = {"doc_id": doc_id}
        if places:
            where = {"$and": [where, {"ordinal": {"$in": list(places)}}]}
        return sorted(self._get(where=where), key=lambda each: int(each.metadata.get("ordinal", 0)))

    def delete_documents(self, doc_ids: Sequence[str]) -> None:
        """Deletes all chunks of these documents."""
        for doc_id in doc_ids:
            found = self._read(
                lambda collection, doc_id=doc_id: collection.get(where={"doc_id": doc_id}, include=[])  # type: ignore[misc]
            )
            self.delete(found["ids"])

    def update_source(self, doc_id: str, source: str) -> None:
        """Gives a renamed document its new name, without embedding anything."""
        names = [str(each.id) for each in self._get(where={"doc_id": doc_id})]
        for part in batches(names, WRITE_BATCH):
            metadatas = [{"source": source}] * len(part)
            self._write(lambda collection, part=part, new=metadatas: collection.update(ids=part, metadatas=new))  # type: ignore[misc]

    def ids(self) -> list[str]:
        """The ids of all chunks, sorted."""
        names: list[str] = []
        while page := self._read(
            lambda collection: collection.get(include=[], limit=WRITE_BATCH, offset=len(names))["ids"],
        ):
            names.extend(page)
        return sorted(names)

    def count(self) -> int:
        """How many chunks there are."""
        return self._read(lambda collection: collection.count())
