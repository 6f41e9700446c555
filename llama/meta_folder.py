"""Meta's own folders: params.json, consolidated.*.pth in one or several shards, tokenizer.model.

The shards are those of the tensor parallelism that the model was trained with: each holds some heads, or some of a
layer's inner width, of every block (Shoeybi et al. 2019, section 3). Norms are in every shard, whole.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llama.checkpoint import EMBEDDING, PLAIN, Stored, collect, named, no_number, unpermute
from llama.config import ModelConfig
from llama.errors import LlamaError
from llama.hf_folder import read_json
from llama.tokenizer import Tokenizer

PARAMS, TOKENIZER, TEMPLATE = "params.json", "tokenizer.model", "chat_template.jinja"
SHARD = re.compile(r"consolidated\.(\d\d)\.pth")
# What a file of torch.save in its old form begins with: a pickle, protocol 2, of 0x1950A86A20F9469CFC6C.
OLD = bytes.fromhex("80028a0a6cfc9c46f9206aa85019")
COMPUTED = "rope.freqs"  # follows from params.json

ROWS, COLUMNS, WHOLE = 0, 1, None
# Meta's name -> ours, and the dimension along which shards share the tensor; inside block {n}, then outside.
INNER: dict[str, tuple[str, int | None]] = {
    "attention.wq": ("self_attn.q_proj", ROWS),
    "attention.wk": ("self_attn.k_proj", ROWS),
    "attention.wv": ("self_attn.v_proj", ROWS),
    "attention.wo": ("self_attn.o_proj", COLUMNS),
    "feed_forward.w1": ("mlp.gate_proj", ROWS),
    "feed_forward.w2": ("mlp.down_proj", COLUMNS),
    "feed_forward.w3": ("mlp.up_proj", ROWS),
    "attention_norm": ("input_layernorm", WHOLE),
    "ffn_norm": ("post_attention_layernorm", WHOLE),
}
# Llama 1 and 2 share out the embedding's columns, Llama 3 its rows: which, the shape tells.
OUTER: dict[str, tuple[str, int | None]] = {
    "tok_embeddings": ("embed_tokens", COLUMNS),
    "norm": ("norm", WHOLE),
    "output": ("lm_head", ROWS),
}


@dataclass(frozen=True)
class MetaFolder:
    """An open folder, its shards mapped into memory."""

    path: Path
    params: Mapping[str, Any]
    shards: tuple[Mapping[str, Tensor], ...]

    @cached_property
    def config(self) -> ModelConfig:
        with named(self.path):
            tied = not any("output.weight" in shard for shard in self.shards)
            return ModelConfig.from_meta(self.params, self._rows(), tied)

    def _rows(self) -> int:
        """Of the embedding, or of the output where only that can be read."""
        for name in ("tok_embeddings.weight", "output.weight"):
            tables = [part for part in self._parts(name) if part is not None and part.ndim == 2]
            if tables:
                axis = self._embedding_axis(tables[0]) if name.startswith("tok") else ROWS
                return len(tables[0]) * (len(self.shards) if axis == ROWS else 1)
        size = self.params.get("vocab_size", -1)
        if not isinstance(size, int) or size < 1:
            raise LlamaError("it has no tok_embeddings.weight that is a matrix")
        return size

    def tensors(self) -> tuple[dict[str, Stored], list[str]]:
        places = {name: _our_name(name) for shard in self.shards for name in shard}
        surplus = [name for name, (ours, _) in places.items() if ours is None and name != COMPUTED]
        found = ((ours, self._stored(name, ours, axis)) for name, (ours, axis) in places.items() if ours)
        return collect(found), surplus

    def _stored(self, name: str, ours: str, axis: int | None) -> Stored:
        held = self._parts(name)
        parts = [part for part in held if part is not None]
        if ours == EMBEDDING and parts:
            axis = self._embedding_axis(parts[0])
        shapes = {tuple(part.shape) for part in parts}
        strange = next(filter(None, map(_kind, parts)), "")
        fault = ""
        if len(parts) < len(held):
            lacking = " and ".join(f"consolidated.{i:02}.pth" for i, part in enumerate(held) if part is None)
            fault = f"{lacking} lacks {name}"
        elif strange:
            fault = no_number(name, strange)
        elif len(shapes) > 1 or (len(parts) > 1 and axis is not None and parts[0].ndim <= axis):
            fault = f"the shards' parts of {name} do not fit together ({', '.join(map(str, sorted(shapes)))})"
        shape = () if fault else _joined_shape(parts, axis)
        return Stored(name, shape, self._reader(ours, parts, axis), mapped=True, fault=fault)

    def _parts(self, name: str) -> list[Tensor | None]:
        """What each shard holds of a tensor."""
        held = (shard.get(name) for shard in self.shards)
        return [part if isinstance(part, Tensor) else None for part in held]

    def _embedding_axis(self, part: Tensor) -> int:
        return ROWS if part.ndim == 2 and part.shape[1] == self.params.get("dim") else COLUMNS

    def _reader(self, name: str, parts: list[Tensor], axis: int | None) -> functools.partial[Tensor]:
        heads = {"q_proj": self.config.n_heads, "k_proj": self.config.n_kv_heads}
        return functools.partial(_read, parts, axis, next((n for part, n in heads.items() if part in name), None))

    def tokenizer(self) -> Tokenizer:
        # Llama 1 and 2 come with one vocabulary beside the folders of all sizes.
        for folder in (self.path, self.path.absolute().parent):
            if (folder / TOKENIZER).is_file():
                return Tokenizer.from_model(folder / TOKENIZER).within(self.config.vocab_size)
        raise LlamaError(f"it has no {TOKENIZER}; copy the one that came with the weights beside {PARAMS}")

    @property
    def four_bits(self) -> bool:
        return False

    @property
    def chat_template(self) -> str | None:
        file = self.path / TEMPLATE  # Meta's folders have none: a user may add it
        return file.read_text("utf-8") if file.is_file() else None


def open_meta_folder(path: Path) -> MetaFolder:
    """Raises LlamaError when the folder has no shards, lacks one, or one is damaged or holds more than weights."""
    params = read_json(path / PARAMS)
    numbers = [int(hit[1]) for file in path.glob("consolidated.*.pth") if (hit := SHARD.fullmatch(file.name))]
    if absent := sorted({*range(max(numbers, default=0) + 1)} - {*numbers}):
        lacking = ", ".join(f"consolidated.{i:02}.pth" for i in absent)
        raise LlamaError(f"{path.name} lacks {lacking}; the download was interrupted, fetch it again")
    shards: list[Mapping[str, Tensor]] = []
    damaged: list[str] = []
    for i in sorted(numbers):
        try:
            shards.append(_load(path / f"consolidated.{i:02}.pth"))
        except LlamaError as error:
            damaged.append(str(error))
    if damaged:
        raise LlamaError(f"{path.name} cannot be used: {'; '.join(damaged)}")
    return MetaFolder(path, params, tuple(shards))


def _load(file: Path) -> dict[str, Tensor]:
    try:
        found = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except PermissionError as error:
        raise LlamaError(f"{file} may not be read; change its permissions") from error
    except Exception as error:  # torch raises many kinds for a damaged file, pickle's own among them
        said = str(error)
        if code := re.search(r"GLOBAL ([\w.]+)", said):
            raise LlamaError(
                f"{file.name} wants to run {code[1]} when it is opened; weights never do, do not use it"
            ) from error
        with file.open("rb") as opened:
            old = opened.read(len(OLD)) == OLD
        if old:
            raise LlamaError(
                f"{file.name} is in PyTorch's format from before 1.6, which cannot be mapped; convert it: "
                f"torch.save(torch.load('{file.name}', weights_only=True), '{file.name}')"
            ) from error
        reason = next(iter(said.splitlines()), type(error).__name__)[:120]
        raise LlamaError(f"{file.name} is not a whole file of weights ({reason}); fetch it again") from error
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise LlamaError(f"{file.name} does not hold tensors by their names; it is no LLaMA of Meta's")
    return found


def _our_name(name: str) -> tuple[str | None, int | None]:
    """layers.3.attention.wq.weight -> layers.3.self_attn.q_proj.weight and its axis; None for what a LLaMA lacks."""
    stem, _, kind = name.rpartition(".")
    match stem.split(".", 2):
        case ["layers", number, inner] if kind == "weight" and inner in INNER:
            ours, axis = INNER[inner]
            return f"layers.{number}.{ours}.weight", axis
        case [outer] if kind == "weight" and outer in OUTER:
            ours, axis = OUTER[outer]
            return f"{ours}.weight", axis
    return None, None


def _kind(part: Tensor) -> str:
    """What a tensor holds, empty for plain numbers."""
    if part.is_meta:
        return "meta (no numbers)"
    if part.layout != torch.strided:
        return str(part.layout)
    return "" if part.dtype in PLAIN else str(part.dtype)


def _joined_shape(parts: list[Tensor], axis: int | None) -> tuple[int, ...]:
    shape = list(parts[0].shape)
    if axis is not None and len(parts) > 1:
        shape[axis] *= len(parts)
    return tuple(shape)


def _read(parts: list[Tensor], axis: int | None, heads: int | None) -> Tensor:
    """One tensor, whole, in our order of rows."""
    weight = parts[0] if axis is None or len(parts) == 1 else torch.cat(parts, dim=axis)
    return weight if heads is None else unpermute(weight, heads)
