"""The radix tree finds what was stored, all of it and nothing else, within its budget."""

from __future__ import annotations

import gc
import weakref

import torch
from hypothesis import given
from hypothesis import strategies as st

from llama.cache import KVCache
from llama.config import ModelConfig
from llama.model import RotaryTable, Transformer, moved
from llama.prefix import PrefixTree

CONFIG = ModelConfig(
    dim=8, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=4, ffn_dim=8, vocab_size=9, context_length=64,
    norm_eps=1e-5, rope_theta=10000.0, tied=True,
)  # fmt: skip
TOKEN_BYTES = 2 * 2 * 4 * 4


def computed(tokens: list[int]) -> KVCache:
    """A cache whose contents follow from all tokens up to each position, as a model's do."""
    cache = KVCache(CONFIG, 1, 32)
    seen = 0
    for i, token in enumerate(tokens):
        seen = (seen * 31 + token + 1) % 10007
        cache.k[:, 0, :, i], cache.v[:, 0, :, i] = seen, -seen
    cache.lengths = [len(tokens)]
    return cache


def common(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


SEQUENCES = st.lists(st.lists(st.integers(0, 2), max_size=12), max_size=12)


@given(SEQUENCES, st.lists(st.integers(0, 2), max_size=12))
def test_the_longest_common_beginning_is_found(stored: list[list[int]], asked: list[int]) -> None:
    tree = PrefixTree()
    for tokens in stored:
        tree.store(tokens, computed(tokens), 1 << 20)
    cache = KVCache(CONFIG, 1, 32)
    length = tree.load(asked, cache)
    assert length == max((common(asked, tokens) for tokens in stored), default=0) == cache.lengths[0]
    wanted = computed(asked)
    assert torch.equal(cache.k[:, :, :, :length], wanted.k[:, :, :, :length])
    assert torch.equal(cache.v[:, :, :, :length], wanted.v[:, :, :, :length])
    distinct = {tuple(tokens[:n]) for tokens in stored for n in range(1, len(tokens) + 1)}
    assert tree.bytes == len(distinct) * TOKEN_BYTES, "what is shared is held once"


@given(SEQUENCES, st.integers(0, 20))
def test_the_budget_holds(stored: list[list[int]], room: int) -> None:
    tree = PrefixTree()
    for tokens in stored:
        tree.store(tokens, computed(tokens), room * TOKEN_BYTES)
        assert tree.bytes <= room * TOKEN_BYTES
        assert tree.bytes == sum(node.bytes for node in tree._nodes())
        cache = KVCache(CONFIG, 1, 32)
        length = tree.load(tokens, cache)
        assert torch.equal(cache.k[:, :, :, :length], computed(tokens).k[:, :, :, :length])


def test_what_was_used_longest_ago_goes_first() -> None:
    tree = PrefixTree()
    for tokens in ([1, 1, 1], [2, 2, 2], [3, 3, 3]):
        tree.store(tokens, computed(tokens), 9 * TOKEN_BYTES)
    tree.load([1, 1, 1], KVCache(CONFIG, 1, 32))
    tree.store([4, 4], computed([4, 4]), 9 * TOKEN_BYTES)
    assert [tree.match([n] * 3) for n in (1, 2, 3, 4)] == [3, 0, 3, 2]
    tree.clear()
    assert tree.bytes == tree.match([1, 1]) == 0


def test_keys_can_be_moved() -> None:
    """In the first layer a token's keys depend on its position alone, so moved ones equal computed ones."""
    torch.manual_seed(0)
    model = Transformer(CONFIG).requires_grad_(False)
    for weight in model.parameters():  # norms are made without values
        weight.normal_(std=0.5)
    caches = [KVCache(CONFIG, 1, 40) for _ in range(2)]
    model(torch.tensor([[3, 5, 7]]), caches[0])
    model(torch.tensor([[1] * 20 + [3, 5, 7]]), caches[1])
    rope = RotaryTable(CONFIG)
    here, there = caches[0].k[0, :, :, :3], caches[1].k[0, :, :, 20:23]
    assert torch.allclose(moved(here, rope, 20), there, atol=1e-5)
    assert torch.allclose(moved(there, rope, -20), here, atol=1e-5)
    assert not torch.allclose(here, there, atol=1e-2)


def test_what_is_forgotten_is_freed_at_once() -> None:
    """Not when the collector of cycles comes by: that may be hundreds of megabytes later."""
    gc.disable()
    try:
        tree = PrefixTree()
        for tokens in ([1, 2, 3, 4], [1, 2, 5], [1, 2, 3, 6], [7]):
            tree.store(tokens, computed(tokens), 1 << 20)
        held = [weakref.ref(node.k) for node in tree._nodes()]
        tree.shrink(3 * TOKEN_BYTES)
        assert sum(each() is not None for each in held) == len(list(tree._nodes())) == 2
        tree.clear()
        assert not any(each() is not None for each in held)
    finally:
        gc.enable()
