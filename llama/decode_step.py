# mypy: ignore-errors
# numba's decorated functions have no types.
"""The CPU's decode step, compiled by numba: the same mathematics as `llama.model` for few tokens and packed weights.

Eager PyTorch takes longer to start the thousand small operations of a step than to compute them. Here a step is one
call: a team of threads walks through its phases together. Work is cut by outputs, heads and positions, never by rows,
so a row's result is the same bit for bit whatever is computed beside it. Shape letters as in `llama.model`; N tokens of
any requests, each with its own cache and position. All arrays are fp32.
"""

from __future__ import annotations

import math

import numba
import numpy as np

from llama import vectors as v
from llama.products import (
    BLOCKS,
    FIELDS,
    LANES,
    claim,
    compiled,
    go_on,
    reducing,
    shares,
    sum_groups,
    times_share,
    wait,
)

SPLIT = 256  # positions that one task of attention covers
PHASES = 7  # of a layer; the output matrix is one more
ATTN_OUT, GATE, UP, DOWN = range(3, 7)  # places of matrices behind q, k and v


@reducing
def norm(x, weight, eps, out):
    """RMSNorm of every row. weight: an array of D floats."""
    size = x.shape[1]
    for n in range(x.shape[0]):
        total = np.float32(0)
        for i in range(size):
            total += x[n, i] * x[n, i]
        scale = np.float32(1) / np.sqrt(total / np.float32(size) + eps)
        for i in range(size):
            out[n, i] = x[n, i] * scale * weight[i]


@compiled
def turn(x, cos, sin):
    """Rotary embedding of one head, in place: pairs (i, i + E/2)."""
    half = len(x) // 2
    for i in range(half):
        a, b = x[i], x[i + half]
        x[i] = a * cos[i] - b * sin[i]
        x[i + half] = b * cos[i] + a * sin[i]


@reducing
def attend(q, k, v_, length, scores, size, part):
    """One head over `length` positions at addresses k and v_; part = [largest score, sum of weights, sum of values]."""
    scale = np.float32(1) / np.sqrt(np.float32(size))
    largest = np.float32(-np.inf)
    for t in range(length):
        score = v.dot(q, k + t * size * 4, size) * scale
        scores[t] = score
        largest = max(largest, score)
    for t in range(length):
        scores[t] -= largest
    v.exponentials(scores.ctypes.data, length)
    total = np.float32(0)
    for t in range(length):
        total += scores[t]
    part[0], part[1] = largest, total
    v.weighted_sum(scores.ctypes.data, length, v_, size, part.ctypes.data + 8)


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
def place(qkv, n, position, cos, sin, caches, layer, heads, kv_heads, size):
    """Turns a token's queries and keys by its position, and puts keys and values into its cache."""
    for h in range(heads + 2 * kv_heads):
        vector = qkv[n, h * size : (h + 1) * size]
        if h < heads + kv_heads:
            turn(vector, cos[position], sin[position])
        if h >= heads:
            keys = h < heads + kv_heads
            group = h - heads if keys else h - heads - kv_heads
            to = caches[n, 0 if keys else 1] + layer * caches[n, 2]
            to += (group * caches[n, 3] + position) * size * 4
            stored = numba.carray(v.pointer(to), size)
            for e in range(size):
                stored[e] = vector[e]


@compiled
def attention(counters, phase, layer, caches, positions, starts, heads, kv_heads, size, qkv, parts, scores):
    """Scores and weighted values, one task for each token, key/value head and split. starts [N + 1]: splits before."""
    tokens, share = len(positions), heads // kv_heads
    tasks = starts[tokens] * kv_heads
    n = 0
    task = claim(counters, phase)
    while task < tasks:
        while starts[n + 1] * kv_heads <= task:
            n += 1
        within = task - starts[n] * kv_heads
        group, split = within % kv_heads, within // kv_heads
        first = split * SPLIT
        length = min(positions[n] + 1 - first, SPLIT)
        shift = layer * caches[n, 2] + (group * caches[n, 3] + first) * size * 4
        for h in range(group * share, (group + 1) * share):
            q = qkv[n, h * size : (h + 1) * size].ctypes.data
            attend(q, caches[n, 0] + shift, caches[n, 1] + shift, length, scores, size, parts[n, h, split])
        task = go_on(counters, phase)
    wait(counters, phase, tasks)


@compiled
def added(counters, phase, matrix, x, sums, scratch, to):
    """to [N, D] += x times a matrix; scratch [N, D]."""
    ready, tasks, blocks = False, shares(matrix[BLOCKS]), matrix[BLOCKS]
    task = claim(counters, phase)
    while task < tasks:
        if not ready:
            sum_groups(matrix, x, sums)
            ready = True
        times_share(matrix, task, tasks, x, sums, scratch)
        first, last = task * blocks // tasks * LANES, (task + 1) * blocks // tasks * LANES
        for n in range(x.shape[0]):
            for i in range(first, last):
                to[n, i] += scratch[n, i]
        task = go_on(counters, phase)
    wait(counters, phase, tasks)


@compiled
def matrix_of(matrices, kind):
    return matrices[kind * FIELDS : (kind + 1) * FIELDS]


@compiled
def projections(counters, phase, matrices, weight, eps, x, own, sums, qkv):
    """Queries, keys and values of all tokens, from the normed x."""
    ready, total = False, 0
    for kind in range(3):
        matrix = matrix_of(matrices, kind)
        tasks = shares(matrix[BLOCKS])
        # Three matrices in one phase: their tasks are numbered through.
        total += tasks
    task = claim(counters, phase)
    while task < total:
        if not ready:
            norm(x, weight, eps, own)
            sum_groups(matrices, own, sums)
            ready = True
        kind, at, share = 0, 0, task
        while share >= shares(matrix_of(matrices, kind)[BLOCKS]):
            share -= shares(matrix_of(matrices, kind)[BLOCKS])
            at += matrix_of(matrices, kind)[BLOCKS] * LANES
            kind += 1
        matrix = matrix_of(matrices, kind)
        times_share(matrix, share, shares(matrix[BLOCKS]), own, sums, qkv[:, at:])
        task = go_on(counters, phase)
    wait(counters, phase, total)


@compiled
def gates(counters, phase, matrices, weight, eps, x, own, sums, gated):
    """gated[0] = silu(gate(x)) * up(x) of the normed x (Shazeer 2020, eq. 6)."""
    gate, up = matrix_of(matrices, GATE), matrix_of(matrices, UP)
    ready, blocks = False, gate[BLOCKS]
    tasks = shares(blocks)
    task = claim(counters, phase)
    while task < tasks:
        if not ready:
            norm(x, weight, eps, own)
            sum_groups(gate, own, sums)
            ready = True
        times_share(gate, task, tasks, own, sums, gated[0])
        times_share(up, task, tasks, own, sums, gated[1])
        for n in range(x.shape[0]):
            for i in range(task * blocks // tasks * LANES, (task + 1) * blocks // tasks * LANES):
                g = gated[0, n, i]
                gated[0, n, i] = g / (np.float32(1) + np.float32(math.exp(-g))) * gated[1, n, i]
        task = go_on(counters, phase)
    wait(counters, phase, tasks)


@compiled
def step(member, counters, table, head, norms, eps, x, caches, positions, starts, cos, sin, heads, kv_heads, size,
         normed, sums, qkv, parts, scores, attended, gated, out):  # fmt: skip
    """All layers and the output matrix for N tokens, in PHASES * layers + 1 phases.

    table: int64 [layers, 7 * FIELDS]; head: int64 [FIELDS]; norms [2 * layers + 1, D]; x [N, D], embedded tokens,
    overwritten; caches: int64 [N, 4], each token's addresses of keys and values in layer 0, bytes of a layer, capacity;
    positions: int64 [N]; starts: int64 [N + 1], splits of all tokens before; normed [team, N, D]; sums [team, N, widest
    / GROUP]; qkv [N, (H + 2G) E]; parts [N, H, splits, E + 2]; scores [team, SPLIT + 16]; attended [N, H E]; gated
    [2, N, F]; out [N, V], the logits.
    """
    tokens = len(positions)
    own, own_sums = normed[member], sums[member]
    for layer in range(len(table)):
        matrices, phase = table[layer], layer * PHASES
        projections(counters, phase, matrices, norms[2 * layer], eps, x, own, own_sums, qkv)
        n = claim(counters, phase + 1)
        while n < tokens:
            place(qkv, n, positions[n], cos, sin, caches, layer, heads, kv_heads, size)
            n = go_on(counters, phase + 1)
        wait(counters, phase + 1, tokens)
        attention(counters, phase + 2, layer, caches, positions, starts, heads, kv_heads, size, qkv, parts,
                  scores[member])  # fmt: skip
        n = claim(counters, phase + 3)
        while n < tokens:
            for h in range(heads):
                join(parts[n, h], positions[n] // SPLIT + 1, attended[n, h * size : (h + 1) * size])
            n = go_on(counters, phase + 3)
        wait(counters, phase + 3, tokens)
        added(counters, phase + 4, matrix_of(matrices, ATTN_OUT), attended, own_sums, own, x)
        gates(counters, phase + 5, matrices, norms[2 * layer + 1], eps, x, own, own_sums, gated)
        added(counters, phase + 6, matrix_of(matrices, DOWN), gated[0], own_sums, own, x)
    phase, tasks, ready = len(table) * PHASES, shares(head[BLOCKS]), False
    task = claim(counters, phase)
    while task < tasks:
        if not ready:
            norm(x, norms[2 * len(table)], eps, own)
            sum_groups(head, own, own_sums)
            ready = True
        times_share(head, task, tasks, own, own_sums, out)
        task = go_on(counters, phase)
    wait(counters, phase, tasks)
