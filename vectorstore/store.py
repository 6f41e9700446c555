"""Chroma behind LangChain's VectorStore: one knowledge base is one collection. The only import of chromadb."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar, cast

from chromadb import HttpClient
from chromadb.api import ClientAPI
from chromadb.api.client import Client as ChromaClient
from chromadb.api.models.Collection import Collection
from chromadb.api.types import GetResult
from chromadb.config import Settings, System
from chromadb.errors import InvalidArgumentError, NotFoundError
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore

from vectorstore.client import IndexClient, shared_client
from vectorstore.errors import StoreError, other_embedder
from vectorstore.hnsw import DEFAULT_HNSW, Hnsw
from vectorstore.rows import batches, cosines, document, storable
from vectorstore.server import ServerClient

T = TypeVar("T")
Client = IndexClient | ServerClient

WRITE_BATCH = 1000


def _connect(folder: Path) -> ClientAPI:
    """A client with a state of its own; PersistentClient would hand out the same stale state for the same path."""
    system = System(Settings(anonymized_telemetry=False, is_persistent=True, persist_directory=str(folder)))
    system.start()
    (client := ChromaClient.from_system(system)).count_collections()
    return client


def open_client(folder: Path) -> IndexClient:
    """Opens the index, or hands out the one already open in this process. Raises StoreError."""
    return shared_client(folder, _connect)


def open_server(url: str, owner: str) -> ServerClient:
    """Opens the index of an installation (its id is `owner`) on a Chroma server. Raises StoreError."""
    quiet = Settings(anonymized_telemetry=False)
    return ServerClient(url, owner, lambda host, port, secure: HttpClient(host, port, secure, settings=quiet))


@contextmanager
def in_plain_words(client: Client) -> Iterator[None]:
    """Turns Chroma's errors into StoreError; NotFoundError passes, as it means different things to callers."""
    try:
        yield
    except (StoreError, NotFoundError):
        raise
    except InvalidArgumentError as error:
        raise StoreError(f"the index does not take this: {error}") from error
    except Exception as error:
        raise client.unusable(error) from error


def find_collection(client: Client, kb: str) -> str | None:
    """The id of the knowledge base's collection; None if there is none. Raises StoreError."""
    with in_plain_words(client):
        try:
            return str(client.current()[0].get_collection(client.collection_of(kb), embedding_function=None).id)
        except NotFoundError:
            return None


def drop_kb(client: Client, kb: str) -> None:
    """Removes the knowledge base's collection; nothing happens if there is none."""
    with client.writing(), in_plain_words(client):
        client.forget(kb)
        chroma, _ = client.current()
        with suppress(NotFoundError):
            chroma.delete_collection(client.collection_of(kb))


class ChromaStore(VectorStore):
    """The chunks of one knowledge base. Scores are cosine similarities: 1 is the same direction, higher is better."""

    def __init__(
        self,
        client: Client,
        kb: str,
        embeddings: Embeddings | None,
        identity: str,
        create: bool = False,
        hnsw: Hnsw = DEFAULT_HNSW,
    ) -> None:
        """Opens the collection of `kb`, or makes it. `identity` names the embedder and its exact weights.

        `hnsw` is for a collection that is made; what of it can change later is changed in one that is there.
        Raises StoreError if there is no such collection, or if it was made with another embedder.
        """
        self.client = client
        self.kb = kb
        self.identity = identity
        self._embeddings = embeddings
        self._hnsw = hnsw
        self._held: tuple[Collection, int] | None = None
        if create:
            self._create()
        self._collection()

    def _create(self) -> None:
        name = self.client.collection_of(self.kb)
        self.client.reopen()  # a writer that was killed may have written after its last stamp
        with self.client.writing(), in_plain_words(self.client):
            chroma, _ = self.client.current()
            metadata = {"kb": self.kb, "identity": self.identity}
            graph = {"hnsw": self._hnsw.made_with()}
            made = chroma.get_or_create_collection(
                name, configuration=graph, metadata=metadata, embedding_function=None
            )
            held, wanted = made.configuration.get("hnsw") or {}, self._hnsw.changeable()
            if any(held.get(key) != value for key, value in wanted.items()):
                made.modify(configuration={"hnsw": cast(Any, wanted)})
                self.client.reopen()  # an open graph goes on as it was
            self.client.note(self.kb, str(made.id))

    def _collection(self) -> Collection:
        chroma, generation = self.client.current()
        held = self._held
        if held is not None and held[1] == generation:
            return held[0]
        try:
            with in_plain_words(self.client):
                found: Collection = chroma.get_collection(self.client.collection_of(self.kb), embedding_function=None)
        except NotFoundError as error:
            raise StoreError(
                f"knowledge base '{self.kb}' is not indexed yet; run `paddock ingest --kb {self.kb}`"
            ) from error
        self._check_identity(found)
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
            with in_plain_words(self.client):
                return call(collection)
        except NotFoundError as error:
            raise self.client.unusable(error) from error

    def _write(self, call: Callable[[Collection], object]) -> None:
        with self.client.writing(), in_plain_words(self.client):
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
        client: Client,
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
        found = dict(self.nearest(embedding, k, filter))
        return [(each, found[str(each.id)]) for each in self.get_by_ids(list(found))]

    def nearest(
        self, embedding: Sequence[float], k: int, where: dict[str, Any] | None = None
    ) -> list[tuple[str, float]]:
        """Ids and cosine similarities of the k chunks nearest to a vector (d,), best first; texts would take longer."""
        if k < 1:
            return []
        found = self._read(
            lambda collection: collection.query(
                query_embeddings=cast(Any, [list(embedding)]), n_results=k, where=where or None, include=["distances"]
            )
        )
        near = [max(-1.0, min(1.0, 1.0 - float(distance))) for distance in (found["distances"] or [[]])[0]]
        return sorted(zip(found["ids"][0], near, strict=True), key=lambda pair: -pair[1])

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        """LangChain wants relevance within [0, 1]; opposite meaning is as irrelevant as no relation."""
        return lambda similarity: max(0.0, min(1.0, similarity))

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """The chunks with these ids, in this order; unknown ids are left out."""
        found = {each.id: each for each in self._get(ids=list(dict.fromkeys(ids)))} if ids else {}
        return [found[name] for name in dict.fromkeys(ids) if name in found]

    def _get(self, **where: Any) -> list[Document]:
        found: GetResult = self._read(lambda collection: collection.get(**where, include=["documents", "metadatas"]))
        rows = zip(found["ids"], found["documents"] or [], found["metadatas"] or [], strict=True)
        return [document(name, text, metadata) for name, text, metadata in rows]

    def similarities(self, embedding: Sequence[float], ids: Sequence[str]) -> dict[str, float]:
        """The cosine similarity of a vector (d,) and each of these chunks; unknown ids are left out."""
        return self._similarities(embedding, ids=list(ids)) if ids else {}

    def similarities_of(self, embedding: Sequence[float], doc_ids: Sequence[str]) -> dict[str, float]:
        """The cosine similarity of a vector (d,) and every chunk of these documents, by the chunk's id."""
        return self._similarities(embedding, where={"doc_id": {"$in": list(doc_ids)}})

    def _similarities(self, embedding: Sequence[float], **which: Any) -> dict[str, float]:
        found = self._read(lambda collection: collection.get(**which, include=["embeddings"]))
        return dict(zip(found["ids"], cosines(embedding, found["embeddings"]), strict=True))

    def chunks_of(self, doc_id: str, places: Sequence[int] = ()) -> list[Document]:
        """The chunks of one document, in its order; with `places`, those with these ordinals."""
        of = {"doc_id": doc_id}
        where = {"$and": [of, {"ordinal": {"$in": list(places)}}]} if places else of
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
            new = [{"source": source}] * len(part)
            self._write(lambda collection, part=part, new=new: collection.update(ids=part, metadatas=new))  # type: ignore[misc]

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
