"""Hugging Face folders: config.json, safetensors in one or several shards, tokenizer.json or tokenizer.model."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llama.checkpoint import EMBEDDING, OUTPUT, Stored, collect, named, no_number
from llama.config import ModelConfig
from llama.errors import LlamaError
from llama.tokenizer import Tokenizer

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
COMPUTED = "rotary_emb.inv_freq"  # old writers stored this table; it follows from the configuration
KINDS = {"F64", "F32", "F16", "BF16"}  # of numbers that need no scale

Head = Mapping[str, tuple[tuple[int, ...], str]]  # shape and kind of each tensor


@dataclass(frozen=True)
class HFFolder:
    """An open folder. The weights are mapped into memory and read one by one; q and k are in our order already."""

    path: Path
    settings: Mapping[str, Any]

    @cached_property
    def config(self) -> ModelConfig:
        with named(self.path):
            config = ModelConfig.from_hf(self.settings)
        return replace(config, tied=False) if config.tied and self._has_own_output() else config

    def _has_own_output(self) -> bool:
        """Whether an output matrix is stored that differs from the embedding. It counts, as in transformers (5.23,
        `tie_weights`), whatever the configuration says.
        """
        try:
            found, _ = self.tensors()
        except LlamaError:  # there are no weights yet, or none that can be read: said by who needs them
            return False
        both = [found[name] for name in (EMBEDDING, OUTPUT) if name in found and not found[name].fault]
        if len(both) < 2 or both[0].shape != both[1].shape:
            return False
        return not torch.equal(both[0].read(), both[1].read())

    def tensors(self) -> tuple[dict[str, Stored], list[str]]:
        found: list[tuple[str, Stored]] = []
        surplus: list[str] = []
        for shard, names in self.shards().items():
            head = self._head(shard)
            if isinstance(head, str) and names is None:
                raise LlamaError(f"{self.path.name} cannot be used: {head}")
            for name in sorted({*(names or ()), *(() if isinstance(head, str) else head)}):
                if names is not None and name not in names:
                    surplus.append(f"{name} in {shard.name}, of which the index does not know")
                elif not name.endswith(COMPUTED):
                    found.append((name.removeprefix("model."), _stored(shard, name, head)))
        return collect(found), surplus

    def lost(self) -> list[str]:
        """What is wrong with files of weights that are not there or not whole."""
        return [head for head in map(self._head, self.shards()) if isinstance(head, str)]

    def _head(self, shard: Path) -> Head | str:
        """What a file of weights says that it holds, or why it does not."""
        if not shard.is_file():
            return f"{shard.name} is missing (an interrupted download, fetch it again)"
        try:
            with safe_open(shard, framework="pt") as file:
                parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  no mapping
                return {name: (tuple(part.get_shape()), str(part.get_dtype())) for name, part in parts.items()}
        except (SafetensorError, OSError) as error:
            return f"{shard.name} is not a whole safetensors file ({error}), fetch it again"

    def shards(self) -> dict[Path, set[str] | None]:
        """Files of weights, there or not, and for several of them the tensors that each should hold.

        Raises LlamaError where nothing tells which they are.
        """
        if (self.path / SINGLE).is_file():
            return {self.path / SINGLE: None}
        places = read_json(self.path / INDEX).get("weight_map") if (self.path / INDEX).is_file() else None
        if not isinstance(places, dict) or not places:
            pickled = sorted(self.path.glob("*.bin")) or sorted(self.path.glob("*.pth"))
            why = f" (it has {pickled[0].name}; a pickle may run code, convert it)" if pickled else ""
            raise LlamaError(f"{self.path.name} has neither {SINGLE} nor a {INDEX} that can be read{why}")
        shards: dict[Path, set[str] | None] = {}
        for name, file in places.items():
            # The index is data from outside: a shard lies in this folder and nowhere else.
            if not isinstance(file, str) or Path(file).name != file:
                raise LlamaError(f"{self.path.name}: {INDEX} names a file outside the folder ({str(file)[:60]!r})")
            names = shards.setdefault(self.path / file, set())
            assert names is not None
            names.add(name)
        return shards

    def tokenizer(self) -> Tokenizer:
        generation = read_json(self.path / "generation_config.json")
        ends: set[int] = set()
        for source in (self.settings, generation):
            value = source.get("eos_token_id")
            ends.update(x for x in (value if isinstance(value, list) else [value]) if isinstance(x, int))
        bos = self.settings.get("bos_token_id")
        bos = bos if isinstance(bos, int) else None
        rows = self.config.vocab_size
        for name, read in TOKENIZERS.items():
            if (self.path / name).is_file():
                found = read(self.path / name, bos, ends)
                # Special tokens may lie behind the model's table; a number that neither has is none.
                if not {*ends, *([] if bos is None else [bos])} <= set(range(max(rows, found.vocab_size))):
                    raise LlamaError(
                        "its first or last token is beyond its vocabulary; mend config.json or generation_config.json"
                    )
                return found.within(rows)
        raise LlamaError(f"it has none of {', '.join(TOKENIZERS)}; fetch the model again")

    @property
    def four_bits(self) -> bool:
        return False

    @property
    def chat_template(self) -> str | None:
        file = self.path / "chat_template.jinja"
        if file.is_file():
            return file.read_text("utf-8")
        found = read_json(self.path / "tokenizer_config.json").get("chat_template")
        if isinstance(found, list):  # several under names
            named_ones = {each.get("name"): each.get("template") for each in found if isinstance(each, dict)}
            found = named_ones.get("default")
        return found if isinstance(found, str) else None


def _from_model(path: Path, bos_id: int | None, eos_ids: set[int]) -> Tokenizer:
    """A tokenizer.model, and what the files beside it add: special tokens behind its end, and whether BOS is wanted."""
    settings = read_json(path.parent / "tokenizer_config.json")
    added: dict[str, int] = {
        k: v for k, v in read_json(path.parent / "added_tokens.json").items() if isinstance(v, int)
    }
    known = settings.get("added_tokens_decoder")
    for i, token in known.items() if isinstance(known, dict) else ():
        if isinstance(token, dict) and isinstance(token.get("content"), str) and str(i).isdecimal():
            added[token["content"]] = int(i)
    return Tokenizer.from_model(path, bos_id, eos_ids, added, settings.get("add_bos_token", True) is not False)


# Files of a vocabulary, the one that says most first.
TOKENIZERS: dict[str, Callable[[Path, int | None, set[int]], Tokenizer]] = {
    "tokenizer.json": Tokenizer.from_hf,
    "tokenizer.model": _from_model,
}


def open_hf_folder(path: Path) -> HFFolder:
    """Raises LlamaError when the folder has no config.json that can be read."""
    if not (path / "config.json").is_file():
        raise LlamaError(f"{path} has no config.json, so it is no model; give a GGUF file or a Hugging Face folder")
    return HFFolder(path, read_json(path / "config.json"))


def read_json(path: Path) -> dict[str, Any]:
    """An object from a file, empty for a file that is not there. Raises LlamaError for a damaged one."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise LlamaError(f"{path} cannot be read as JSON ({error}); fetch the model again") from error
    if not isinstance(found, dict):
        raise LlamaError(f"{path} is not a JSON object; fetch the model again")
    return found


def _stored(shard: Path, name: str, head: Head | str) -> Stored:
    """A tensor that a file should hold, and what the file says."""
    read = functools.partial(_tensor, shard, name)
    if isinstance(head, str):
        return Stored(name, (), read, fault=head)
    if name not in head:
        return Stored(name, (), read, fault=f"{shard.name} lacks {name}, where the index has it")
    shape, kind = head[name]
    return Stored(name, shape, read, mapped=True, fault="" if kind in KINDS else no_number(name, kind))


def _tensor(shard: Path, name: str) -> Tensor:
    """A tensor, mapped from the file."""
    with safe_open(shard, framework="pt") as file:
        found: Tensor = file.get_tensor(name)
        return found
