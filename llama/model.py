"""The LLaMA (Touvron et al. 2023): RMSNorm, rotary positions, grouped-query attention, SwiGLU.

Shape letters: B rows of a batch, S new tokens of a row, T tokens that can be attended to, D model width,
H query heads, G key/value heads, R = H / G queries that share one, E width of a head, V vocabulary.
Parameter names are those of Hugging Face's LLaMA, so that adapters made for it fit. Rotary pairs are (i, i + E/2);
a checkpoint that pairs (2i, 2i + 1) is permuted when it is read (checkpoint.py), nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llama.adaptation import NONE, Adaptation, front_of
from llama.cache import KVCache, PackedCache
from llama.config import ModelConfig
from llama.errors import LlamaError


class RMSNorm(nn.Module):
    """x / rms(x) * weight (Zhang & Sennrich 2019, eq. 4). The mean square is taken in fp32, whatever x is in."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * scale).to(x.dtype) * self.weight


class RotaryTable:
    """cos and sin of every position (Su et al. 2021, section 3.4.2), in fp32.

    Not a module: `model.to(bfloat16)` must not reach it, for bf16 cannot tell positions above 256 apart.
    """

    def __init__(self, config: ModelConfig) -> None:
        # On the CPU whatever the default device is: a model built on meta needs real angles.
        half = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device="cpu") / config.head_dim
        positions = torch.arange(config.context_length, dtype=torch.float32, device="cpu")
        frequencies = config.rope_theta**-half
        if config.rope_divisors is not None:
            frequencies = frequencies / torch.tensor(config.rope_divisors, dtype=torch.float32, device="cpu")
        angles = torch.outer(positions, frequencies)
        self.cos, self.sin = angles.cos(), angles.sin()  # [context_length, E/2] each

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """positions [B, S] -> cos and sin, each [B, 1, S, E/2] on the positions' device."""
        if self.cos.device != positions.device:
            self.cos, self.sin = self.cos.to(positions.device), self.sin.to(positions.device)
        return self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns each pair (i, i + E/2) of x [B, heads, S, E] by its position's angle; computed in fp32."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


def moved(keys: Tensor, rope: RotaryTable, by: int) -> Tensor:
    """Keys [..., G, S, E] of a cache as if each stood `by` positions further on, or back where it is negative.

    A rotation by p and one by `by` make one by p + by, so keys need not be computed again for another place.
    """
    cos, sin = rope.at(torch.tensor([[abs(by)]], device=keys.device))
    return rotate(keys, cos[0, 0], sin[0, 0] if by >= 0 else -sin[0, 0])


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023) through PyTorch's scaled dot product."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        self.n_heads, self.n_kv_heads = config.n_heads, config.n_kv_heads
        self.q_proj = nn.Linear(config.dim, config.n_heads * config.head_dim, bias=False)
        self.k_proj = nn.Linear(config.dim, config.n_kv_heads * config.head_dim, bias=False)
        self.v_proj = nn.Linear(config.dim, config.n_kv_heads * config.head_dim, bias=False)
        self.o_proj = nn.Linear(config.n_heads * config.head_dim, config.dim, bias=False)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        rows, size, _ = x.shape
        project = step.adaptation.project
        q = project(self.layer, "q_proj", self.q_proj, x).view(rows, size, self.n_heads, self.head_dim).transpose(1, 2)
        k, v = (
            project(self.layer, name, linear, x).view(rows, size, self.n_kv_heads, self.head_dim).transpose(1, 2)
            for name, linear in (("k_proj", self.k_proj), ("v_proj", self.v_proj))
        )
        q, k = rotate(q, step.cos, step.sin), rotate(k, step.cos, step.sin)
        out = step.adaptation.attended(self, q, step.attend(self.layer, q, k, v))
        return project(self.layer, "o_proj", self.o_proj, out.transpose(1, 2).reshape(rows, size, -1))


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Attention of q [B, H, S, E] to k and v [B, G, T, E]; mask [B or 1, 1, S, T] is true where a key is seen."""
    rows, heads, size, width = q.shape
    if size == 1:
        # The R queries of one key/value head become rows of one product: no copy of K and V, and no slow path.
        grouped = q.view(rows, k.shape[1], -1, width)
        return F.scaled_dot_product_attention(grouped, k, v, attn_mask=mask).view(rows, heads, 1, width)
    repeat = heads // k.shape[1]
    k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)


class MLP(nn.Module):
    """SwiGLU (Shazeer 2020, eq. 6): down(silu(gate(x)) * up(x))."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.gate_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.up_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.down_proj = nn.Linear(config.ffn_dim, config.dim, bias=False)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        project = step.adaptation.project
        gate = project(self.layer, "gate_proj", self.gate_proj, x)
        inner = F.silu(gate) * project(self.layer, "up_proj", self.up_proj, x)
        return project(self.layer, "down_proj", self.down_proj, inner)


class Block(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.input_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.mlp = MLP(config, layer)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        branch = step.adaptation.branch
        x = x + branch(self.layer, "self_attn", self.self_attn(self.input_layernorm(x), step))
        return x + branch(self.layer, "mlp", self.mlp(self.post_attention_layernorm(x), step))


class Step(Protocol):
    """What all layers of one forward share: rotary angles, adaptation, and how tokens find their keys and values."""

    cos: Tensor
    sin: Tensor
    adaptation: Adaptation

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [B, H, S, E], k and v [B, G, S, E] of the new tokens -> [B, H, S, E]."""


class EvenStep:
    """A batch [B, S]: every row has its own length, and padding on the right does not count."""

    def __init__(
        self,
        rope: RotaryTable,
        shape: tuple[int, int],
        device: torch.device,
        cache: KVCache | None,
        new: Sequence[int],
        adaptation: Adaptation = NONE,
    ) -> None:
        rows, size = shape
        self._cache, self._new, self.adaptation = cache, new, adaptation
        past = cache.lengths if cache is not None else [0] * rows
        self._prefix = adaptation.prefix_length
        offsets = torch.tensor(past, device=device)
        places = offsets[:, None] + torch.arange(size, device=device)
        # Padding behind a short row may point past the table; its result is never read.
        self.cos, self.sin = rope.at((places + self._prefix).clamp(max=len(rope.cos) - 1))
        uniform = len(set(past)) == 1 and all(n == size for n in new)
        self._causal = uniform and past[0] == 0 and size > 1 and not self._prefix
        self._mask: Tensor | None = None
        if not uniform or (size > 1 and not self._causal):
            total = max(p + n for p, n in zip(past, new, strict=True)) if cache is not None else size
            keys = torch.arange(-self._prefix, total, device=device)  # those of a prefix are seen by all
            self._mask = (keys <= places[:, :, None]).unsqueeze(1)  # [B, 1, S, T]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self._cache is not None:
            k, v = self._cache.update(layer, k, v, self._new)
        if self._prefix:
            front = self.adaptation.prefix(layer)
            k, v = (
                torch.cat((f.to(x.dtype).expand(len(x), -1, -1, -1), x), 2) for f, x in zip(front, (k, v), strict=True)
            )
        return attend(q, k, v, self._mask, self._causal)


class PackedStep:
    """Tokens of several requests or documents in one row [1, S]; of each, its cache if it has one, and its tokens."""

    def __init__(
        self,
        rope: RotaryTable,
        device: torch.device,
        caches: Sequence[KVCache | None],
        new: Sequence[int],
        adaptation: Adaptation = NONE,
    ) -> None:
        self._new, self.adaptation = list(new), adaptation
        self._parts = [
            EvenStep(rope, (1, n), device, cache, [n], adaptation) for cache, n in zip(caches, new, strict=True)
        ]
        self.cos, self.sin = (torch.cat([getattr(p, name) for p in self._parts], 2) for name in ("cos", "sin"))

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        shares = zip(self._parts, *(torch.split(each, self._new, dim=2) for each in (q, k, v)), strict=True)
        return torch.cat([part.attend(layer, *share) for part, *share in shares], dim=2)


Run = Callable[[nn.Module, Tensor, Step], Tensor]


def plainly(block: nn.Module, x: Tensor, step: Step) -> Tensor:
    """How a block is run; training may have it computed again in the backward pass instead of kept."""
    return block(x, step)  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """Tokens to logits. Training and inference share this one forward."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.rope = RotaryTable(config)
        table = torch.empty(config.vocab_size, config.dim)
        if not table.is_meta:  # there, a normal draw would import the whole of torch's compiler: 2 seconds
            nn.init.normal_(table, std=0.02)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.dim, _weight=table)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.lm_head = nn.Linear(config.dim, config.vocab_size, bias=False)
        if config.tied:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(
        self,
        tokens: Tensor,
        cache: KVCache | PackedCache | None = None,
        new: Sequence[int] | None = None,
        last: bool = False,
        at: Tensor | None = None,
        adaptation: Adaptation = NONE,
        documents: Sequence[int] | None = None,
        run: Run = plainly,
    ) -> Tensor:
        """Logits of the token that follows each given one.

        tokens: int64 [B, S], the new tokens; with a cache they come behind what it holds, and it is advanced. With a
        packed cache, B is 1 and the row holds the tokens of several requests.
        new: how many of each row's S tokens count (the rest is padding on the right); all of them by default.
        last: give only each row's last counted position. at: int64 [K], give only these of the S positions.
        adaptation: a fine-tuning method's part in it. documents: B is 1 and the row holds as many sequences of these
        lengths, none of which sees another. run: how a block is run.
        Returns [B, S, V], [B, 1, V] with `last`, or [B, K, V] with `at`, in the weights' dtype.
        Raises LlamaError when the tokens do not fit the context or the cache.
        """
        return self.lm_head(self.hidden(tokens, cache, new, last, at, adaptation, documents, run))  # type: ignore[no-any-return]

    def hidden(
        self,
        tokens: Tensor,
        cache: KVCache | PackedCache | None = None,
        new: Sequence[int] | None = None,
        last: bool = False,
        at: Tensor | None = None,
        adaptation: Adaptation = NONE,
        documents: Sequence[int] | None = None,
        run: Run = plainly,
    ) -> Tensor:
        """As `forward`, what the output matrix is given: [..., D] instead of logits."""
        x, (rows, size) = self.embed_tokens(tokens), tokens.shape
        packed = cache if isinstance(cache, PackedCache) else None
        counted = list(packed.new if packed else documents or ([size] * rows if new is None else new))
        caches: list[KVCache | None] = [None] * len(counted)
        past = [0] * len(counted)
        if packed:
            caches, past = [*packed.caches], [each.lengths[0] for each in packed.caches]
        elif isinstance(cache, KVCache):
            past = cache.lengths
        front = front_of(adaptation.virtual, past, counted, None if packed or documents else size)
        if front is not None:
            x, counted = front.put(x), front.counted
        self.within_context(adaptation.prefix_length + max(p + n for p, n in zip(past, counted, strict=True)))
        step: Step
        if packed or documents:
            if packed:
                packed = PackedCache(packed.caches, counted)
                packed.require()
            step = PackedStep(self.rope, x.device, caches, counted, adaptation)
        else:
            even = cache if isinstance(cache, KVCache) else None
            if even is not None:
                even.require(counted)
            step = EvenStep(self.rope, (rows, x.shape[1]), x.device, even, counted, adaptation)
        for layer in self.layers:
            x = run(layer, x, step)
        if packed is not None:
            packed.advance()
        elif isinstance(cache, KVCache):
            cache.advance(counted)
        if last:
            x = x[torch.arange(rows), torch.tensor(counted) - 1].unsqueeze(1)
        elif front is not None:
            x = front.take(x)
        if at is not None:
            x = x[:, at]
        return self.norm(x)  # type: ignore[no-any-return]

    def within_context(self, longest: int) -> None:
        """Raises LlamaError when a row of so many tokens exceeds the context."""
        if longest > self.config.context_length:
            raise LlamaError(f"{longest} tokens exceed the model's context of {self.config.context_length}")
