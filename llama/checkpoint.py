"""Reads a checkpoint into one state dict; the only place that permutes q and k."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import gguf
import numpy as np
import torch
from torch import Tensor

from llama import faults
from llama.config import ModelConfig
from llama.errors import LlamaError
from llama.gguf_file import GGUFTensor, can_dequantize, read_gguf
from llama.model import Transformer
from llama.tokenizer import Tokenizer

ROPE_DIVISORS = "rope_freqs.weight"
EMBEDDING, OUTPUT = "embed_tokens.weight", "lm_head.weight"  # ours, which may be one
PLAIN = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# GGUF tensor name -> ours, outside the blocks and inside block {n}.
OUTER = {"token_embd": "embed_tokens", "output_norm": "norm", "output": "lm_head"}
INNER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclass(frozen=True)
class Stored:
    """A tensor on disk: its name there, its shape in our order, and how to read it.

    mapped: what `read` gives may still be the file, mapped, which changes when somebody writes to it, and whose end
    may be cut off. fault: why it cannot be read, in words that name it; empty where it can, and else the shape says
    nothing.
    """

    name: str
    shape: tuple[int, ...]
    read: Callable[[], Tensor]
    mapped: bool = False
    fault: str = ""


def collect(stored: Iterable[tuple[str, Stored]]) -> dict[str, Stored]:
    """Tensors by our names. Two of one name are a fault: which of them counts, nobody knows."""
    found: dict[str, Stored] = {}
    for name, each in stored:
        if name in found:
            both = " and as ".join(dict.fromkeys((found[name].name, each.name)))
            each = replace(each, fault=f"{name} is stored twice, as {both}")
        found[name] = each
    return found


def no_number(name: str, kind: object) -> str:
    """The fault of a tensor whose numbers mean nothing without a scale, or are none."""
    return f"{name} is of type {kind}, not float32, float16 or bfloat16"


class Checkpoint(Protocol):
    """An open checkpoint of any format, its tensors still on disk."""

    @property
    def path(self) -> Path: ...

    @property
    def config(self) -> ModelConfig:
        """Raises LlamaError for what is not a LLaMA."""

    def tensors(self) -> tuple[dict[str, Stored], list[str]]:
        """The tensors by our names, faulty ones too, and the names of those that a LLaMA does not have."""

    def tokenizer(self) -> Tokenizer:
        """Raises LlamaError for a vocabulary that is not known exactly."""

    @property
    def chat_template(self) -> str | None: ...

    @property
    def four_bits(self) -> bool:
        """Whether most weights are stored in four bits with a scale and a minimum for every 32."""


@dataclass(frozen=True)
class GGUFCheckpoint:
    """An open GGUF file: its metadata as plain Python values, and its tensors."""

    path: Path
    metadata: dict[str, Any]
    stored: list[GGUFTensor]

    @property
    def config(self) -> ModelConfig:
        names = {tensor.name: tensor for tensor in self.stored}
        with named(self.path):
            divisors = names.get(ROPE_DIVISORS)
            if divisors is not None and not can_dequantize(divisors.tensor_type):
                raise LlamaError(no_number(ROPE_DIVISORS, divisors.tensor_type.name))
            values = None if divisors is None else tuple(_dequantized(divisors).flatten().tolist())
            return ModelConfig.from_gguf(self.metadata, "output.weight" not in names, values)

    def tensors(self) -> tuple[dict[str, Stored], list[str]]:
        config = self.config
        surplus = [
            tensor.name for tensor in self.stored if tensor.name != ROPE_DIVISORS and _our_name(tensor.name) is None
        ]
        named_ours = [(name, tensor) for tensor in self.stored if (name := _our_name(tensor.name))]
        return collect((name, _stored(tensor, config, name)) for name, tensor in named_ours), surplus

    def tokenizer(self) -> Tokenizer:
        found = Tokenizer.from_gguf(self.metadata)
        marks = {*found.eos_ids, *([] if found.bos_id is None else [found.bos_id])}
        if not marks <= set(range(found.vocab_size)):
            raise LlamaError("its first or last token is beyond its vocabulary; the file is damaged")
        return found

    @property
    def chat_template(self) -> str | None:
        return self.metadata.get("tokenizer.chat_template")

    @property
    def four_bits(self) -> bool:
        inner = [tensor for tensor in self.stored if tensor.name.startswith("blk.") and len(tensor.shape) == 2]
        kinds = {gguf.GGMLQuantizationType.Q4_0, gguf.GGMLQuantizationType.Q4_1}
        return sum(tensor.tensor_type in kinds for tensor in inner) * 2 > len(inner)


def open_checkpoint(path: Path) -> Checkpoint:
    """Opens a GGUF file, a Hugging Face folder or one of Meta's. Raises LlamaError when it cannot be used."""
    if not path.is_dir():
        return open_gguf(path)
    from llama.hf_folder import open_hf_folder
    from llama.meta_folder import open_meta_folder

    folders: dict[str, Callable[[Path], Checkpoint]] = {"config.json": open_hf_folder, "params.json": open_meta_folder}
    for described, open_folder in folders.items():
        if (path / described).is_file():
            return open_folder(path)
    raise LlamaError(
        f"{path} has neither config.json nor params.json, so it is no model; give a GGUF file, a Hugging Face folder "
        "or one of Meta's"
    )


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """Puts the file's name in front of what is wrong with it."""
    try:
        yield
    except LlamaError as error:
        raise LlamaError(f"{path.name} cannot be used: {error}") from error


def open_gguf(path: Path) -> GGUFCheckpoint:
    """Opens a GGUF file, memory-mapped. Raises LlamaError when it is absent, empty, cut short or not GGUF."""
    advice = "run `paddock models pull`, or give another file with --model"
    if not path.is_file():
        raise LlamaError(f"there is no model file {path}; {advice}")
    if path.stat().st_size == 0:
        raise LlamaError(f"{path.name} is empty (0 bytes), an interrupted copy perhaps; {advice}")
    try:
        metadata, tensors = read_gguf(path)
    except PermissionError as error:
        raise LlamaError(f"{path} may not be read; change its permissions") from error
    except (OSError, ValueError, TypeError, MemoryError) as error:
        raise LlamaError(f"{path.name} is not a whole GGUF file ({error}); {advice}") from error
    return GGUFCheckpoint(path, metadata, tensors)


def _our_name(name: str) -> str | None:
    """blk.3.attn_q.weight -> layers.3.self_attn.q_proj.weight; None for a tensor that a LLaMA does not have."""
    match name.split("."):
        case [outer, "weight"] if outer in OUTER:
            return f"{OUTER[outer]}.weight"
        case ["blk", number, inner, "weight"] if inner in INNER:
            return f"layers.{number}.{INNER[inner]}.weight"
    return None


def _stored(tensor: GGUFTensor, config: ModelConfig, name: str) -> Stored:
    fault = "" if can_dequantize(tensor.tensor_type) else no_number(tensor.name, tensor.tensor_type.name)
    # GGUF counts dimensions from the innermost.
    shape = tuple(int(size) for size in reversed(tensor.shape))
    return Stored(tensor.name, shape, functools.partial(_read, tensor, config, name), fault=fault)


def unpermute(weight: Tensor, n_heads: int) -> Tensor:
    """Rows of a q or k projection from pairs (2i, 2i + 1), as Meta and GGUF have them, to pairs (i, i + E/2)."""
    rows, columns = weight.shape
    return weight.view(n_heads, rows // n_heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def _dequantized(tensor: GGUFTensor) -> Tensor:
    # A copy of its own even where nothing is dequantized: the file is mapped read-only and may change on disk.
    values = np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
    return torch.from_numpy(values.reshape(tensor.shape[::-1]))


def _read(tensor: GGUFTensor, config: ModelConfig, name: str) -> Tensor:
    """One tensor, dequantized, in our order of rows."""
    weight = _dequantized(tensor)
    if "q_proj" in name:
        return unpermute(weight, config.n_heads)
    if "k_proj" in name:
        return unpermute(weight, config.n_kv_heads)
    return weight


Made = TypeVar("Made")


def _own(stored: Stored, dtype: torch.dtype, device: str) -> Tensor:
    """A tensor in memory of its own."""
    found = stored.read()
    own = found.to(device, dtype)
    return own.clone() if stored.mapped and own is found else own


def tensors_of(checkpoint: Checkpoint) -> dict[str, Stored]:
    """The tensors that the model needs, by our names; without the output matrix where it is tied to the embedding.

    Raises LlamaError that names every missing, surplus, misshapen or unreadable tensor.
    """
    config = checkpoint.config
    with torch.device("meta"):
        wanted = {name: tuple(value.shape) for name, value in Transformer(config).state_dict().items()}
    stored, surplus = checkpoint.tensors()
    said = faults.one_line(
        [
            [each.fault for each in stored.values() if each.fault],
            [f"surplus {each}" for each in surplus],
            [f"surplus {each.name}" for name, each in stored.items() if name not in wanted and not each.fault],
            [
                f"{each.name} is {list(each.shape)}, not {list(wanted[name])}"
                for name, each in stored.items()
                if name in wanted and each.shape != wanted[name] and not each.fault
            ],
            [f"missing {name}" for name in wanted if name not in stored and not (config.tied and name == OUTPUT)],
        ]
    )
    if said:
        raise LlamaError(f"{checkpoint.path.name} does not hold the tensors of a LLaMA: {said}")
    if config.tied:
        stored.pop(OUTPUT, None)  # a copy of the embedding, which some writers store all the same
    return stored


def read_all(
    checkpoint: Checkpoint, dtype: torch.dtype, device: str, make: Callable[[str, Tensor], Made]
) -> dict[str, Made]:
    """What `make(name, tensor)` gives for each tensor, read one by one so that no second copy of the whole is held.

    Raises LlamaError as `tensors_of`, and for a tensor that cannot be read.
    """
    stored = tensors_of(checkpoint)
    try:
        # numpy lets go of the interpreter while it dequantizes, so threads share the work.
        with ThreadPoolExecutor(4) as pool:
            read = pool.map(lambda name: make(name, _own(stored[name], dtype, device)), stored)
            return dict(zip(stored, read, strict=True))
    except (NotImplementedError, ValueError) as error:
        raise LlamaError(f"{checkpoint.path.name} has tensors that cannot be read ({error})") from error


def load_transformer(checkpoint: Checkpoint, dtype: torch.dtype, device: str) -> Transformer:
    """Builds the model with the checkpoint's weights. Raises LlamaError where they do not fit."""
    config = checkpoint.config
    state = read_all(checkpoint, dtype, device, lambda name, tensor: tensor)
    with torch.device("meta"):
        model = Transformer(config)
    if config.tied:
        state["lm_head.weight"] = state["embed_tokens.weight"]
    model.load_state_dict(state, assign=True)
    if config.tied:
        model.lm_head.weight = model.embed_tokens.weight
    return model.eval().requires_grad_(False)
