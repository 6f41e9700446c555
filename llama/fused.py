"""A decode step of a quantized model as one compiled call; the eager model is its oracle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llama import decode_step
from llama.cache import KVCache
from llama.model import RMSNorm, Transformer
from llama.products import BLOCKS
from llama.quantize import QuantizedEmbedding, QuantizedLinear
from llama.team import Team
from llama.vectors import CHUNK, GROUP, LANES

LINEAR = (
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
)


def supports(model: Transformer) -> bool:
    """Whether every matrix is packed and lies on the CPU, and the heads fit the vectors."""
    linear = [layer.get_submodule(name) for layer in model.layers for name in LINEAR]
    return (
        all(isinstance(each, QuantizedLinear) for each in [*linear, model.lm_head])
        and isinstance(model.embed_tokens, QuantizedEmbedding)
        and model.embed_tokens.weight.device.type == "cpu"
        and model.config.head_dim % CHUNK == 0
    )


class FusedStep:
    """Tokens of several requests through all layers at once. Not safe to call from two threads at a time."""

    def __init__(self, model: Transformer, team: Team) -> None:
        """The model must be one that `supports` accepts, and its weights must stay where they are."""
        self._model, self._team, self._config = model, team, model.config
        rows = []
        for layer in model.layers:
            row = [field for name in LINEAR for field in _fields(layer.get_submodule(name))]
            rows.append(row)
        self._table = np.array(rows, dtype=np.int64)
        self._head = np.array(_fields(model.lm_head), dtype=np.int64)
        self._norms = torch.stack([each.weight for each in model.modules() if isinstance(each, RMSNorm)]).numpy()

    @torch.inference_mode()
    def __call__(self, tokens: Sequence[Sequence[int]], caches: Sequence[KVCache]) -> Tensor:
        """Logits [N, V] behind each of all requests' tokens, one request's after the other.

        tokens: each request's new ones; caches: of one row each, in fp32, advanced by the call.
        Raises LlamaError when tokens do not fit a cache.
        """
        config, team = self._config, self._team
        places: list[list[int]] = []
        positions: list[int] = []
        for new, cache in zip(tokens, caches, strict=True):
            cache.require([len(new)])
            place = [cache.k.data_ptr(), cache.v.data_ptr(), cache.k.stride(0) * 4, cache.capacity]
            places += [place] * len(new)
            positions += range(cache.lengths[0], cache.lengths[0] + len(new))
        count, heads, groups = len(positions), config.n_heads, config.n_kv_heads
        x = self._model.embed_tokens(torch.tensor([token for new in tokens for token in new]))
        width, splits = config.head_dim, max(positions) // decode_step.SPLIT + 1
        out = _empty(count, self._head[BLOCKS] * LANES)
        team.run(
            decode_step.step,
            decode_step.PHASES * config.n_layers + 1,
            self._table,
            self._head,
            self._norms,
            np.float32(config.norm_eps),
            x.float().contiguous().numpy(),
            np.array(places, dtype=np.int64),
            np.array(positions, dtype=np.int64),
            np.cumsum([0, *(p // decode_step.SPLIT + 1 for p in positions)], dtype=np.int64),
            self._model.rope.cos.numpy(),
            self._model.rope.sin.numpy(),
            heads,
            groups,
            width,
            _empty(team.size, count, config.dim),
            _empty(team.size, count, max(config.dim, config.ffn_dim, heads * width) // GROUP),
            _empty(count, (heads + 2 * groups) * width),
            _empty(count, heads, splits, width + 2),
            _empty(team.size, decode_step.SPLIT + 16),
            _empty(count, heads * width),
            _empty(2, count, config.ffn_dim),
            out,
        )
        for new, cache in zip(tokens, caches, strict=True):
            cache.advance([len(new)])
        return torch.from_numpy(out)[:, : config.vocab_size]


def _fields(module: torch.nn.Module) -> list[int]:
    assert isinstance(module, QuantizedLinear)
    return module.packed.fields


def _empty(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.empty(shape, np.float32)
