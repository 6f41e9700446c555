"""Keys and values of earlier requests, found again by their tokens: a radix tree (Zheng et al. 2024, section 3)."""

from __future__ import annotations

import itertools
import time
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from llama.cache import KVCache


@dataclass(eq=False)
class _Node:
    """A run of tokens behind its parent's, with their keys and values [layers, kv_heads, tokens, head_dim]."""

    tokens: tuple[int, ...]
    k: Tensor
    v: Tensor
    parent: _Node | None
    used: float = 0.0
    children: dict[int, _Node] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        return self.k.nbytes + self.v.nbytes


class PrefixTree:
    """Prompts and answers that were computed, sharing what they begin with.

    Keys and values belong to one model, adapter, quantization and dtype. The tree lies in the engine that has them;
    `of` says which adapter's they are, by an object that is no other's: each has a root of its own, and what was used
    longest ago is forgotten first, whosever it is. Keys are those of their positions, which are the same wherever a
    prefix recurs. Not safe to share among threads without a lock.
    """

    def __init__(self) -> None:
        self._roots: dict[Hashable, _Node] = {}
        self.bytes = 0

    def match(self, tokens: Sequence[int], of: Hashable = None) -> int:
        """How many of the first tokens are in the tree."""
        return sum(count for _, count in self._walk(tokens, of))

    def load(self, tokens: Sequence[int], cache: KVCache, of: Hashable = None) -> int:
        """Copies the longest known beginning of `tokens` behind the front of a cache of one row; gives its length."""
        start = 0
        for node, count in self._walk(tokens, of):
            place = slice(cache.front + start, cache.front + start + count)
            cache.k[:, 0, :, place] = node.k[:, :, :count]
            cache.v[:, 0, :, place] = node.v[:, :, :count]
            node.used = time.monotonic()
            start += count
        cache.lengths[0] = cache.front + start
        return start

    def store(self, tokens: Sequence[int], cache: KVCache, budget: int, of: Hashable = None) -> None:
        """Takes in the tokens that a cache of one row has behind its front, as far as `budget` bytes allow."""
        if of not in self._roots:
            self._roots[of] = _Node((), cache.k[:, 0, :, :0].clone(), cache.v[:, 0, :, :0].clone(), None)
        node, start, now = self._roots[of], 0, time.monotonic()
        for found, count in self._walk(tokens, of):
            node, start = found, start + count
            node.used = now
            if count < len(found.tokens):
                node = self._split(found, count)
                node.used = now
        rest = tuple(tokens[start:])
        per_token = (cache.k.nbytes + cache.v.nbytes) // cache.capacity
        if not rest or not self.shrink(budget - len(rest) * per_token, keep=node):
            return
        first = cache.front + start
        k, v = (each[:, 0, :, first : first + len(rest)].clone() for each in (cache.k, cache.v))
        node.children[rest[0]] = _Node(rest, k, v, node, now)
        self.bytes += k.nbytes + v.nbytes

    def shrink(self, budget: int, keep: _Node | None = None) -> bool:
        """Forgets what was used longest ago until at most `budget` bytes are left; whether that was possible.

        `keep` and what it stands behind stay.
        """
        while self.bytes > budget:
            leaves = [node for node in self._nodes() if not node.children and node is not keep]
            if not leaves:
                return False
            oldest = min(leaves, key=lambda node: node.used)
            assert oldest.parent is not None
            del oldest.parent.children[oldest.tokens[0]]
            self.bytes -= oldest.bytes
        return budget >= 0

    def clear(self, of: Hashable = None) -> None:
        """Forgets what belongs to `of`, by default everything."""
        roots = list(self._roots.values()) if of is None else [self._roots[of]] if of in self._roots else []
        for node in [*self._nodes(roots), *roots]:
            self.bytes -= node.bytes
            node.children.clear()  # parents and children hold each other: their memory would wait for the collector
        self._roots = {} if of is None else {whose: root for whose, root in self._roots.items() if whose is not of}

    def _walk(self, tokens: Sequence[int], of: Hashable) -> Iterator[tuple[_Node, int]]:
        """The nodes along `tokens`, each with how many of its tokens are the same; the last may be fewer than all."""
        node, start = self._roots.get(of), 0
        while node is not None and start < len(tokens):
            node = node.children.get(tokens[start])
            if node is None:
                return
            pairs = zip(node.tokens, itertools.islice(tokens, start, None), strict=False)
            count = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
            whole = count == len(node.tokens)  # before the caller splits the node
            yield node, count
            if not whole:
                return
            start += count

    def _split(self, node: _Node, count: int) -> _Node:
        """Cuts a node behind `count` tokens; gives the first part. Copies, so that each part can be forgotten alone."""
        parent = node.parent
        assert parent is not None
        k, v = node.k[:, :, :count].clone(), node.v[:, :, :count].clone()
        first = _Node(node.tokens[:count], k, v, parent, node.used)
        parent.children[first.tokens[0]] = first
        node.tokens, node.parent = node.tokens[count:], first
        node.k, node.v = node.k[:, :, count:].clone(), node.v[:, :, count:].clone()
        first.children[node.tokens[0]] = node
        return first

    def _nodes(self, roots: Iterable[_Node] | None = None) -> Iterator[_Node]:
        waiting = [n for root in (self._roots.values() if roots is None else roots) for n in root.children.values()]
        while waiting:
            node = waiting.pop()
            waiting += node.children.values()
            yield node
