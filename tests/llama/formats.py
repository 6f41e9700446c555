"""A tiny random LLaMA written in every format, from one set of weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import save_file

from llama.checkpoint import load_transformer, open_checkpoint
from llama.config import llama3_divisors
from llama.model import Transformer

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Shape:
    """A tiny LLaMA; head_dim need not be dim / heads."""

    dim: int = 48
    layers: int = 2
    heads: int = 4
    kv: int = 2
    head_dim: int = 12
    ffn: int = 64
    vocabulary: int = 96
    theta: float = 10_000.0
    tied: bool = False
    scaling: float | None = None  # Llama 3.1's factor


SHAPES = {
    "grouped queries": Shape(),
    "a key for each head": Shape(kv=4),
    "one key for all": Shape(kv=1),
    "tied": Shape(tied=True),
    "wide heads": Shape(head_dim=16),
    "scaled": Shape(scaling=8.0, theta=500_000.0),
}


def meta_weights(shape: Shape) -> Weights:
    """Random weights as Meta has them: rotary pairs side by side. Large enough for every position to matter."""
    g = torch.Generator().manual_seed(0)
    d, e, f = shape.dim, shape.head_dim, shape.ffn
    out: dict[str, tuple[int, ...]] = {"tok_embeddings.weight": (shape.vocabulary, d), "norm.weight": (d,)}
    if not shape.tied:
        out["output.weight"] = (shape.vocabulary, d)
    for n in range(shape.layers):
        out |= {
            f"layers.{n}.attention.wq.weight": (shape.heads * e, d),
            f"layers.{n}.attention.wk.weight": (shape.kv * e, d),
            f"layers.{n}.attention.wv.weight": (shape.kv * e, d),
            f"layers.{n}.attention.wo.weight": (d, shape.heads * e),
            f"layers.{n}.attention_norm.weight": (d,),
            f"layers.{n}.ffn_norm.weight": (d,),
            f"layers.{n}.feed_forward.w1.weight": (f, d),
            f"layers.{n}.feed_forward.w2.weight": (d, f),
            f"layers.{n}.feed_forward.w3.weight": (f, d),
        }
    return {name: torch.randn(size, generator=g) * 0.3 for name, size in out.items()}


def params(shape: Shape) -> dict[str, Any]:
    found: dict[str, Any] = {
        "dim": shape.dim,
        "n_layers": shape.layers,
        "n_heads": shape.heads,
        "n_kv_heads": shape.kv,
        "multiple_of": shape.ffn,
        "ffn_dim_multiplier": 0.4,
        "norm_eps": 1e-5,
        "rope_theta": shape.theta,
        "vocab_size": -1,
    }
    if shape.head_dim != shape.dim // shape.heads:
        found["head_dim"] = shape.head_dim
    if shape.scaling:
        found |= {"use_scaled_rope": True, "rope_scaling_factor": shape.scaling}
    return found


# Of a tensor that n shards share: the dimension, None for one that each has whole. `embedding` as Llama 2 or as 3.
def axis(name: str, embedding: int) -> int | None:
    if "norm" in name:
        return None
    if "tok_embeddings" in name:
        return embedding
    return 1 if name.endswith(("wo.weight", "w2.weight")) else 0


def write_meta(path: Path, shape: Shape, weights: Weights, shards: int = 1, embedding: int = 1) -> Path:
    path.mkdir(parents=True)
    (path / "params.json").write_text(json.dumps(params(shape)))
    for i in range(shards):
        part = {}
        for name, value in weights.items():
            along = axis(name, embedding)
            part[name] = value.clone() if along is None else value.chunk(shards, dim=along)[i].clone()
        part["rope.freqs"] = torch.ones(shape.head_dim // 2)  # Llama 1 and 2 store it
        torch.save(part, path / f"consolidated.{i:02}.pth")
    return path


# Our name <- Meta's, written down once more so that the reader's table has something to disagree with.
HF = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
}
GGUF = {
    "attention.wq": "attn_q",
    "attention.wk": "attn_k",
    "attention.wv": "attn_v",
    "attention.wo": "attn_output",
    "attention_norm": "attn_norm",
    "ffn_norm": "ffn_norm",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w2": "ffn_down",
    "feed_forward.w3": "ffn_up",
}


def renamed(name: str, inner: Mapping[str, str], block: str, outer: Mapping[str, str]) -> str:
    if not name.startswith("layers."):
        return f"{outer[name.removesuffix('.weight')]}.weight"
    _, number, rest = name.split(".", 2)
    return f"{block}.{number}.{inner[rest.removesuffix('.weight')]}.weight"


def write_hf(path: Path, shape: Shape, weights: Weights, shards: int = 1) -> Path:
    """As the converters write it: rotary pairs half a head apart (row 2i + j of a head goes to i + jE/2)."""
    path.mkdir(parents=True)
    outer = {"tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}
    out = {}
    for name, value in weights.items():
        heads = shape.heads if "wq" in name else shape.kv if "wk" in name else 0
        if heads:
            e = shape.head_dim
            order = [h * e + 2 * i + j for h in range(heads) for j in range(2) for i in range(e // 2)]
            value = value[order]
        out[renamed(name, HF, "model.layers", outer)] = value.contiguous()
    names = sorted(out)
    places = {name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, name in enumerate(names)}
    if shards == 1:
        save_file(out, path / "model.safetensors")
    else:
        for file in set(places.values()):
            save_file({name: out[name] for name in names if places[name] == file}, path / file)
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    config: dict[str, Any] = {
        "model_type": "llama",
        "hidden_size": shape.dim,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": shape.theta,
        "tie_word_embeddings": shape.tied,
    }
    if shape.scaling:
        config["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": shape.scaling,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
    (path / "config.json").write_text(json.dumps(config))
    return path


def write_gguf(
    path: Path, shape: Shape, weights: Weights, architecture: str = "llama", vocabulary: Mapping[str, Any] | None = None
) -> Path:
    """As llama.cpp's converter writes it: Meta's order of rows, rotary divisors as a tensor.

    vocabulary: what stands under `tokenizer.`; by default tokens alone, so that nothing can be encoded.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(shape.layers)
    writer.add_embedding_length(shape.dim)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_context_length(4096)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(shape.theta)
    if vocabulary is None:
        writer.add_tokenizer_model("llama")
        writer.add_token_list(["<unk>", "<s>", "</s>", *(f"▁{n}" for n in range(shape.vocabulary - 3))])
    for key, value in (vocabulary or {}).items():
        adders = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string, list: writer.add_array}
        adders[type(value)](key, value)
    outer = {"tok_embeddings": "token_embd", "norm": "output_norm", "output": "output"}
    for name, value in weights.items():
        writer.add_tensor(renamed(name, GGUF, "blk", outer), value.numpy())
    if shape.scaling:
        divisors = llama3_divisors(shape.head_dim, shape.theta, shape.scaling, 1.0, 4.0, 8192.0)
        writer.add_tensor("rope_freqs.weight", np.array(divisors, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def loaded(path: Path) -> Transformer:
    return load_transformer(open_checkpoint(path), torch.float32, "cpu")
