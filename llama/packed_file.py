"""Quantized models on disk, so that a checkpoint is read and rounded once and mapped into memory ever after."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llama.checkpoint import Checkpoint, read_all
from llama.config import ModelConfig
from llama.model import Transformer
from llama.quantize import Packed, QuantizedEmbedding, QuantizedLinear, bits_of, pack
from llama.team import Team
from llama.vectors import GROUP, LANES

LINE = 64  # bytes
SUFFIX, DIGEST = ".safetensors", 16
FORMAT = "3"  # of what lies in the file; a change of the packing or of the rounding counts it up


def place_of(folder: Path, checkpoint: Path, kind: str) -> Path:
    """Where the packed form of a checkpoint belongs: named by all that it depends on, without reading gigabytes.

    A file is known by its path, size and time of change, a folder by those of all its files.
    """
    files = sorted(each for each in checkpoint.rglob("*") if each.is_file()) if checkpoint.is_dir() else [checkpoint]
    known = [(str(each.resolve()), each.stat().st_size, each.stat().st_mtime_ns) for each in files]
    digest = hashlib.sha256(repr((FORMAT, kind, known)).encode()).hexdigest()[:DIGEST]
    return folder / f"{checkpoint.name.removesuffix('.gguf')}-{kind}-{digest}{SUFFIX}"


def pack_checkpoint(checkpoint: Checkpoint, kind: str) -> dict[str, Tensor]:
    """A checkpoint's tensors, matrices packed as soon as they are read. kind: 'int8' or 'int4'.

    Raises LlamaError where tensors do not fit or cannot be packed.
    """
    read = read_all(checkpoint, torch.float32, "cpu", lambda name, tensor: packed_parts(name, tensor, kind))
    return {name: tensor for parts in read.values() for name, tensor in parts.items()}


def packed_parts(name: str, tensor: Tensor, kind: str) -> dict[str, Tensor]:
    """A tensor of a checkpoint as such a file holds it: vectors as they are, of a matrix its packed parts."""
    if tensor.ndim == 1:
        return {name: tensor}
    module = name.removesuffix(".weight")
    found = pack(tensor, bits_of(module, kind))
    return {f"{module}.weight": found.weight, f"{module}.scale": found.scale, f"{module}.minimum": found.minimum}


def save(state: Mapping[str, Tensor], path: Path) -> None:
    """Writes packed tensors; the file appears whole or not at all. What cannot be written is not: it is a copy."""
    first, half = (path.with_name(f".{uuid.uuid4().hex}.tmp") for _ in range(2))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(dict(state), first)
        _align(first, half)
        half.replace(path)
        for other in path.parent.glob(f"{glob.escape(path.name[: -DIGEST - len(SUFFIX)])}{'?' * DIGEST}{SUFFIX}"):
            if other != path:  # of a file that has changed, or of an older version
                other.unlink(missing_ok=True)
    except (OSError, SafetensorError):
        with contextlib.suppress(OSError):
            half.unlink(missing_ok=True)
    finally:
        with contextlib.suppress(OSError):
            first.unlink(missing_ok=True)


def _align(source: Path, target: Path) -> None:
    """Copies a safetensors file with a header that is padded, so that its tensors begin at multiples of LINE bytes.

    Mapped into memory, they do so there, too, and no vector lies across two cache lines.
    """
    with source.open("rb") as old, target.open("wb") as new:
        length = int.from_bytes(old.read(8), "little")
        header = old.read(length)
        header += b" " * (-(8 + length) % LINE)
        new.write(len(header).to_bytes(8, "little") + header)
        shutil.copyfileobj(old, new, 1 << 20)


def load(path: Path) -> dict[str, Tensor]:
    """The tensors of such a file, mapped into memory; empty where there is none that can be read."""
    try:
        return load_file(path) if path.is_file() else {}
    except (OSError, SafetensorError):
        return {}


def assemble(config: ModelConfig, packed: Mapping[str, Tensor], team: Team, dtype: torch.dtype) -> Transformer | None:
    """The model of packed tensors; None where they are not those of this shape."""
    state = dict(packed)
    if config.tied and any(name.startswith("lm_head.") for name in state):
        return None
    with torch.device("meta"):
        model = Transformer(config)
    for parent, name, child in list(_matrices(model)):
        if child is model.lm_head and config.tied:
            continue
        prefix = f"{parent}.{name}" if parent else name
        parts = [state.pop(f"{prefix}.{part}", None) for part in ("weight", "scale", "minimum")]
        outputs, inputs = child.weight.shape
        weight, scale, minimum = parts
        if weight is None or scale is None or minimum is None:
            return None
        blocks, groups = -(-outputs // LANES), inputs // GROUP
        if scale.shape != (blocks, groups, LANES) or minimum.shape not in ((0,), scale.shape):
            return None
        if weight.shape != (blocks, groups * GROUP // (8 if minimum.numel() else 4), LANES, 4):
            return None  # compiled functions would read on behind its end
        made = QuantizedEmbedding if isinstance(child, nn.Embedding) else QuantizedLinear
        setattr(model.get_submodule(parent), name, made(Packed(weight, scale, minimum, outputs), team, dtype))
    if config.tied:
        embedding = model.embed_tokens
        assert isinstance(embedding, QuantizedEmbedding)
        model.lm_head = QuantizedLinear(embedding.packed, team, dtype)  # type: ignore[assignment]
    try:
        _, surplus = model.load_state_dict(state, strict=False, assign=True)
    except RuntimeError:  # of another shape
        return None
    if surplus or any(tensor.is_meta for tensor in model.state_dict().values()):
        return None
    return model.eval().requires_grad_(False)


def _matrices(model: Transformer) -> Iterator[tuple[str, str, nn.Linear | nn.Embedding]]:
    for parent, module in model.named_modules():
        for name, child in module.named_children():
            if isinstance(child, nn.Linear | nn.Embedding):
                yield parent, name, child
