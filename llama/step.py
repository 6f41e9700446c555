# mypy: ignore-errors
# numba's decorated functions have no types.
"""All layers for the new tokens of any requests, compiled by numba: the mathematics of `llama.model`, weights packed.

Eager PyTorch takes longer to start the thousand small operations of a decode step than to compute them. Here a step is
one call: a team of threads walks through its phases together. Work is cut by outputs, heads, positions and rows, and no
row's sums depend on the cut, so a token's result is the same bit for bit whatever is computed beside it, be it read as
part of a prompt or generated. Shape letters as in `llama.model`; N tokens of any requests, each with its own cache and
position. Activations are fp32, and rounded for products (`llama.integers`); caches are fp16.
"""

from __future__ import annotations

import math

import numpy as np

from llama import integers
from llama import vectors as v
from llama.low_rank import beside, reduced
from llama.products import (
    BLOCKS,
    FIELDS,
    GROUP,
    GROUPS,
    LANES,
    SCALE,
    WEIGHT,
    by_rows,
    compiled,
    part_of,
    product,
    reducing,
    round_row,
    rows_of,
    shared,
    tasks_of,
    times,
)

SPLIT = 256  # positions that attention takes at a time
TILE = 64  # positions whose keys, or values, fit the nearest cache
QUERIES = 8  # tokens that share a tile, of many
HALF, FLOAT = 2, 4  # bytes of a number in the caches (fp16), and elsewhere
PHASES = 13  # of a layer; the embedding has one more, the output matrix two
QKV, ATTN_OUT, GATE, UP, DOWN = 3, 3, 4, 5, 6  # how many matrices come first, and the places of those behind them


@reducing
def norm(x, weight, eps, out):
    """RMSNorm of one row. weight: an array of D floats."""
    total = np.float32(0)
    for i in range(len(x)):
        total += x[i] * x[i]
    scale = np.float32(1) / np.sqrt(total / np.float32(len(x)) + eps)
    for i in range(len(x)):
        out[i] = x[i] * scale * weight[i]


@compiled
def turn(x, cos, sin):
    """Rotary embedding of one head, in place: pairs (i, i + E/2)."""
    half = len(x) // 2
    for i in range(half):
        a, b = x[i], x[i + half]
        x[i] = a * cos[i] - b * sin[i]
        x[i + half] = b * cos[i] + a * sin[i]


@compiled
def weigh(queries, weights, ldw, count, rows, size, out, ldo):
    """`add_weighted` for any number of queries, as many at a time as there are registers for."""
    while queries > 0:
        taken = min(queries, 4)
        if taken == 4:
            v.add_weighted(4, weights, ldw, count, rows, size, out, ldo)
        elif taken == 3:
            v.add_weighted(3, weights, ldw, count, rows, size, out, ldo)
        elif taken == 2:
            v.add_weighted(2, weights, ldw, count, rows, size, out, ldo)
        else:
            v.add_weighted(1, weights, ldw, count, rows, size, out, ldo)
        weights += taken * ldw * FLOAT
        out += taken * ldo * FLOAT
        queries -= taken


@compiled
def attend(from_, to, group, split, shape, cache, layer, positions, qkv, window, scores, parts):
    """Tokens of one request and the queries of one key/value head over a split's positions.

    Keys and values are taken by tiles that stay in the nearest cache, as floats, while all queries use them. Scratch:
    window [TILE, E]; scores [tokens * R, SPLIT + 16]. parts[token, query, split] = [largest score, sum of weights,
    weighted sum of values].
    """
    heads, kv_heads, size = shape
    share, first = heads // kv_heads, split * SPLIT
    shift = layer * cache[2] + (group * cache[3] + first) * size * HALF
    floats = window.ctypes.data
    longest = min(positions[to - 1] + 1 - first, SPLIT)
    for tile in range(0, longest, TILE):
        v.widen(cache[0] + shift + tile * size * HALF, min(longest - tile, TILE) * size, floats)
        for n in range(from_, to):
            count = min(positions[n] + 1 - first - tile, TILE)
            for h in range(share):
                q = qkv.ctypes.data + (n * qkv.shape[1] + (group * share + h) * size) * FLOAT
                to_ = scores.ctypes.data + (((n - from_) * share + h) * scores.shape[1] + tile) * FLOAT
                for t in range(0, count, 16):  # what comes of places behind the last one is not looked at
                    v.dots(q, floats + t * size * FLOAT, size, to_ + t * FLOAT)
    for n in range(from_, to):
        length = min(positions[n] + 1 - first, SPLIT)
        if length > 0:
            for h in range(share):
                part = parts[n - from_, h, split]
                v.softmax(scores[(n - from_) * share + h].ctypes.data, length, size, part.ctypes.data)
                part[2:] = np.float32(0)
    for tile in range(0, longest, TILE):
        v.widen(cache[1] + shift + tile * size * HALF, min(longest - tile, TILE) * size, floats)
        for n in range(from_, to):
            count = min(positions[n] + 1 - first - tile, TILE)
            if count > 0:
                weights = scores.ctypes.data + ((n - from_) * share * scores.shape[1] + tile) * FLOAT
                out = parts[n - from_, 0, split].ctypes.data + 2 * FLOAT
                weigh(share, weights, scores.shape[1], count, floats, size, out, parts.strides[1] // FLOAT)


@compiled
def join(parts, count, out):
    """The softmax over all positions from that over each split (Dao et al. 2022, section 3.1)."""
    largest = parts[0, 0]
    for s in range(1, count):
        largest = max(largest, parts[s, 0])
    total = np.float32(0)
    for e in range(len(out)):
        out[e] = np.float32(0)
    for s in range(count):
        weight = np.float32(math.exp(parts[s, 0] - largest))
        total += weight * parts[s, 1]
        for e in range(len(out)):
            out[e] += weight * parts[s, 2 + e]
    for e in range(len(out)):
        out[e] /= total


@compiled
def place(qkv, position, cos, sin, cache, layer, heads, kv_heads, size):
    """Turns a token's queries and keys by its position, and puts keys and values into its cache."""
    for h in range(heads + 2 * kv_heads):
        vector = qkv[h * size : (h + 1) * size]
        if h < heads + kv_heads:
            turn(vector, cos[position], sin[position])
        if h >= heads:
            keys = h < heads + kv_heads
            group = h - heads if keys else h - heads - kv_heads
            to = cache[0 if keys else 1] + layer * cache[2] + (group * cache[3] + position) * size * HALF
            v.narrow(vector.ctypes.data, size, to)


@compiled
def attention_of_few(counters, phase, layer, caches, positions, starts, shape, qkv, window, scores, parts):
    """One task for each token, key/value head and split; `join` is left to the next phase. starts [N + 1]: splits."""
    kv_heads, tokens = shape[1], len(positions)
    n = 0
    for task in shared(counters, phase, starts[tokens] * kv_heads):
        while starts[n + 1] * kv_heads <= task:
            n += 1
        within = task - starts[n] * kv_heads
        attend(n, n + 1, within % kv_heads, within // kv_heads, shape, caches[n], layer, positions, qkv, window,
               scores, parts[n:, within % kv_heads * (shape[0] // kv_heads) :])  # fmt: skip


@compiled
def attention_of_many(counters, phase, layer, caches, positions, shape, qkv, window, scores, parts, attended):
    """One task for each key/value head and QUERIES tokens, all their splits. parts is a member's scratch."""
    heads, kv_heads, size = shape
    tokens, share = len(positions), heads // kv_heads
    chunks = (tokens + QUERIES - 1) // QUERIES
    for task in shared(counters, phase, chunks * kv_heads):
        group, start = task // chunks, task % chunks * QUERIES
        stop = min(start + QUERIES, tokens)
        while start < stop:
            end = start + 1  # behind the last token of the same request
            while end < stop and caches[end, 0] == caches[start, 0]:
                end += 1
            for split in range(positions[end - 1] // SPLIT + 1):
                attend(start, end, group, split, shape, caches[start], layer, positions, qkv, window, scores, parts)
            for n in range(start, end):
                for h in range(share):
                    at = (group * share + h) * size
                    join(parts[n - start, h], positions[n] // SPLIT + 1, attended[n, at : at + size])
            start = end


@compiled
def embedded(counters, phase, table, tokens, x):
    """x = the tokens' rows of a table of 8 bits."""
    groups = table[GROUPS]
    for task in shared(counters, phase, by_rows(len(x))):
        for n in rows_of(task, len(x)):
            block, lane = tokens[n] // LANES, tokens[n] % LANES
            integers.row_of(table[WEIGHT] + block * groups * GROUP * LANES + lane * 4,
                     table[SCALE] + (block * groups * LANES + lane) * 2, groups, x[n].ctypes.data)  # fmt: skip


@compiled
def matrix_of(matrices, kind):
    return matrices[kind * FIELDS : (kind + 1) * FIELDS]


@compiled
def normed(counters, phase, matrix, x, chosen, weight, eps, own, acts, low):
    """acts = the chosen rows of x, normed and rounded for products with a matrix. own [D] is scratch."""
    rows, (which, _, _, _, inner) = len(chosen), low
    for task in shared(counters, phase, by_rows(rows)):
        for n in rows_of(task, rows):
            norm(x[chosen[n]], weight, eps, own)
            round_row(matrix, own, 0, acts, n)
            if len(inner) and which[n] >= 0:
                inner[n, : len(own)] = own


@compiled
def projections(counters, phase, layer, matrices, acts, qkv, low):
    """Queries, keys and values of all tokens: three matrices in one phase, their tasks numbered through."""
    rows, width = qkv.shape
    total = tasks_of(matrix_of(matrices, 0), rows)
    for kind in range(1, QKV):
        total += tasks_of(matrix_of(matrices, kind), rows)
    for task in shared(counters, phase, total):
        kind, at, within = 0, 0, task
        while within >= tasks_of(matrix_of(matrices, kind), rows):
            within -= tasks_of(matrix_of(matrices, kind), rows)
            at += matrix_of(matrices, kind)[BLOCKS] * LANES
            kind += 1
        matrix = matrix_of(matrices, kind)
        part = part_of(matrix, within, rows)
        out = qkv.ctypes.data + (part[2] * width + at + part[0] * LANES) * FLOAT
        times(matrix, part, acts, out, width)
        beside(layer, kind, kind, part, low, out, width)


@compiled
def placed(counters, phase, layer, caches, positions, cos, sin, shape, qkv):
    """`place` for all tokens."""
    heads, kv_heads, size = shape
    tokens = len(positions)
    for task in shared(counters, phase, by_rows(tokens)):
        for n in rows_of(task, tokens):
            place(qkv[n], positions[n], cos, sin, caches[n], layer, heads, kv_heads, size)


@compiled
def gathered(counters, phase, matrix, positions, shape, parts, few, attended, acts):
    """acts = what attention gave, rounded; for few tokens its splits are joined before."""
    heads, _, size = shape
    tokens = len(positions)
    for task in shared(counters, phase, by_rows(tokens)):
        for n in rows_of(task, tokens):
            if few:
                for h in range(heads):
                    join(parts[n, h], positions[n] // SPLIT + 1, attended[n, h * size : (h + 1) * size])
            round_row(matrix, attended[n], 0, acts, n)


@compiled
def added(counters, phase, layer, kind, matrix, acts, tile, x, low):
    """x [N, D] += activations times a matrix, the layer's `kind`. tile: scratch for a task's outputs."""
    rows, width = len(x), tile.shape[2]
    for task in shared(counters, phase, tasks_of(matrix, rows)):
        part = part_of(matrix, task, rows)
        first, last, start, stop = part
        times(matrix, part, acts, tile.ctypes.data, width)
        beside(layer, kind, 0, part, low, tile.ctypes.data, width)
        for n in range(start, stop):
            for i in range((last - first) * LANES):
                x[n, first * LANES + i] += tile[0, n - start, i]


@compiled
def gates(counters, phase, layer, matrices, acts, tile, rounded, low):
    """rounded = silu(gate(x)) * up(x) (Shazeer 2020, eq. 6), for the product with the matrix behind them."""
    gate, up, down = matrix_of(matrices, GATE), matrix_of(matrices, UP), matrix_of(matrices, DOWN)
    rows, width, (which, _, _, _, inner) = len(rounded[0]), tile.shape[2], low
    for task in shared(counters, phase, tasks_of(gate, rows)):
        part = part_of(gate, task, rows)
        first, last, start, stop = part
        times(gate, part, acts, tile[0].ctypes.data, width)
        times(up, part, acts, tile[1].ctypes.data, width)
        beside(layer, GATE, 0, part, low, tile[0].ctypes.data, width)
        beside(layer, UP, 1, part, low, tile[1].ctypes.data, width)
        # A block's outputs are a group of the next product's inputs, so that they can be rounded here.
        count = (last - first) * LANES
        for n in range(start, stop):
            v.silu_times(tile[0, n - start].ctypes.data, tile[1, n - start].ctypes.data, count)
            round_row(down, tile[0, n - start, :count], first, rounded, n)
            if len(inner) and which[n] >= 0:
                inner[n, first * LANES : last * LANES] = tile[0, n - start, :count]


@compiled
def step(member, counters, embedding, table, head, norms, eps, tokens, x, caches, positions, starts, few, cos, sin,
         shape, wanted, acts, rounded, last_acts, own, tile, qkv, parts, window, scores, attended, low,
         out):  # fmt: skip
    """All layers for N tokens and the output matrix for M of them, in PHASES * layers + 3 phases.

    embedding, head: int64 [FIELDS]; table: int64 [layers, 7 * FIELDS]; norms [2 * layers + 1, D]; tokens: int64 [N];
    x [N, D], scratch; caches: int64 [N, 4], each token's addresses of keys and values in layer 0, bytes of a layer,
    capacity; positions: int64 [N]; starts: int64 [N + 1], splits of all tokens before; few: whether attention is cut by
    splits; shape: H, G, E; wanted: int64 [M], rows of x. acts, rounded, last_acts: rounded activations of N, N, M rows.
    Scratch: own [team, D]; tile [team, 2, PART, widest share]; qkv [N, (H + 2G) E]; parts [1, N, H, splits, E + 2] for
    few tokens, else [team, QUERIES, R, splits, E + 2]; window [team, TILE, E]; scores [team, QUERIES * R, SPLIT + 16];
    attended [N, H E]. out [M, V], the logits.
    low: what adapters put beside products (`llama.low_rank`): int64 [N], each token's adapter or -1; int64 [adapters,
    layers, 7, LOW_FIELDS]; fp32 [adapters, layers, 7], scales; scratch [N, 3, ranks] and, for the inputs of products,
    [N, the widest]. Without any, the last two are empty.
    """
    everyone = np.arange(len(x))
    mine, room = own[member], tile[member]
    embedded(counters, 0, embedding, tokens, x)
    adapted, inner = len(low[4]) > 0, low[4]
    dim, ffn = x.shape[1], rounded[1].shape[1] * GROUP
    for layer in range(len(table)):
        matrices, phase = table[layer], layer * PHASES + 1
        normed(counters, phase, matrices, x, everyone, norms[2 * layer], eps, mine, acts, low)
        if adapted:
            reduced(counters, phase + 1, layer, 0, QKV, inner, dim, low)
        projections(counters, phase + 2, layer, matrices, acts, qkv, low)
        placed(counters, phase + 3, layer, caches, positions, cos, sin, shape, qkv)
        if few:
            attention_of_few(counters, phase + 4, layer, caches, positions, starts, shape, qkv, window[member],
                             scores[member], parts[0])  # fmt: skip
        else:
            attention_of_many(counters, phase + 4, layer, caches, positions, shape, qkv, window[member],
                              scores[member], parts[member], attended)  # fmt: skip
        gathered(counters, phase + 5, matrix_of(matrices, ATTN_OUT), positions, shape, parts[0], few, attended, acts)
        if adapted:
            reduced(counters, phase + 6, layer, ATTN_OUT, 1, attended, attended.shape[1], low)
        added(counters, phase + 7, layer, ATTN_OUT, matrix_of(matrices, ATTN_OUT), acts, room, x, low)
        normed(counters, phase + 8, matrix_of(matrices, GATE), x, everyone, norms[2 * layer + 1], eps, mine, acts, low)
        if adapted:
            reduced(counters, phase + 9, layer, GATE, 2, inner, dim, low)
        gates(counters, phase + 10, layer, matrices, acts, room, rounded, low)
        if adapted:
            reduced(counters, phase + 11, layer, DOWN, 1, inner, ffn, low)
        added(counters, phase + 12, layer, DOWN, matrix_of(matrices, DOWN), rounded, room, x, low)
    phase = len(table) * PHASES + 1
    normed(counters, phase, head, x, wanted, norms[2 * len(table)], eps, mine, last_acts, low)
    product(counters, phase + 1, head, last_acts, out)
