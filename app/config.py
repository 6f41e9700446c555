"""Settings: paddock.toml < environment (PADDOCK_...) < command line. The only module that reads the environment."""

from __future__ import annotations

import difflib
import os
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from app.errors import AppError
from vectorstore.server import parts_of

DEFAULT_MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
DEFAULT_EMBEDDER = "all-MiniLM-L6-v2"

Retrieval = Literal["dense", "keyword", "hybrid"]

# No library that we start may report usage or trace requests, and none may reach for a model hub by itself.
QUIET = {
    "ANONYMIZED_TELEMETRY": "False",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "LANGCHAIN_TRACING_V2": "false",
    "LANGSMITH_TRACING": "false",
    "STREAMLIT_BROWSER_GATHER_USAGE_STATS": "false",
    "TOKENIZERS_PARALLELISM": "true",
    "TRANSFORMERS_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


# Threads that have nothing to do sleep instead of spinning. With the cores to ourselves it makes no difference; beside
# other busy programs decoding is four to five times as fast (docs/experiments.md). A user's own choice is kept.
PATIENT = {"OMP_WAIT_POLICY": "PASSIVE"}


class Settings(BaseModel):
    """Everything a user can set. Each field is a key of paddock.toml and, upper-cased behind PADDOCK_, a variable."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    home: Path = Field(description="state folder; set by PADDOCK_HOME, not in paddock.toml")
    model: str = Field(
        DEFAULT_MODEL, description="a GGUF file, a Hugging Face folder or one of Meta's under models/, or a path"
    )
    adapter: str = Field(
        "auto",
        description="who answers: an adapter under adapters/, one that comes with Paddock, or a path; none is the bare "
        "model, and auto is the reader that comes with Paddock, where it was made for the model",
    )
    embedder: str = Field(DEFAULT_EMBEDDER, description="a sentence-transformers folder under models/, or a path")
    query_prefix: str = Field(
        "auto", description="put before a question for the embedder; auto is what its folder asks for"
    )
    passage_prefix: str = Field("auto", description="the same before a passage")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="precision of the LLaMA's weights")
    quant: Literal["auto", "none", "int8", "int4"] = Field(
        "auto",
        description="bits of the LLaMA's weights; auto is, on a CPU and where no dtype is asked for, int4 for files of "
        "4 bits and int8 for others",
    )
    kv_memory_mb: int = Field(384, ge=1, description="memory for keys and values: running answers, prefixes kept")
    threads: int = Field(0, ge=0, description="CPU threads; 0 leaves the choice to torch")
    seed: int = Field(0, ge=0, description="seed of sampling")
    store: str = Field("", description="a Chroma server, as http://host:8000; without one, vectors lie under index/")
    hnsw_neighbors: int = Field(24, ge=2, le=256, description="edges of a node in the graph of vectors (M)")
    hnsw_ef_construction: int = Field(200, ge=1, description="nodes looked at when a vector is added")
    hnsw_ef_search: int = Field(200, ge=1, description="nodes looked at in a search")
    hnsw_sync: int = Field(1000, ge=2, description="chunks after which the graph is written to the disk")
    kb: str = Field("default", min_length=1, description="knowledge base used when none is named")
    k: int = Field(4, ge=1, le=50, description="chunks retrieved for a question")
    retrieval: Retrieval = Field(
        "hybrid", description="how passages are found: by meaning, by words, or by both, weighed for each question"
    )
    rerank: str = Field(
        "off",
        description="what puts the best passages into a better order: off, likelihood (of the question, by the LLaMA), "
        "or a cross-encoder's folder under models/, or a path",
    )
    rerank_candidates: int = Field(8, ge=2, le=100, description="passages that are reranked")
    diversity: float = Field(
        0.0, ge=0.0, le=1.0, description="above 0, passages that say something else than those before come sooner"
    )
    context: Literal["passages", "sections"] = Field(
        "passages", description="what the model reads: the passages found, or as much of their sections as has room"
    )
    order: Literal["best_first", "best_last"] = Field("best_first", description="order of passages in the prompt")
    min_relevance: float = Field(
        0.6,
        ge=0.0,
        le=1.0,
        description="what stands behind the last with this share of the best one's relevance is not read",
    )
    min_score: float = Field(
        0.2, ge=-1.0, le=1.0, description="with dense retrieval, passages that are less similar are not used"
    )
    min_confidence: Literal["auto"] | Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        "auto", description="questions that are less likely to be answerable are refused; auto is what was calibrated"
    )
    trace: bool = Field(
        False,
        description="find what a sentence rests on by likelihood where words do not; reads the prompt k + 1 times",
    )
    max_answer_tokens: int = Field(192, ge=1, description="longest answer, in tokens")
    max_prompt_tokens: int = Field(
        3072, ge=256, description="longest prompt, in tokens; never more than the model takes"
    )
    temperature: float = Field(0.0, ge=0.0, le=5.0, description="0 picks the most likely token every time")
    top_p: float = Field(
        1.0, gt=0.0, le=1.0, description="smallest set of tokens with this probability is sampled from"
    )
    top_k: int = Field(0, ge=0, description="only the k likeliest tokens are sampled from; 0 takes all")
    min_p: float = Field(0.0, ge=0.0, le=1.0, description="only tokens this likely, against the likeliest, are sampled")
    repetition_penalty: float = Field(1.0, gt=0.0, description="above 1, tokens that stand there already come less")
    lookup: bool = Field(True, description="guess tokens from the prompt's own words; the same text, sooner")
    chunk_tokens: int = Field(200, ge=32, description="longest chunk, in tokens of the embedder")
    chunk_overlap: int = Field(32, ge=0, description="tokens that neighbouring chunks share")
    max_file_mb: int = Field(200, ge=1, description="files larger than this are not ingested")
    host: str = Field("127.0.0.1", description="address of the web UI")
    port: int = Field(8501, ge=1, le=65535, description="port of the web UI")
    hub: str = Field("https://huggingface.co", description="where `models pull hf:OWNER/NAME` fetches from")
    hub_token: str = Field("", description="key for models of the hub that are not open to everybody")
    judge_model: str = Field("default", description="model that a judging endpoint is asked for")
    judge_api_key: str = Field("", description="key for a judging endpoint, if it wants one")
    password: str = Field("", description="asked for by the web UI; needed for any host but this machine")

    @field_validator("store")
    @classmethod
    def _check_store(cls, value: str) -> str:
        if value:
            parts_of(value)
        return value

    @property
    def inbox(self) -> Path:
        return self.home / "inbox"

    @property
    def index(self) -> Path:
        return self.home / "index"

    @property
    def models(self) -> Path:
        return self.home / "models"

    @property
    def adapters(self) -> Path:
        return self.home / "adapters"

    @property
    def threshold(self) -> float | None:
        """`min_confidence`, None for auto."""
        return None if self.min_confidence == "auto" else self.min_confidence

    @property
    def calibration(self) -> Path:
        return self.home / "calibration"

    @property
    def cache(self) -> Path:
        return self.home / "cache"

    @property
    def cross_encoder(self) -> Path | None:
        """The folder that `rerank` names; None where it is 'off' or 'likelihood'."""
        return None if self.rerank in ("off", "likelihood") else self.path_of_model(self.rerank)

    def path_of_model(self, name: str) -> Path:
        """A model's path: `name` under models/, else as a path of its own. It need not exist."""
        inside = self.models / name
        return inside if inside.exists() or not Path(name).expanduser().exists() else Path(name).expanduser()


def state_folder(environ: Mapping[str, str] = os.environ, cwd: Path | None = None) -> Path:
    """$PADDOCK_HOME, else ./data if it exists, else the platform's user-data folder."""
    if environ.get("PADDOCK_HOME"):
        return Path(environ["PADDOCK_HOME"]).expanduser().absolute()
    here = (cwd or Path.cwd()) / "data"
    return here if here.is_dir() else Path(platformdirs.user_data_dir("paddock", appauthor=False))


def _known(key: str, where: str) -> None:
    if key == "home":
        raise AppError(f"'home' cannot be set in {where}: it says where that file lies; set PADDOCK_HOME")
    fields = [name for name in Settings.model_fields if name != "home"]
    if key in fields:
        return
    near = difflib.get_close_matches(key, fields, n=1, cutoff=0.0)
    raise AppError(f"unknown setting '{key}' in {where}; did you mean '{near[0]}'?")


def _from_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise AppError(f"{path} cannot be read as TOML: {error}; mend or remove it") from error
    for key in values:
        _known(key, str(path))
    return values


def _from_environ(environ: Mapping[str, str]) -> dict[str, Any]:
    values = {}
    for name, value in environ.items():
        if name.startswith("PADDOCK_") and name != "PADDOCK_HOME":
            key = name.removeprefix("PADDOCK_").lower()
            _known(key, f"the environment ({name})")
            values[key] = value
    return values


def load_settings(environ: Mapping[str, str] = os.environ, cwd: Path | None = None, **overrides: Any) -> Settings:
    """Reads the settings; `overrides` come from the command line, and those that are None are left out.

    Raises AppError with the key, where it stands and what it may be.
    """
    home = state_folder(environ, cwd)
    layers = [
        (str(home / "paddock.toml"), _from_file(home / "paddock.toml")),
        ("the environment", _from_environ(environ)),
        ("the command line", {key: value for key, value in overrides.items() if value is not None}),
    ]
    merged = {key: value for _, values in layers for key, value in values.items()}
    try:
        return Settings(home=home, **merged)
    except ValidationError as error:
        key = str(error.errors()[0]["loc"][0])
        where = next(name for name, values in reversed(layers) if key in values)
        said = [
            str(each["msg"]).lower() for each in error.errors() if str(each["loc"][0]) == key
        ]  # 'auto', or a number
        raise AppError(f"setting '{key}' in {where} is {merged[key]!r}: {', or '.join(said)}") from error


def limit_threads(count: int) -> None:
    """Gives torch, wherever it is used, at most `count` CPU threads; 0 changes nothing."""
    if count:
        os.environ["OMP_NUM_THREADS"] = str(count)  # read when torch is imported
        if (torch := sys.modules.get("torch")) is not None:
            torch.set_num_threads(count)


def quiet() -> None:
    """Turns off telemetry, tracing, hub look-ups and busy waiting of the libraries; call before importing them."""
    os.environ.update(QUIET)
    for name, value in PATIENT.items():
        os.environ.setdefault(name, value)
    # Compiled kernels are state too, and the packages may lie where nobody may write.
    os.environ.setdefault("NUMBA_CACHE_DIR", str(state_folder() / "cache" / "numba"))
