"""The models on disk: listing what is there, telling what a file or folder holds."""

from __future__ import annotations

import contextlib
import json
import math
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from app.catalogue import CATALOGUE
from app.errors import AppError

Kind = Literal["llama", "embedder", "unknown"]


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files under a folder; files may come and go meanwhile."""
    total = 0
    for each in [path, *path.rglob("*")]:
        with contextlib.suppress(FileNotFoundError):
            total += each.stat().st_size if each.is_file() else 0
    return total


@dataclass(frozen=True)
class Row:
    """A model under models/; `size` in bytes, `default` where it is one that `pull` fetches."""

    name: str
    kind: Kind
    size: int
    path: Path
    default: bool


def list_models(models_dir: Path) -> list[Row]:
    """What lies in the folder of the models, by name. Raises AppError when the folder cannot be read."""
    if not models_dir.is_dir():
        return []
    defaults = {model.name for model in CATALOGUE}
    try:
        entries = sorted(entry for entry in models_dir.iterdir() if not entry.name.startswith("."))
        return [Row(entry.name, kind_of(entry), size_of(entry), entry, entry.name in defaults) for entry in entries]
    except OSError as error:
        raise AppError(f"{models_dir} cannot be read ({error.strerror or error}); mend its permissions") from error


def kind_of(path: Path) -> Kind:
    """What a file or folder is, by its content; its name plays no part."""
    if path.is_file():
        return "llama" if _gguf_architecture(path) == "llama" else "unknown"
    if (path / "modules.json").is_file():
        return "embedder"
    try:
        config = json.loads((path / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return "unknown"
    return "llama" if isinstance(config, dict) and config.get("model_type") == "llama" else "unknown"


def _gguf_architecture(path: Path) -> str | None:
    """`general.architecture` from the head of a GGUF file, where every writer puts it; None where there is none."""
    key = b"general.architecture"
    with path.open("rb") as file:
        head = file.read(1 << 16)
    _, found, rest = head.partition(key)
    if not head.startswith(b"GGUF") or not found or len(rest) < 12:
        return None
    kind, length = struct.unpack("<IQ", rest[:12])
    return rest[12 : 12 + length].decode("utf-8", "replace") if kind == 8 else None  # 8: a string


def render_list(rows: list[Row]) -> str:
    """The rows as an aligned table for people."""
    if not rows:
        return "no models yet; `paddock models pull` fetches the default ones"
    width = max(len(row.name) for row in rows)
    return "\n".join(
        f"{row.name:<{width}}  {row.kind:<8}  {row.size / 1e6:8.1f} MB{'  default' if row.default else ''}"
        for row in rows
    )


def info(path: Path) -> str:
    """What `describe` finds, as aligned lines for people."""
    found = {key.replace("_", " "): value for key, value in describe(path).items() if value is not None}
    width = max(map(len, found))
    return "\n".join(
        f"{key:<{width}}  {value:,}" if type(value) is int else f"{key:<{width}}  {value}"
        for key, value in found.items()
    )


def describe(path: Path) -> dict[str, Any]:
    """What a model is: its shape, precision and size; None for what it does not tell.

    Raises AppError where there is no model, and LlamaError for a GGUF file that is empty, cut short or rubbish.
    """
    if not path.exists():
        raise AppError(f"there is no model at {path}; `paddock models list` shows those there are")
    return _gguf_info(path) if path.is_file() else _folder_info(path)


def _gguf_info(path: Path) -> dict[str, Any]:
    from llama.checkpoint import open_gguf  # brings torch

    opened = open_gguf(path)
    meta = opened.metadata
    architecture = meta.get("general.architecture")
    types = Counter(tensor.tensor_type.name for tensor in opened.stored)

    def of(key: str) -> Any:
        return meta.get(f"{architecture}.{key}")

    return {
        "path": str(path),
        "format": "GGUF",
        "name": meta.get("general.name"),
        "licence": meta.get("general.license"),
        "architecture": architecture,
        "parameters": sum(math.prod(tensor.shape) for tensor in opened.stored),
        "layers": of("block_count"),
        "width": of("embedding_length"),
        "heads": of("attention.head_count"),
        "kv_heads": of("attention.head_count_kv") or of("attention.head_count"),
        "context": of("context_length"),
        "vocabulary": len(meta.get("tokenizer.ggml.tokens", [])) or of("vocab_size"),
        "tensor_types": ", ".join(f"{count} {name}" for name, count in types.most_common()),
        "bytes": path.stat().st_size,
    }


def _folder_info(path: Path) -> dict[str, Any]:
    kind = kind_of(path)
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("not an object")
    except (OSError, ValueError) as error:
        raise AppError(f"{path} is not a model's folder: its config.json cannot be read ({error})") from error
    return {
        "path": str(path),
        "format": "sentence-transformers" if kind == "embedder" else "Hugging Face",
        "architecture": config.get("model_type"),
        "parameters": _parameters(path) if kind == "llama" else None,
        "layers": config.get("num_hidden_layers"),
        "width": config.get("hidden_size"),
        "heads": config.get("num_attention_heads"),
        "kv_heads": config.get("num_key_value_heads"),
        "context": config.get("max_position_embeddings"),
        "vocabulary": config.get("vocab_size"),
        "bytes": size_of(path),
    }


def _parameters(folder: Path) -> int:
    """Parameters of a LLaMA's folder, tied ones once. Raises LlamaError when weights are missing or damaged."""
    from llama.checkpoint import open_checkpoint

    opened = open_checkpoint(folder)
    stored, _ = opened.tensors()
    if opened.config.tied:
        stored.pop("lm_head.weight", None)
    return sum(math.prod(each.shape) for each in stored.values())
