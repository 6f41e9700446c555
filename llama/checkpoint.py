"""Reads a checkpoint into one state dict; the only place that permutes q and k."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from llama.config import ModelConfig
from llama.errors import LlamaError
from llama.gguf_file import GGUFTensor, read_gguf
from llama.model import Transformer

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
class Checkpoint:
    """An open model file: its metadata as plain Python values, and its tensors, still on disk."""

    path: Path
    metadata: dict[str, Any]
    tensors: list[GGUFTensor]

    @property
    def config(self) -> ModelConfig:
        tied = not any(tensor.name == "output.weight" for tensor in self.tensors)
        with _named(self.path):
            return ModelConfig.from_gguf(self.metadata, tied)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Puts the file's name in front of what is wrong with it."""
    try:
        yield
    except LlamaError as error:
        raise LlamaError(f"{path.name} cannot be used: {error}") from error


def open_gguf(path: Path) -> Checkpoint:
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
    return Checkpoint(path, metadata, tensors)


def _our_name(name: str) -> str | None:
    """blk.3.attn_q.weight -> layers.3.self_attn.q_proj.weight; None for a tensor that a LLaMA does not have."""
    match name.split("."):
        case [outer, "weight"] if outer in OUTER:
            return f"{OUTER[outer]}.weight"
        case ["blk", number, inner, "weight"] if inner in INNER:
            return f"layers.{number}.{INNER[inner]}.weight"
    return None


def unpermute(weight: Tensor, n_heads: int) -> Tensor:
    """Rows of a q or k projection from pairs (2i, 2i + 1), as Meta and GGUF have them, to pairs (i, i + E/2)."""
    rows, columns = weight.shape
    return weight.view(n_heads, rows // n_heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def _read(tensor: GGUFTensor, config: ModelConfig, name: str, dtype: torch.dtype) -> Tensor:
    """One tensor, dequantized, in our order of rows."""
    # A copy of its own even where nothing is dequantized: the file is mapped read-only and may change on disk.
    values = np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
    weight = torch.from_numpy(values.reshape(tensor.shape[::-1]))
    if "q_proj" in name:
        weight = unpermute(weight, config.n_heads)
    elif "k_proj" in name:
        weight = unpermute(weight, config.n_kv_heads)
    return weight.to(dtype)


def load_transformer(checkpoint: Checkpoint, dtype: torch.dtype, device: str) -> Transformer:
    """Builds the model with the checkpoint's weights, one tensor at a time, without a second copy of the whole.

    Raises LlamaError that names every missing, surplus or misshapen tensor.
    """
    config = checkpoint.config
    with torch.device("meta"):
        model = Transformer(config)
    wanted = {name: value.shape for name, value in model.state_dict().items()}
    if config.tied:
        del wanted["lm_head.weight"]
    missing = dict.fromkeys(wanted)
    faults = []
    fitting: dict[str, GGUFTensor] = {}
    for tensor in checkpoint.tensors:
        name = _our_name(tensor.name)
        shape = torch.Size(int(size) for size in reversed(tensor.shape))  # GGUF counts dimensions from the innermost
        if name is None or name not in wanted:
            faults.append(f"surplus {tensor.name}")
            continue
        missing.pop(name, None)
        if shape != wanted[name]:
            faults.append(f"{tensor.name} is {list(shape)}, not {list(wanted[name])}")
        else:
            fitting[name] = tensor
    faults += [f"missing {name}" for name in missing]
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise LlamaError(f"{checkpoint.path.name} does not hold the tensors of a LLaMA: {'; '.join(faults[:5])}{more}")
    try:
        # numpy lets go of the interpreter while it dequantizes, so threads share the work.
        with ThreadPoolExecutor(4) as pool:
            read = pool.map(lambda item: _read(item[1], config, item[0], dtype).to(device), fitting.items())
            state = dict(zip(fitting, read, strict=True))
    except (NotImplementedError, ValueError) as error:
        raise LlamaError(f"{checkpoint.path.name} has tensors that cannot be read ({error})") from error
    if config.tied:
        state["lm_head.weight"] = state["embed_tokens.weight"]
    model.load_state_dict(state, assign=True)
    if config.tied:
        model.lm_head.weight = model.embed_tokens.weight
    return model.eval().requires_grad_(False)
