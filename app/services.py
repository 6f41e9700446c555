"""Builds every object once, when it is first needed, and hands it to whoever asks: command line, web UI, scripts."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_args

from app.adapters import AUTO, Shelf
from app.config import Retrieval, Settings, limit_threads
from app.errors import AppError
from ingest.embed import Embedder
from ingest.sync import Ingestor
from vectorstore.errors import StoreError
from vectorstore.hnsw import Hnsw
from vectorstore.place import place_of

if TYPE_CHECKING:
    from langchain_core.documents import Document
    from langchain_core.retrievers import BaseRetriever

    from app.answer import Answerer
    from app.confidence import Confidence
    from ingest.filter import Filter
    from llama.chat_model import ChatLlama
    from llama.engine import Engine
    from llama.sampling import SamplingParams
    from vectorstore.keyword import KeywordIndex
    from vectorstore.rerank import Reranker
    from vectorstore.scope import Scope
    from vectorstore.store import ChromaStore


T = TypeVar("T")
NEIGHBOURS = 8  # chunks before and behind one that its passage may grow by
log = logging.getLogger("paddock")


# Ways to retrieve; evaluation sets them side by side.
RETRIEVERS: tuple[Retrieval, ...] = get_args(Retrieval)


class Services:
    """The application's objects for one set of settings. Safe to share among threads.

    Constructing it costs nothing: torch, Chroma and the models are loaded by the first call that needs them.
    """

    def __init__(self, settings: Settings, calibration: Path | None = None) -> None:
        """calibration: the folder of the user's calibrations, by default that of the settings."""
        self.settings = settings
        self.calibration = calibration or settings.calibration
        self._building = threading.RLock()
        self._made: dict[str, Any] = {}
        limit_threads(settings.threads)

    def _once(self, name: str, build: Callable[[], T]) -> T:
        """What `build` gave the first time. One thread builds, the others wait."""
        with self._building:
            if name not in self._made:
                self._made[name] = build()
            return cast(T, self._made[name])

    @property
    def embedder(self) -> Embedder:
        settings = self.settings
        path, cache = settings.path_of_model(settings.embedder), settings.cache / "embedder.json"
        prefixes = [None if each == "auto" else each for each in (settings.query_prefix, settings.passage_prefix)]
        return self._once("embedder", lambda: Embedder(path, cache, "cpu", *prefixes))

    @property
    def ingestor(self) -> Ingestor:
        settings = self.settings
        return self._once(
            "ingestor",
            lambda: Ingestor(
                inbox=settings.inbox,
                index=settings.index,
                embedder=self.embedder,
                open_store=self.store,
                chunk_tokens=settings.chunk_tokens,
                chunk_overlap=settings.chunk_overlap,
                max_file_mb=settings.max_file_mb,
                vectors=place_of(settings.store, settings.index),
                hnsw=self._hnsw,
            ),
        )

    @property
    def _client(self) -> Any:
        return self._once("client", self.ingestor.vectors.client)

    @property
    def _hnsw(self) -> Hnsw:
        chosen = self.settings
        return Hnsw(chosen.hnsw_neighbors, chosen.hnsw_ef_construction, chosen.hnsw_ef_search, chosen.hnsw_sync)

    def store(self, kb: str, create: bool = False) -> ChromaStore:
        """The store of a knowledge base. Raises StoreError when it is absent, damaged or of another embedder."""
        from vectorstore.store import ChromaStore

        def opened() -> ChromaStore:
            return ChromaStore(self._client, kb, self.embedder, self.embedder.identity, create, self._hnsw)

        return opened() if create else self._once(f"store {kb}", opened)

    def retriever(
        self, kb: str, k: int, mode: Retrieval | None = None, *, filter: Filter | None = None
    ) -> BaseRetriever | None:
        """The retriever of a knowledge base, by default in the mode of the settings; None while it holds nothing.

        Raises AppError for an unknown knowledge base, and where no document matches the filter.
        """
        from vectorstore import fusion
        from vectorstore.retriever import Retriever

        if not self.ingestor.knows(kb):
            known = ", ".join(self.ingestor.kbs())
            raise AppError(f"there is no knowledge base {kb[:80]!r}; known: {known}; see `paddock kb list`")
        manifest = self.ingestor.manifest
        if not manifest.has_documents(kb):
            return None
        if filter:
            self._scope(kb, filter)  # a filter that nothing matches is told before anything is searched for
        return Retriever(
            store=self.store(kb),
            keyword=self._keyword(kb),
            mode=mode or self.settings.retrieval,
            k=k,
            min_score=self.settings.min_score,
            visible=lambda doc_ids, version: manifest.known_docs(kb, doc_ids, version, filter),
            version=manifest.version,
            coverage=self.embedder.coverage,
            fusion=fusion.learned(self.embedder.identity),
            scope=partial(self._scope, kb, filter) if filter else None,
            reranker=self.reranker,
            diversity=self.settings.diversity,
        )

    def _scope(self, kb: str, filter: Filter) -> Scope:
        """What a filter leaves of a knowledge base. Raises AppError where that is nothing."""
        from vectorstore.scope import Scope

        manifest = self.ingestor.manifest
        documents, chunks = manifest.amount(kb, filter)
        if not documents:
            unknown = filter.language and manifest.without_languages(kb)
            hint = "run `paddock ingest` to find their languages" if unknown else "; ".join(self._there_is(kb, filter))
            raise AppError(f"no document of knowledge base {kb!r} matches the filter ({filter}); {hint}")
        return Scope(chunks, chunks / manifest.amount(kb)[1], lambda: manifest.doc_ids(kb, filter))

    def _there_is(self, kb: str, filter: Filter) -> Iterator[str]:
        """What there would be instead."""
        if filter.language:
            yield f"their languages are: {', '.join(self.ingestor.manifest.languages(kb))}"
        yield f"`paddock kb status {kb}` lists what there is"

    def section(self, kb: str, chunk: Document) -> list[Document]:
        """The chunks around one that are of its section, in the document's order."""
        from app.context import in_section

        place = int(chunk.metadata["ordinal"])
        near = self.store(kb).chunks_of(chunk.metadata["doc_id"], range(place - NEIGHBOURS, place + NEIGHBOURS + 1))
        return [each for each in near if in_section(each, chunk)]

    @property
    def reranker(self) -> Reranker | None:
        """What reorders passages, by the settings. Raises StoreError for a cross-encoder that is not there."""
        from vectorstore.cross_encoder import CrossEncoderScorer
        from vectorstore.rerank import Reranker, learned

        settings, count = self.settings, self.settings.rerank_candidates
        if settings.rerank == "off":
            return None
        if (path := settings.cross_encoder) is None:
            from app.likelihood import QuestionLikelihood

            likelihood = QuestionLikelihood(lambda: self.engine)
            return Reranker(scorer=likelihood, candidates=count, weight=learned()["likelihood"])
        scorer = self._once("cross-encoder", lambda: CrossEncoderScorer(path))
        return Reranker(scorer=scorer, candidates=count, weight=1.0)  # its logits are log-odds as they are

    def _keyword(self, kb: str) -> KeywordIndex | None:
        """The keyword index of a knowledge base; None, and a line about it, where there is none that can be used."""
        from vectorstore.keyword import KeywordIndex, folder_of

        try:
            return KeywordIndex(folder_of(self.ingestor.keyword, kb))
        except StoreError as error:
            if self.settings.retrieval != "dense":
                told = f"{error}; until then '{kb}' is searched by meaning only"
                self._once(f"told {kb}", lambda: log.warning(told))
            return None

    @property
    def confidence(self) -> Confidence:
        """How likely questions can be answered from what was found. Raises AppError for a damaged calibration."""
        from app.confidence import Confidence, find, identity

        def make() -> Confidence:
            found, _ = find(self.calibration, identity(self.embedder.identity))
            return Confidence(found, self.embedder.coverage, self.settings.threshold)

        return self._once("confidence", make)

    @property
    def model_name(self) -> str:
        return self.settings.path_of_model(self.settings.model).name

    @property
    def adapters(self) -> Shelf:
        return self._once("adapters", lambda: Shelf(self.settings))

    def adapter(self, name: str | None = None) -> str | None:
        """The adapter that answers, by default that of the settings; None is the bare model. Raises AppError."""
        return self.adapters.chosen(name or self.settings.adapter)

    @property
    def named_adapter(self) -> str | None:
        """The adapter of the settings if they name one: what is chosen by itself answers from passages only."""
        return None if self.settings.adapter == AUTO else self.adapter()

    @property
    def engine(self) -> Engine:
        """The loaded LLaMA; the first call takes seconds. Raises LlamaError."""
        from llama.engine import load_engine

        path = self.settings.path_of_model(self.settings.model)
        settings, memory = self.settings, self.settings.kv_memory_mb << 20
        kept = settings.cache / "quantized"
        return self._once(
            "engine",
            lambda: load_engine(path, settings.device, settings.dtype, settings.quant, memory, kept, self.adapters),
        )

    @property
    def chat_model(self) -> ChatLlama:
        """The model alone, behind LangChain's BaseChatModel, with the settings' sampling. Raises LlamaError."""
        from llama.chat_model import ChatLlama

        return self._once(
            "chat_model",
            lambda: ChatLlama(engine=self.engine, sampling=self._sampling, adapter=self.named_adapter),
        )

    @property
    def _sampling(self) -> SamplingParams:
        from llama.sampling import SamplingParams

        settings = self.settings
        return SamplingParams(
            max_tokens=settings.max_answer_tokens,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            min_p=settings.min_p,
            repetition_penalty=settings.repetition_penalty,
            lookup=settings.lookup,
            seed=settings.seed,
        )

    @property
    def answerer(self) -> Answerer:
        # Here and not above: `paddock ingest` with nothing to do should not wait for torch.
        from app.answer import Answerer

        def make() -> Answerer:
            settings = self.settings
            sections, last = settings.context == "sections", settings.order == "best_last"
            return Answerer(
                self, settings.max_prompt_tokens, self._sampling, sections, last, settings.trace, settings.min_relevance
            )

        return self._once("answerer", make)

    def warm_model(self) -> None:
        """Loads the model and runs it once each way, so that what is packed and compiled for it is there."""
        engine = self.engine
        for prompt in ([0] * 40, [0]):  # many tokens and few take different ways
            engine.next_logits(prompt)

    def warm(self) -> None:
        """Loads what the first question needs: embedder, index, model and adapter. Raises what they raise."""
        # Side by side: the embedder's library takes seconds to import, in which the model is read.
        with ThreadPoolExecutor(2) as pool:
            embedded = pool.submit(self.embedder.embed_query, "warm up")
            self.warm_model()
            if (adapter := self.adapter()) is not None:
                self.engine.next_logits([0], adapter)
            self._client  # noqa: B018
            embedded.result()
