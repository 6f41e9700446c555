# mypy: ignore-errors
# numba's decorated functions have no types.
"""Low-rank matrices beside packed products (Hu et al. 2021), for the tokens of requests that take them along.

    out = factor * (W x) + scale * b (a x)

For each adapter, layer and product: a fp16 [ranks, in], the ranks padded with zeros to a multiple of RANKS; b fp16
[blocks of LANES outputs, rank, LANES], so that a task's share of the outputs lies together; factor fp32 [out] or none.
Both are divided by their largest magnitude and `scale` has what they were divided by, so that fp16's range is no limit.
As everywhere in the step, a token's sums do not depend on what is computed beside it.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic

from llama.products import LANES, by_rows, compiled, rows_of, shared
from llama.vectors import F32, Code, Value, _halved, lowered

RANKS = 16
# What is known of a product: rank (0 where nothing is beside it), addresses of a, b and factor (0: none).
LOW_FIELDS = 4
RANK, A, B, FACTOR = range(LOW_FIELDS)


@intrinsic
def dots(typing, x, ys, size, out):
    """out[j] = the scalar product of `size` floats (a multiple of 16) with row j of the 16 rows of fp16 at ys."""

    def write(c: Code, x: Value, ys: Value, size: Value, out: Value) -> None:
        b, zero, halves = c.b, c.vector(0.0, 16), ir.VectorType(ir.HalfType(), 16)
        totals = [c.variable(zero) for _ in range(RANKS)]
        for total in totals:
            b.store(zero, total)
        with cgutils.for_range_slice(b, c.number(0), size, c.number(16)) as (at, _):
            given = c.floats(x, at, 16)
            for j, total in enumerate(totals):
                row = c.load(ys, b.add(b.mul(c.number(j), size), at), halves, 2)
                c.add_product(total, given, b.fpext(row, zero.type))
        c.store(_halved(c, [b.load(each) for each in totals]), out, c.number(0))

    return lowered(4, write)


@intrinsic(prefer_literal=True)
def add_block(typing, tokens, weights, ldw, rank, rows, out, ldo):
    """out[n, lane] += the sum over j < rank of weights[n, j] * rows[j, lane], rows of LANES fp16.

    tokens: a literal; ldw, ldo: floats from a token's weights, or outputs, to the next one's.
    """
    count = tokens.literal_value

    def write(c: Code, _t: Value, weights: Value, ldw: Value, rank: Value, rows: Value, out: Value, ldo: Value) -> None:
        b, halves = c.b, ir.VectorType(ir.HalfType(), LANES)
        places = [b.mul(c.number(n), ldo) for n in range(count)]
        totals = [c.variable(c.vector(0.0)) for _ in range(count)]
        for total, place in zip(totals, places, strict=True):
            b.store(c.floats(out, place, LANES), total)
        with cgutils.for_range(b, rank) as j:
            row = b.fpext(c.load(rows, b.mul(j.index, c.number(LANES)), halves, 2), ir.VectorType(F32, LANES))
            for n, total in enumerate(totals):
                weight = c.load(weights, b.add(b.mul(c.number(n), ldw), j.index), F32, 4)
                c.add_product(total, c.splat(weight, LANES), row)
        for total, place in zip(totals, places, strict=True):
            c.store(b.load(total), out, place)

    return lowered(7, write, literals=(tokens,))


@intrinsic
def scale_block(typing, out, factors):
    """out[lane] *= factors[lane] for LANES floats."""

    def write(c: Code, out: Value, factors: Value) -> None:
        none = c.number(0)
        c.store(c.b.fmul(c.floats(out, none, LANES), c.floats(factors, none, LANES)), out, none)

    return lowered(2, write)


@compiled
def reduced(counters, phase, layer, first, kinds, x, size, low):
    """a x of `kinds` products from `first` on, for all tokens that have an adapter. x [N, >= size]. One phase."""
    which, table, scales, room, _ = low
    chunks = room.shape[2] // RANKS
    for task in shared(counters, phase, by_rows(len(which)) * kinds * chunks):
        within = task % (kinds * chunks)
        kind, start = within // chunks, within % chunks * RANKS
        for n in rows_of(task // (kinds * chunks), len(which)):
            if which[n] >= 0:
                known = table[which[n], layer, first + kind]
                if start < known[RANK]:
                    out = room[n, kind, start : start + RANKS]
                    dots(x[n].ctypes.data, known[A] + start * size * 2, size, out.ctypes.data)
                    scale = scales[which[n], layer, first + kind]
                    for j in range(RANKS):
                        out[j] *= scale


@compiled
def beside(layer, kind, place, part, low, out, ldo):
    """Makes a part of W x, at address `out`, that of the adapted product. place: of its a x among those of a phase."""
    which, table, _, room, _ = low
    first, last, start, stop = part
    n = start
    while n < stop:
        end = n + 1
        while end < stop and end < n + 4 and which[end] == which[n]:
            end += 1
        if which[n] >= 0:
            known = table[which[n], layer, kind]
            if known[FACTOR]:
                for i in range(n, end):
                    for block in range(first, last):
                        scale_block(out + ((i - start) * ldo + (block - first) * LANES) * 4,
                                    known[FACTOR] + block * LANES * 4)  # fmt: skip
            if known[RANK]:
                weights, ldw = room[n, place].ctypes.data, room.shape[1] * room.shape[2]
                for block in range(first, last):
                    rows = known[B] + block * known[RANK] * LANES * 2
                    to = out + ((n - start) * ldo + (block - first) * LANES) * 4
                    if end - n == 4:
                        add_block(4, weights, ldw, known[RANK], rows, to, ldo)
                    else:
                        for i in range(end - n):
                            add_block(1, weights + i * ldw * 4, ldw, known[RANK], rows, to + i * ldo * 4, ldo)
        n = end
