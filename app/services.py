"""Builds every object once, when it is first needed, and hands it to whoever asks: command line, web UI, scripts."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_args

from app.config import Retrieval, Settings, limit_threads
from app.errors import AppError
from ingest.embed import Embedder
from ingest.sync import Ingestor
from vectorstore.errors import StoreError

if TYPE_CHECKING:
    from langchain_core.retrievers import BaseRetriever

    from app.answer import Answerer
    from app.confidence import Confidence
    from llama.chat_model import ChatLlama
    from llama.engine import Engine
    from llama.sampling import SamplingParams
    from vectorstore.keyword import KeywordIndex
    from vectorstore.store import ChromaStore


T = TypeVar("T")
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
        path = self.settings.path_of_model(self.settings.embedder)
        return self._once("embedder", lambda: Embedder(path, hash_cache=self.settings.cache / "embedder.json"))

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
            ),
        )

    @property
    def _client(self) -> Any:
        from vectorstore.store import open_client

        return self._once("client", lambda: open_client(self.settings.index / "chroma"))

    def store(self, kb: str, create: bool = False) -> ChromaStore:
        """The store of a knowledge base. Raises StoreError when it is absent, damaged or of another embedder."""
        from vectorstore.store import ChromaStore

        return ChromaStore(self._client, kb, self.embedder, self.embedder.identity, create=create)

    def retriever(self, kb: str, k: int, mode: Retrieval | None = None) -> BaseRetriever | None:
        """The retriever of a knowledge base, by default in the mode of the settings; None while it holds nothing.

        Raises AppError for an unknown knowledge base.
        """
        from vectorstore.retriever import Retriever

        known = self.ingestor.kbs()
        if kb not in known:
            raise AppError(f"there is no knowledge base '{kb}'; known: {', '.join(known)}; see `paddock kb list`")
        manifest = self.ingestor.manifest
        if not manifest.doc_ids(kb):
            return None
        return Retriever(
            store=self.store(kb),
            keyword=self._keyword(kb),
            mode=mode or self.settings.retrieval,
            k=k,
            min_score=self.settings.min_score,
            visible=lambda doc_ids, version: manifest.known_docs(kb, doc_ids, version),
            version=manifest.version,
            coverage=self.embedder.coverage,
        )

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
    def engine(self) -> Engine:
        """The loaded LLaMA; the first call takes seconds. Raises LlamaError."""
        from llama.engine import load_engine

        path = self.settings.path_of_model(self.settings.model)
        settings, memory = self.settings, self.settings.kv_memory_mb << 20
        kept = settings.cache / "quantized"
        return self._once(
            "engine", lambda: load_engine(path, settings.device, settings.dtype, settings.quant, memory, kept)
        )

    @property
    def chat_model(self) -> ChatLlama:
        """The model alone, behind LangChain's BaseChatModel, with the settings' sampling. Raises LlamaError."""
        from llama.chat_model import ChatLlama

        return self._once("chat_model", lambda: ChatLlama(engine=self.engine, sampling=self._sampling))

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

        settings = self.settings
        return self._once(
            "answerer", lambda: Answerer(self, settings.max_prompt_tokens, self._sampling, settings.trace)
        )

    def warm_model(self) -> None:
        """Loads the model and runs it once each way, so that what is packed and compiled for it is there."""
        engine = self.engine
        for prompt in ([0] * 40, [0]):  # many tokens and few take different ways
            engine.next_logits(prompt)

    def warm(self) -> None:
        """Loads what the first question needs: embedder, index and model. Raises what they raise."""
        # Side by side: the embedder's library takes seconds to import, in which the model is read.
        with ThreadPoolExecutor(2) as pool:
            embedded = pool.submit(self.embedder.embed_query, "warm up")
            self.warm_model()
            self._client  # noqa: B018
            embedded.result()
