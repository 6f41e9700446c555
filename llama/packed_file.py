"""Quantized models on disk, so that a checkpoint is read and rounded once and mapped into memory ever after."""

from __future__ import annotations

import contextlib
import hashlib
import uuid
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from llama.config import ModelConfig
from llama.model import Transformer
from llama.quantize import Packed, QuantizedEmbedding, QuantizedLinear
from llama.team import Team
from llama.vectors import GROUP, LANES

FORMAT = "1"  # of what lies in the file; a change of the packing or of the rounding counts it up


def place_of(folder: Path, checkpoint: Path, kind: str) -> Path:
    """Where the packed form of a checkpoint belongs: named by all that it depends on, without reading gigabytes.

    A file is known by its path, size and time of change, a folder by those of all its files.
    """
    files = sorted(each for each in checkpoint.rglob("*") if each.is_file()) if checkpoint.is_dir() else [checkpoint]
    known = [(str(each.resolve()), each.stat().st_size, each.stat().st_mtime_ns) for each in files]
    digest = hashlib.sha256(repr((FORMAT, kind, known)).encode()).hexdigest()[:16]
    return folder / f"{checkpoint.stem}-{kind}-{digest}.safetensors"


def save(model: Transformer, path: Path) -> None:
    """Writes a quantized model; the file appears whole or not at all. What cannot be written is not: it is a copy."""
    half = path.with_name(f".{uuid.uuid4().hex}.tmp")
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if model.config.tied:
        state = {name: tensor for name, tensor in state.items() if not name.startswith("lm_head.")}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(state, half)
        half.replace(path)
    except (OSError, SafetensorError):
        with contextlib.suppress(OSError):
            half.unlink()


def load(config: ModelConfig, path: Path, team: Team, dtype: torch.dtype) -> Transformer | None:
    """The model of such a file, mapped into memory; None where there is none that can be used."""
    if not path.is_file():
        return None
    try:
        state = load_file(path)
        with torch.device("meta"):
            model = Transformer(config)
        for parent, name, child in list(_matrices(model)):
            if child is model.lm_head and config.tied:
                continue
            prefix = f"{parent}.{name}" if parent else name
            weight, scale, minimum = (state.pop(f"{prefix}.{part}") for part in ("weight", "scale", "minimum"))
            outputs, inputs = child.weight.shape
            if scale.shape != (-(-outputs // LANES), inputs // GROUP, LANES):
                return None
            packed = Packed(weight, scale, minimum, outputs)
            made = QuantizedEmbedding if isinstance(child, nn.Embedding) else QuantizedLinear
            setattr(model.get_submodule(parent), name, made(packed, team, dtype))
        if config.tied:
            embedding = model.embed_tokens
            assert isinstance(embedding, QuantizedEmbedding)
            model.lm_head = QuantizedLinear(embedding.packed, team, dtype)  # type: ignore[assignment]
        _, surplus = model.load_state_dict(state, strict=False, assign=True)
        if surplus or any(tensor.is_meta for tensor in model.state_dict().values()):
            return None
    except (OSError, SafetensorError, KeyError, RuntimeError):
        return None
    return model.eval().requires_grad_(False)


def _matrices(model: Transformer) -> Iterator[tuple[str, str, nn.Linear | nn.Embedding]]:
    for parent, module in model.named_modules():
        for name, child in module.named_children():
            if isinstance(child, nn.Linear | nn.Embedding):
                yield parent, name, child
