"""The shape of a LLaMA, read from a checkpoint's own metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llama.errors import LlamaError

# Far above any LLaMA: a damaged header must not make us build a billion layers or positions.
MOST = {
    "dim": 1 << 17,
    "n_layers": 1 << 10,
    "n_heads": 1 << 12,
    "n_kv_heads": 1 << 12,
    "head_dim": 1 << 12,
    "ffn_dim": 1 << 19,
    "vocab_size": 1 << 22,
    "context_length": 1 << 22,
}


@dataclass(frozen=True)
class ModelConfig:
    """Hyper-parameters of the architecture (Touvron et al. 2023, section 2.2; grouped queries: Ainslie et al. 2023)."""

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn_dim: int
    vocab_size: int
    context_length: int
    norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    tied: bool = True

    def __post_init__(self) -> None:
        for name, most in MOST.items():
            if not 1 <= getattr(self, name) <= most:
                raise LlamaError(f"the model's {name} is {getattr(self, name)}; the file is damaged")
        if self.n_heads % self.n_kv_heads:
            raise LlamaError(f"{self.n_heads} query heads cannot share {self.n_kv_heads} key/value heads evenly")
        if self.head_dim % 2:
            raise LlamaError(f"rotary embedding needs an even head_dim, the model has {self.head_dim}")

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], tied: bool) -> ModelConfig:
        """From GGUF metadata (the `llama.*` keys of the GGUF specification).

        Raises LlamaError for another architecture, for a variant that computes differently, and for missing keys.
        """
        architecture = metadata.get("general.architecture")
        if architecture != "llama":
            raise LlamaError(f"its architecture is {architecture!r}; only 'llama' can be run")
        try:
            dim = int(metadata["llama.embedding_length"])
            n_heads = int(metadata["llama.attention.head_count"])
            head_dim = int(metadata.get("llama.attention.key_length", dim // n_heads))
            config = cls(
                dim=dim,
                n_layers=int(metadata["llama.block_count"]),
                n_heads=n_heads,
                n_kv_heads=int(metadata.get("llama.attention.head_count_kv", n_heads)),
                head_dim=head_dim,
                ffn_dim=int(metadata["llama.feed_forward_length"]),
                vocab_size=len(metadata["tokenizer.ggml.tokens"]),
                context_length=int(metadata["llama.context_length"]),
                norm_eps=float(metadata["llama.attention.layer_norm_rms_epsilon"]),
                rope_theta=float(metadata.get("llama.rope.freq_base", 10_000.0)),
                tied=tied,
            )
        except KeyError as error:
            raise LlamaError(f"its metadata lacks {error}; the file is damaged or not a language model") from error
        except (TypeError, ValueError, ZeroDivisionError) as error:
            raise LlamaError(f"its metadata cannot be read ({error}); the file is damaged") from error
        if metadata.get("llama.rope.scaling.type", "none") != "none":
            raise LlamaError("it scales its rotary positions, which is not supported yet; choose another model")
        if int(metadata.get("llama.rope.dimension_count", head_dim)) != head_dim:
            raise LlamaError("it rotates only part of each head, which LLaMA does not")
        if metadata.get("llama.expert_count"):
            raise LlamaError("it is a mixture of experts, which is not a LLaMA")
        return config
