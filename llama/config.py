"""The shape of a LLaMA, read from a checkpoint's own metadata."""

from __future__ import annotations

import math
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


# Keys of a config.json under which another value means another computation, and what a LLaMA has there.
LLAMA_HAS = (("hidden_act", "silu"), ("attention_bias", False), ("mlp_bias", False))
DEFAULT_KV_HEADS = {"mistral": 8}  # transformers'; elsewhere one for each query head

# What Meta's params.json may hold; the last three say nothing about the computation.
META_KEYS = {
    "dim",
    "n_layers",
    "n_heads",
    "n_kv_heads",
    "head_dim",
    "hidden_dim",
    "multiple_of",
    "ffn_dim_multiplier",
    "norm_eps",
    "rope_theta",
    "vocab_size",
    "use_scaled_rope",
    "rope_scaling_factor",
    "rope_high_freq_factor",
    "max_seq_len",
    "max_batch_size",
    "model_parallel_size",
}
# Llama 3.1 and 3.2 (1B, 3B) are both marked with `use_scaled_rope` alone: their factors, by width.
SCALED_BY_DIM = {2048: 32.0, 3072: 32.0, 4096: 8.0, 8192: 8.0, 16384: 8.0}


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
    rope_divisors: tuple[float, ...] | None = None  # of each rotary frequency, for contexts longer than first trained

    def __post_init__(self) -> None:
        for name, most in MOST.items():
            if not 1 <= getattr(self, name) <= most:
                raise LlamaError(f"the model's {name} is {getattr(self, name)}; the file is damaged")
        if not (0 <= self.norm_eps < 1 and 0 < self.rope_theta < math.inf):
            raise LlamaError(
                f"its norm_eps is {self.norm_eps} and its rope_theta {self.rope_theta}; the file is damaged"
            )
        if self.n_heads % self.n_kv_heads:
            raise LlamaError(f"{self.n_heads} query heads cannot share {self.n_kv_heads} key/value heads evenly")
        if self.head_dim % 2:
            raise LlamaError(f"rotary embedding needs an even head_dim, the model has {self.head_dim}")
        if self.rope_divisors is not None and (
            len(self.rope_divisors) != self.head_dim // 2 or not all(0 < x < math.inf for x in self.rope_divisors)
        ):
            raise LlamaError("its rotary scaling does not fit its head_dim; the file is damaged")

    @classmethod
    def from_gguf(
        cls, metadata: Mapping[str, Any], tied: bool, rope_divisors: tuple[float, ...] | None = None
    ) -> ModelConfig:
        """From GGUF metadata (the `llama.*` keys of the GGUF specification).

        rope_divisors: what the file's `rope_freqs.weight` holds, if it has that tensor.
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
                rope_divisors=_divisors_gguf(metadata, head_dim, rope_divisors),
            )
            rotated = int(metadata.get("llama.rope.dimension_count", head_dim))
            parts = int(metadata.get("split.count", 1))
        except KeyError as error:
            raise LlamaError(f"its metadata lacks {error}; the file is damaged or not a language model") from error
        except (TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
            raise LlamaError(f"its metadata cannot be read ({error}); the file is damaged") from error
        scaling = metadata.get("llama.rope.scaling.type", "none")
        if scaling not in ("none", "linear"):
            raise LlamaError(f"its rotary scaling {scaling!r} is not known; choose another model")
        if rotated != head_dim:
            raise LlamaError("it rotates only part of each head, which LLaMA does not")
        if parts > 1:
            raise LlamaError(f"it is one of {parts} parts; join them with llama.cpp's gguf-split --merge")
        if metadata.get("llama.expert_count"):
            raise LlamaError("it is a mixture of experts, which is not a LLaMA")
        return config

    @classmethod
    def from_meta(cls, params: Mapping[str, Any], rows: int, tied: bool) -> ModelConfig:
        """From Meta's params.json. rows: of the embedding, for the file says -1. tied: whether there is no output.

        Raises LlamaError for keys that are missing, and for those that a LLaMA does not have.
        """
        if unknown := sorted(params.keys() - META_KEYS):
            raise LlamaError(f"its params.json has {', '.join(unknown)}, which a LLaMA does not have")
        try:
            dim, n_heads = int(params["dim"]), int(params["n_heads"])
            head_dim = int(params.get("head_dim") or dim // n_heads)
            theta = float(params.get("rope_theta") or 10_000.0)
            eps = float(params["norm_eps"])
            size = int(params.get("vocab_size", -1))
            return cls(
                dim=dim,
                n_layers=int(params["n_layers"]),
                n_heads=n_heads,
                n_kv_heads=int(params.get("n_kv_heads") or n_heads),
                head_dim=head_dim,
                ffn_dim=_ffn_meta(params, dim),
                vocab_size=rows if size < 0 else size,
                context_length=_context_meta(params, theta, eps),
                norm_eps=eps,
                rope_theta=theta,
                tied=tied,
                rope_divisors=_divisors_meta(params, head_dim, theta),
            )
        except KeyError as error:
            raise LlamaError(f"its params.json lacks {error}") from error
        except (TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
            raise LlamaError(f"its params.json cannot be read ({error})") from error

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> ModelConfig:
        """From a Hugging Face config.json.

        Raises LlamaError for another architecture, for a variant that computes differently, and for missing keys.
        """
        kind = config.get("model_type")
        if kind not in ("llama", "mistral"):
            raise LlamaError(f"its model_type is {kind!r}; only 'llama', and what computes the same, can be run")
        if quantized := config.get("quantization_config"):
            method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
            raise LlamaError(
                f"its weights are quantized ({method}); get them in float32, float16 or bfloat16, or as GGUF"
            )
        for key, same in LLAMA_HAS:
            if config.get(key, same) != same:
                raise LlamaError(f"its {key} is {config[key]!r}, where a LLaMA has {same!r}")
        try:
            dim, n_heads = int(config["hidden_size"]), int(config["num_attention_heads"])
            head_dim = int(config.get("head_dim") or dim // n_heads)
            # transformers 5 keeps everything about the rotary embedding in one place.
            rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
            if rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0)) != 1.0:
                raise LlamaError("it rotates only part of each head, which LLaMA does not")
            theta = float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0)
            return cls(
                dim=dim,
                n_layers=int(config["num_hidden_layers"]),
                n_heads=n_heads,
                n_kv_heads=int(config.get("num_key_value_heads", DEFAULT_KV_HEADS.get(kind)) or n_heads),
                head_dim=head_dim,
                ffn_dim=int(config["intermediate_size"]),
                vocab_size=int(config["vocab_size"]),
                context_length=min(contexts_hf(config)),
                norm_eps=float(config.get("rms_norm_eps") or 1e-6),
                rope_theta=theta,
                tied=bool(config.get("tie_word_embeddings", False)),
                rope_divisors=_divisors_hf(rope, head_dim, theta),
            )
        except KeyError as error:
            raise LlamaError(f"its config.json lacks {error}") from error
        except (TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
            raise LlamaError(f"its config.json cannot be read ({error})") from error


def contexts_hf(config: Mapping[str, Any]) -> tuple[int, int]:
    """Positions that a config.json is made for, and how many of them attention looks back over (Jiang et al. 2023).

    Up to its window, a mistral computes what a LLaMA does. A key that is absent has transformers' default: a window of
    4,096 tokens; only null is none. Raises TypeError or ValueError for what is no number.
    """
    mistral = config.get("model_type") == "mistral"
    longest = int(config.get("max_position_embeddings") or (131_072 if mistral else 2048))
    window = config.get("sliding_window", 4096) if mistral else None
    return longest, longest if window is None else int(window)


def _divisors_gguf(
    metadata: Mapping[str, Any], head_dim: int, stored: tuple[float, ...] | None
) -> tuple[float, ...] | None:
    """Linear interpolation of positions (Chen et al. 2023, eq. 4), the same as dividing every frequency.

    As llama.cpp has it: a factor without a type is linear, under its older key too, and none is 0; it is applied
    besides the divisors that are `stored`.
    """
    factor = float(metadata.get("llama.rope.scaling.factor", metadata.get("llama.rope.scale_linear", 0.0)))
    if metadata.get("llama.rope.scaling.type", "linear") != "linear" or factor in (0.0, 1.0):
        return stored
    return tuple(factor * divisor for divisor in stored or (1.0,) * (head_dim // 2))


def _ffn_meta(params: Mapping[str, Any], dim: int) -> int:
    """Two thirds of 4 dim (Touvron et al. 2023, section 2.2), times a factor, up to a multiple."""
    if params.get("hidden_dim"):
        return int(params["hidden_dim"])
    width, multiple = 8 * dim // 3, int(params["multiple_of"])
    if params.get("ffn_dim_multiplier") is not None:
        width = int(float(params["ffn_dim_multiplier"]) * width)
    return -(-width // multiple) * multiple


def _context_meta(params: Mapping[str, Any], theta: float, eps: float) -> int:
    """Longest context, of which the file says nothing; told from what each generation alone has."""
    if params.get("max_seq_len"):
        return int(params["max_seq_len"])
    if params.get("use_scaled_rope"):
        return 131_072  # 3.1 and later
    if theta > 10_000:
        return 8192 if theta == 500_000 else 16_384  # 3; Code Llama
    return 2048 if eps < 1e-5 else 4096  # 1; 2


def _divisors_meta(params: Mapping[str, Any], head_dim: int, theta: float) -> tuple[float, ...] | None:
    if not params.get("use_scaled_rope"):
        return None
    factor = params.get("rope_scaling_factor") or SCALED_BY_DIM.get(int(params["dim"]))
    if factor is None:
        raise LlamaError(
            f"its rotary scaling is not known for a width of {params['dim']}; add rope_scaling_factor to params.json "
            "(8 for Llama 3.1, 32 for 3.2)"
        )
    high = float(params.get("rope_high_freq_factor") or 4.0)
    return llama3_divisors(head_dim, theta, float(factor), 1.0, high, 8192.0)


def _divisors_hf(rope: Mapping[str, Any], head_dim: int, theta: float) -> tuple[float, ...] | None:
    """Divisors of the rotary frequencies that a Hugging Face configuration asks for. Raises LlamaError for others."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind in ("default", None):
        return None
    if kind == "linear":
        return (float(rope["factor"]),) * (head_dim // 2)
    if kind != "llama3":
        raise LlamaError(f"its rotary scaling {kind!r} is not known; choose another model")
    return llama3_divisors(
        head_dim,
        theta,
        float(rope["factor"]),
        float(rope["low_freq_factor"]),
        float(rope["high_freq_factor"]),
        float(rope["original_max_position_embeddings"]),
    )


def llama3_divisors(
    head_dim: int, theta: float, factor: float, low: float, high: float, original: float
) -> tuple[float, ...]:
    """Divisors of Llama 3.1's scaling ("The Llama 3 Herd of Models", 2024, section 3.4.3), `factor` for the slow ones.

    Wavelengths above original / low are stretched whole, those below original / high not at all, those between by
    degrees.
    """
    found = []
    for pair in range(0, head_dim, 2):
        frequency = theta ** (-pair / head_dim)
        turns = original * frequency / (2 * math.pi)  # how often it turns within the original context
        kept = min(max((turns - low) / (high - low), 0.0), 1.0)
        found.append(1 / ((1 - kept) / factor + kept))
    return tuple(found)
