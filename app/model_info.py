"""The models on disk: listing what is there, telling what a file or folder holds."""

from __future__ import annotations

import contextlib
import json
import math
import os
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from app.catalogue import CATALOGUE
from app.errors import AppError
from app.units import in_bytes

if TYPE_CHECKING:
    from llama.checkpoint import Checkpoint, Stored

Kind = Literal["llama", "embedder", "reranker", "unknown"]

DTYPES = {"float32": 4, "bfloat16": 2}  # what weights, and keys and values, are kept in, and its bytes


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files under a folder; files may come and go meanwhile."""
    # Not Path.rglob, which raises when a folder goes while it looks.
    files = [path, *(Path(folder) / name for folder, _, names in os.walk(path) for name in names)]
    total = 0
    for each in files:
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
    if (path / "params.json").is_file() and not (path / "config.json").is_file():
        return "llama" if next(path.glob("consolidated.*.pth"), None) else "unknown"
    try:
        config = json.loads((path / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        config = None
    config = config if isinstance(config, dict) else {}
    if any(str(each).endswith("ForSequenceClassification") for each in config.get("architectures") or ()):
        return "reranker"  # also where sentence-transformers saved it, with a modules.json
    if (path / "modules.json").is_file():
        return "embedder"
    return "llama" if config.get("model_type") in ("llama", "mistral") else "unknown"


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
    found: dict[str, str] = {}
    for key, value in describe(path).items():
        name = key.replace("_", " ")
        if isinstance(value, dict):
            found |= {f"{name}, {kind}": in_bytes(each) for kind, each in value.items() if each is not None}
        elif value is not None:
            found[name] = f"{value:,}" if type(value) is int else str(value)
    width = max(map(len, found))
    return "\n".join(f"{key:<{width}}  {value}" for key, value in found.items())


def describe(path: Path) -> dict[str, Any]:
    """What a model is: its shape, precision and size, and what it takes in memory; None for what it does not tell.

    `memory` are the bytes of the weights in each precision (None where a width cannot be quantized), `kv_per_token`
    those of one token's keys and values in all layers.
    Raises AppError where there is no model, and LlamaError for one that is empty, cut short or rubbish.
    """
    if not path.exists():
        raise AppError(f"there is no model at {path}; `paddock models list` shows those there are")
    if path.is_file():
        return _gguf_info(path)
    return _llama_info(path) if kind_of(path) == "llama" else _folder_info(path)


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
        "head_width": of("attention.key_length"),
        "inner_width": of("feed_forward_length"),
        "context": of("context_length"),
        "vocabulary": len(meta.get("tokenizer.ggml.tokens", [])) or of("vocab_size"),
        "tensor_types": ", ".join(f"{count} {name}" for name, count in types.most_common()),
        "bytes": path.stat().st_size,
        **_needs_or_why(opened),
    }


def _needs_or_why(opened: Checkpoint) -> dict[str, Any]:
    """Memory, or why a file that is whole cannot be run all the same."""
    from llama.errors import LlamaError

    try:
        return _needs(opened)
    except LlamaError as error:
        return {"cannot_run": str(error)}


def _llama_info(path: Path) -> dict[str, Any]:
    """A folder with a LLaMA. Raises LlamaError when files of weights are missing or damaged."""
    from llama.checkpoint import open_checkpoint
    from llama.errors import LlamaError
    from llama.hf_folder import HFFolder

    opened = open_checkpoint(path)
    if isinstance(opened, HFFolder) and (lost := opened.lost()):
        raise LlamaError(f"{path.name} cannot be used: {'; '.join(lost)}")
    config = opened.config
    return {
        "path": str(path),
        "format": "Hugging Face" if (path / "config.json").is_file() else "Meta",
        "architecture": "llama",
        "parameters": sum(math.prod(each.shape) for each in _stored(opened) if not each.fault),
        "layers": config.n_layers,
        "width": config.dim,
        "heads": config.n_heads,
        "kv_heads": config.n_kv_heads,
        "head_width": config.head_dim,
        "inner_width": config.ffn_dim,
        "context": config.context_length,
        "context_note": _context_note(opened),
        "vocabulary": config.vocab_size,
        "bytes": size_of(path),
        **_needs_or_why(opened),
    }


def _context_note(opened: Checkpoint) -> str | None:
    """Why the context is shorter than what the configuration names, where it is."""
    from llama.config import contexts_hf
    from llama.hf_folder import HFFolder

    longest, window = contexts_hf(opened.settings) if isinstance(opened, HFFolder) else (0, 0)
    return f"of {longest:,} tokens; attention looks back {window:,}" if window < longest else None


def _folder_info(path: Path) -> dict[str, Any]:
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("not an object")
    except (OSError, ValueError) as error:
        raise AppError(f"{path} is not a model's folder: its config.json cannot be read ({error})") from error
    return {
        "path": str(path),
        "format": "sentence-transformers" if kind_of(path) == "embedder" else "Hugging Face",
        "architecture": config.get("model_type"),
        "layers": config.get("num_hidden_layers"),
        "width": config.get("hidden_size"),
        "heads": config.get("num_attention_heads"),
        "kv_heads": config.get("num_key_value_heads"),
        "context": config.get("max_position_embeddings"),
        "vocabulary": config.get("vocab_size"),
        "bytes": size_of(path),
    }


def _stored(opened: Checkpoint) -> list[Stored]:
    """A LLaMA's tensors, fitting or not, a tied one once."""
    from llama.checkpoint import OUTPUT

    found, _ = opened.tensors()
    return [each for name, each in found.items() if not (name == OUTPUT and opened.config.tied)]


def _needs(opened: Checkpoint) -> dict[str, Any]:
    """Memory for the weights in each precision, and for a token's keys and values in those that a cache has.

    Raises LlamaError where the tensors are not those of a LLaMA.
    """
    from llama.checkpoint import tensors_of
    from llama.fused import CACHED
    from llama.quantize import BITS, can_pack
    from llama.vectors import CHUNK

    config, shapes = opened.config, {name: each.shape for name, each in tensors_of(opened).items()}
    memory: dict[str, int | None] = {
        name: size * sum(math.prod(shape) for shape in shapes.values()) for name, size in DTYPES.items()
    }
    for kind in BITS:
        memory[kind] = sum(_packed(*each, kind) for each in shapes.items()) if can_pack(config) else None
    per_token = 2 * config.n_layers * config.n_kv_heads * config.head_dim
    own = CACHED.itemsize if config.head_dim % CHUNK == 0 else DTYPES["float32"]
    sizes = {**DTYPES, **(dict.fromkeys(BITS, own) if can_pack(config) else {})}
    return {"memory": memory, "kv_per_token": {name: per_token * size for name, size in sizes.items()}}


def _packed(name: str, shape: tuple[int, ...], kind: str) -> int:
    """Bytes of a tensor in a quantized model: matrices as `llama.integers` has them, anything else in fp32."""
    from llama.quantize import bits_of
    from llama.vectors import GROUP, LANES

    if len(shape) != 2:
        return math.prod(shape) * DTYPES["float32"]
    bits = bits_of(name.removesuffix(".weight"), kind)
    outputs, inputs = -(-shape[0] // LANES) * LANES, shape[1]
    halves = 1 if bits == 8 else 2  # fp16 values of a group: its scale, and for 4 bits its minimum
    return outputs * (inputs * bits // 8 + inputs // GROUP * halves * 2)
