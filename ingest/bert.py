"""BERT encoders from a sentence-transformers folder, on torch alone: importing that library costs every start seconds.

Devlin et al., "BERT" (2019), section 3: a Transformer encoder over the sum of token, position and segment embeddings.
What is not plainly that (other architectures and poolings) is left to the library: `load_bert` gives None.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn

POOLINGS = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}
# Our name in a layer -> that of the files; q, k and v are one matrix here.
LAYER = {
    "out": "attention.output.dense",
    "norm_out": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "norm_down": "output.LayerNorm",
}


class BertLayer(nn.Module):
    """Attention and feed-forward, each added and then normed. torch's own encoder layer takes twice the time on CPU."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        dim, inner, eps = config["hidden_size"], config["intermediate_size"], config["layer_norm_eps"]
        self.heads = config["num_attention_heads"]
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.norm_out = nn.LayerNorm(dim, eps)
        self.up = nn.Linear(dim, inner)
        self.down = nn.Linear(inner, dim)
        self.norm_down = nn.LayerNorm(dim, eps)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        rows, size, dim = x.shape
        q, k, v = self.qkv(x).view(rows, size, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = self.norm_out(x + self.out(mixed.transpose(1, 2).reshape(rows, size, dim)))
        return self.norm_down(x + self.down(F.gelu(self.up(x))))  # type: ignore[no-any-return]


class BertEncoder(nn.Module):
    """Texts to unit vectors. Shapes: B texts, T tokens of the longest, D = hidden_size."""

    word_embeddings: nn.Parameter
    position_embeddings: nn.Parameter
    token_type_embeddings: nn.Parameter

    def __init__(self, config: dict[str, Any], pooling: str, tokenizer: Tokenizer) -> None:
        super().__init__()
        dim = config["hidden_size"]
        self.tokenizer = tokenizer
        self.pooling = pooling
        for name, count in (
            ("word_embeddings", config["vocab_size"]),
            ("position_embeddings", config["max_position_embeddings"]),
            ("token_type_embeddings", config["type_vocab_size"]),
        ):
            self.register_parameter(name, nn.Parameter(torch.empty(count, dim)))
        self.norm = nn.LayerNorm(dim, eps=config["layer_norm_eps"])
        self.layers = nn.ModuleList(BertLayer(config) for _ in range(config["num_hidden_layers"]))

    def forward(self, tokens: Tensor, padding: Tensor) -> Tensor:
        """Unit vectors [B, D] of int64 tokens [B, T]; `padding` [B, T] is true where there is no token."""
        x = self.word_embeddings[tokens] + self.position_embeddings[: tokens.shape[1]] + self.token_type_embeddings[0]
        x = self.norm(x)
        mask = ~padding[:, None, None, :] if padding.any() else None  # [B, 1, 1, T], true where there is a token
        for layer in self.layers:
            x = layer(x, mask)
        if self.pooling == "cls":
            pooled = x[:, 0]
        else:
            kept = (~padding).unsqueeze(-1)
            pooled = (x * kept).sum(1) / kept.sum(1)
        return F.normalize(pooled, dim=-1)

    @torch.inference_mode()
    def encode(self, texts: Sequence[str], batch_size: int) -> list[list[float]]:
        """The vectors of texts in their order; give texts of like length together, so that little is padded."""
        device = self.norm.weight.device
        vectors: list[list[float]] = []
        for start in range(0, len(texts), batch_size):
            batch = self.tokenizer.encode_batch(list(texts[start : start + batch_size]))
            rows = [torch.tensor(each.ids, dtype=torch.int64) for each in batch]
            tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True)
            lengths = torch.tensor([len(row) for row in rows])
            padding = torch.arange(tokens.shape[1]) >= lengths[:, None]
            vectors += self(tokens.to(device), padding.to(device)).float().tolist()
        return vectors


def load_bert(folder: Path, device: str) -> BertEncoder | None:
    """The encoder of a sentence-transformers folder, None where it is more than a plain BERT with mean or CLS pooling.

    Raises ValueError, OSError or KeyError for a damaged one.
    """
    config = _read(folder / "config.json")
    pooling = _pooling(folder)
    weights = folder / "model.safetensors"
    if pooling is None or not _is_plain(config) or not weights.is_file():
        return None
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    settings = _read(folder / "sentence_bert_config.json")
    limit = settings.get("max_seq_length") or config["max_position_embeddings"]
    tokenizer.enable_truncation(min(limit, config["max_position_embeddings"]))
    with torch.device("meta"):
        model = BertEncoder(config, pooling, tokenizer)
    model.load_state_dict(_translated(load_file(weights), config["num_hidden_layers"]), assign=True)
    return model.requires_grad_(False).eval().to(device)


def _read(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return found if isinstance(found, dict) else {}


def _is_plain(config: dict[str, Any]) -> bool:
    return (
        config.get("model_type") == "bert"
        and config.get("hidden_act") == "gelu"
        and config.get("position_embedding_type", "absolute") == "absolute"
        and not config.get("is_decoder")
    )


def _pooling(folder: Path) -> str | None:
    """'mean' or 'cls'; None where anything else is done to the text or to the vectors."""
    modules = json.loads((folder / "modules.json").read_text("utf-8"))
    kinds = [str(module["type"]).rsplit(".", 1)[-1] for module in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]) or modules[0]["path"]:
        return None
    if _read(folder / "sentence_bert_config.json").get("do_lower_case"):
        return None
    settings = _read(folder / modules[1]["path"] / "config.json")
    if not settings.get("include_prompt", True):
        return None
    if settings.get("pooling_mode") in POOLINGS.values():  # as newer versions of the library write it
        return str(settings["pooling_mode"])
    asked = [key for key, value in settings.items() if key.startswith("pooling_mode_") and value]
    return POOLINGS.get(asked[0]) if len(asked) == 1 else None


def _translated(weights: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """The files' tensors under our names."""
    weights = {name.removeprefix("bert."): tensor.float() for name, tensor in weights.items()}
    state = {
        name: weights[f"embeddings.{name}.weight"]
        for name in ("word_embeddings", "position_embeddings", "token_type_embeddings")
    }
    for part in ("weight", "bias"):
        state[f"norm.{part}"] = weights[f"embeddings.LayerNorm.{part}"]
        for i in range(layers):
            theirs, ours = f"encoder.layer.{i}.", f"layers.{i}."
            for mine, name in LAYER.items():
                state[f"{ours}{mine}.{part}"] = weights[f"{theirs}{name}.{part}"]
            parts = [weights[f"{theirs}attention.self.{each}.{part}"] for each in ("query", "key", "value")]
            state[f"{ours}qkv.{part}"] = torch.cat(parts)
    return state
