"""A forward of a quantized model as one compiled call; the eager model is its oracle."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from llama import step
from llama.adaptation import LowRank
from llama.cache import KVCache
from llama.errors import LlamaError
from llama.low_rank import LOW_FIELDS, RANKS
from llama.model import RMSNorm, Transformer
from llama.products import BITS, BLOCKS, PART, shares
from llama.quantize import QuantizedEmbedding, QuantizedLinear, activations
from llama.team import Team
from llama.vectors import CHUNK, LANES

LINEAR = (
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
)
CACHED = torch.float16  # dtype of keys and values
FEW = 64  # tokens times key/value heads, up to which attention is cut by positions, too, to keep all threads busy


def supports(model: Transformer) -> bool:
    """Whether every matrix is packed and lies on the CPU, the embedding in 8 bits, and the heads fit the vectors."""
    linear = [layer.get_submodule(name) for layer in model.layers for name in LINEAR]
    return (
        all(isinstance(each, QuantizedLinear) for each in [*linear, model.lm_head])
        and isinstance(model.embed_tokens, QuantizedEmbedding)
        and model.embed_tokens.weight.device.type == "cpu"
        and model.embed_tokens.packed.bits == 8
        and model.config.head_dim % CHUNK == 0
    )


class PackedLowRank:
    """An adapter's low-rank matrices as `llama.low_rank` describes them."""

    def __init__(self, adaptation: LowRank, layers: int) -> None:
        self.table = np.zeros((layers, len(LINEAR), LOW_FIELDS), dtype=np.int64)
        self.scales = np.zeros((layers, len(LINEAR)), dtype=np.float32)
        self.rank = max((each.a.shape[0] for each in adaptation.deltas.values()), default=0)
        self._kept: list[Tensor] = []  # whose addresses are in the table
        places = {path.rpartition(".")[2]: kind for kind, path in enumerate(LINEAR)}
        for (layer, name), delta in adaptation.deltas.items():
            rank, kind = delta.a.shape[0], places[name]
            a, b = F.pad(delta.a.float(), (0, 0, 0, -rank % RANKS)), delta.b.float()
            largest = [float(each.abs().max()) or 1.0 for each in (a, b)]
            stored = [(a / largest[0]).half(), (b / largest[1]).half().view(-1, LANES, rank).transpose(1, 2)]
            stored += [] if delta.factor is None else [delta.factor.float()]
            kept = [each.contiguous() for each in stored]
            self._kept += kept
            self.table[layer, kind] = [rank, *(each.data_ptr() for each in kept), *[0] * (3 - len(kept))]
            self.scales[layer, kind] = largest[0] * largest[1]


def tails(sizes: Sequence[int], last: Sequence[int]) -> list[int]:
    """The places of each run's last tokens, where runs of these sizes stand behind each other."""
    ends = itertools.accumulate(sizes)
    return [place for end, count in zip(ends, last, strict=True) for place in range(end - count, end)]


class FusedStep:
    """Tokens of several requests through all layers at once. Not safe to call from two threads at a time."""

    def __init__(self, model: Transformer, team: Team) -> None:
        """The model must be one that `supports` accepts, and its weights must stay where they are."""
        self._model, self._team, config = model, team, model.config
        fields = [[_fields(layer.get_submodule(name)) for name in LINEAR] for layer in model.layers]
        self._table = np.array(fields, dtype=np.int64).reshape(len(fields), -1)
        assert isinstance(model.embed_tokens, QuantizedEmbedding)
        self._embedding = np.array(model.embed_tokens.packed.fields, dtype=np.int64)
        self._head = np.array(_fields(model.lm_head), dtype=np.int64)
        self._norms = torch.stack([each.weight for each in model.modules() if isinstance(each, RMSNorm)]).numpy()
        self._planes = max(each[BITS] // 4 for row in fields for each in row)
        self._blocks = [each[BLOCKS] for each in fields[0]]
        self._widest = max(config.dim, config.ffn_dim, config.n_heads * config.head_dim)

    @torch.inference_mode()
    def __call__(
        self,
        tokens: Sequence[Sequence[int]],
        caches: Sequence[KVCache],
        last: Sequence[int],
        beside: Sequence[PackedLowRank | None] = (),
    ) -> list[Tensor]:
        """Each request's logits [last, V], fp32, behind so many of its last tokens.

        tokens: each request's new ones; caches: of one row each, in CACHED, advanced by the call; beside: what each
        has beside the products, by default none anything.
        Raises LlamaError when tokens do not fit a cache or the model's context.
        """
        model, sizes = self._model, [len(new) for new in tokens]
        places: list[list[int]] = []
        positions: list[int] = []
        for new, cache in zip(tokens, caches, strict=True):
            cache.require([len(new)])
            place = [cache.k.data_ptr(), cache.v.data_ptr(), cache.k.stride(0) * step.HALF, cache.capacity]
            places += [place] * len(new)
            positions += range(cache.lengths[0], cache.lengths[0] + len(new))
        model.within_context(max(positions) + 1)
        wanted = np.array(tails(sizes, last), dtype=np.int64)
        row = np.array([token for new in tokens for token in new], dtype=np.int64)
        if row.min() < 0 or row.max() >= model.config.vocab_size:
            raise LlamaError(f"a token id is beyond the vocabulary of {model.config.vocab_size}")
        out = _empty(len(wanted), self._head[BLOCKS] * LANES)
        self._run(row, places, positions, wanted, self._low(sizes, beside), out)
        for new, cache in zip(tokens, caches, strict=True):
            cache.advance([len(new)])
        found = torch.from_numpy(out)[:, : model.config.vocab_size]
        return list(torch.split(found, list(last)))

    def _low(self, sizes: Sequence[int], beside: Sequence[PackedLowRank | None]) -> tuple[Any, ...]:
        """The step's `low`."""
        layers, count = self._model.config.n_layers, sum(sizes)
        adapters = {id(each): each for each in beside if each is not None}
        if not adapters:
            which, table = np.full(count, -1, dtype=np.int64), np.zeros((0, layers, len(LINEAR), LOW_FIELDS), np.int64)
            return which, table, np.zeros((0, layers, len(LINEAR)), np.float32), _empty(0, 0, 0), _empty(0, 0)
        places = {key: place for place, key in enumerate(adapters)}
        which = np.repeat([places.get(id(each), -1) for each in beside], sizes).astype(np.int64)
        table = np.stack([each.table for each in adapters.values()])
        scales = np.stack([each.scales for each in adapters.values()])
        ranks = -(-max(each.rank for each in adapters.values()) // RANKS) * RANKS
        return which, table, scales, _empty(count, step.QKV, ranks), _empty(count, self._widest)

    def _run(
        self,
        tokens: Any,
        places: list[list[int]],
        positions: list[int],
        wanted: Any,
        low: tuple[Any, ...],
        out: np.ndarray[Any, Any],
    ) -> None:
        config, team, count = self._model.config, self._team, len(positions)
        heads, groups, width = config.n_heads, config.n_kv_heads, config.head_dim
        few, splits = count * groups <= FEW, max(positions) // step.SPLIT + 1
        team.run(
            step.step,
            step.PHASES * config.n_layers + 3,
            self._embedding,
            self._table,
            self._head,
            self._norms,
            np.float32(config.norm_eps),
            tokens,
            _empty(count, config.dim),
            np.array(places, dtype=np.int64),
            np.array(positions, dtype=np.int64),
            np.cumsum([0, *(p // step.SPLIT + 1 for p in positions)], dtype=np.int64),
            few,
            self._model.rope.cos.numpy(),
            self._model.rope.sin.numpy(),
            (heads, groups, width),
            wanted,
            activations(count, self._widest, self._planes),
            activations(count, config.ffn_dim, self._planes),
            activations(len(wanted), config.dim, 2),
            _empty(team.size, config.dim),
            _empty(team.size, 2, min(count, PART), self._share(count)),
            _empty(count, (heads + 2 * groups) * width),
            _empty(*((1, count, heads) if few else (team.size, step.QUERIES, heads // groups)), splits, width + 2),
            _empty(team.size, step.TILE, width),
            _empty(team.size, step.QUERIES * heads // groups, step.SPLIT + 16),
            _empty(count, heads * width),
            low,
            out,
        )

    def _share(self, rows: int) -> int:
        """Outputs of the widest share of a matrix."""
        return max(-(-blocks // int(shares(blocks, rows))) for blocks in self._blocks) * LANES


def _fields(module: torch.nn.Module) -> list[int]:
    assert isinstance(module, QuantizedLinear)
    return module.packed.fields


def _empty(*shape: int) -> Any:
    """An array of floats at an address that vectors are loaded from in one piece; NumPy's own need not be."""
    return torch.empty(shape).numpy()
