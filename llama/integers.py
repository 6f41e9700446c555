# mypy: ignore-errors
# llvmlite has no types.
"""Products of packed weights with rounded activations, in whole numbers; LLVM instructions through numba's intrinsics.

A matrix [out, in] is packed in blocks of LANES outputs, so that one register holds four inputs' weights of many
outputs, as the processor's dot products of bytes want them. Every GROUP inputs share a scale, and for int4 a minimum,
in fp16 (as GGUF's Q8_0 and Q4_1 have it):

    int8   [blocks, in / 4, LANES, 4] uint8   value = (q - 128) * scale; byte (j, lane, i) has input 4 j + i
    int4   [blocks, in / 8, LANES, 4] uint8   value = q * scale + minimum; byte (j, lane, i) of a group of 32 inputs has
                                              input 4 j + i in its low half, input 16 + 4 j + i in its high half
    scale, minimum [blocks, in / GROUP, LANES] fp16

Activations are rounded in groups of GROUP, too, to twice as many bits as the weights have: one plane of signed bytes
for int4, two for int8 (value = (256 * high + low) * scale). Sums within a group are exact, so they are the same on
every processor and whatever is computed beside them. Each group of activations has a scale, and what the weights'
offsets are multiplied with: for int4 the sum of its values (fp32), for int8 128 times the sum of its numbers (int32).
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic

from llama.vectors import F32, FEATURES, GROUP, I8, I32, LANES, Code, Value, lowered

# Lanes of the instruction that multiplies unsigned with signed bytes and adds up four of them; 0 where there is none.
DOT_LANES = 16 if "+avx512vnni" in FEATURES else 8 if "+avxvnni" in FEATURES else 0
WIDTH = DOT_LANES or 16
PARTS = LANES // WIDTH
BYTES = 4 * LANES  # a step of four inputs
RANGE = {1: 127.0, 2: 32639.0}  # largest number by planes; its low byte rounds the high one up to 127
LEAST = 1e-30  # a group of smaller values counts as zeros: its scale would have no inverse

_INTS, _FLOATS = ir.VectorType(I32, WIDTH), ir.VectorType(F32, WIDTH)
_HALVES, _QUADS = ir.VectorType(ir.HalfType(), WIDTH), ir.VectorType(I8, 4 * WIDTH)


def _ints(value: int) -> Value:
    return ir.Constant(_INTS, [value] * WIDTH)


def _dot(c: Code, total: Value, weights: Value, activations: Value) -> Value:
    """total[lane] + the sum over i < 4 of weights[lane, i] (unsigned) * activations[i] (signed).

    weights: int32 lanes of four bytes; activations: four bytes in an int32. total: int32, or floats where the processor
    has no such instruction: whole numbers below 2^24 are exact in them, and multiplied faster.
    """
    b = c.b
    if DOT_LANES:
        name = f"llvm.x86.avx512.vpdpbusd.{32 * WIDTH}"
        kind = ir.FunctionType(_INTS, [_INTS, _QUADS, _QUADS])
        spread = c.splat(activations, WIDTH)
        return b.call(
            cgutils.get_or_insert_function(b.module, kind, name),
            [total, b.bitcast(weights, _QUADS), b.bitcast(spread, _QUADS)],
        )
    for i in range(4):
        number = b.ashr(b.shl(activations, ir.Constant(I32, 24 - 8 * i)), ir.Constant(I32, 24))
        weight = b.and_(b.lshr(weights, _ints(8 * i)), _ints(255))
        total = c.call("fma", b.uitofp(weight, _FLOATS), c.splat(b.sitofp(number, F32), WIDTH), total)
    return total


def _zero() -> Value:
    return _ints(0) if DOT_LANES else ir.Constant(_FLOATS, [0.0] * WIDTH)


def _whole(c: Code, total: Value) -> Value:
    return total if DOT_LANES else c.b.fptosi(total, _INTS)


def _group(c: Code, w: Value, x: Value, ldx: Value, plane: Value, rows: int, four: bool) -> list[list[Value]]:
    """int32 sums of one group for WIDTH outputs, [rows][planes]. w: the group's first byte; x: its first activation."""
    b, planes = c.b, 1 if four else 2
    totals = [[_zero()] * planes for _ in range(rows)]
    for j in range(4 if four else 8):
        stored = c.load(w, c.number(j * BYTES), _INTS, 1)
        halves = [(stored, 4 * j)]
        if four:
            low, high = b.and_(stored, _ints(0x0F0F0F0F)), b.and_(b.lshr(stored, _ints(4)), _ints(0x0F0F0F0F))
            halves = [(low, 4 * j), (high, 16 + 4 * j)]
        for values, k in halves:
            for r in range(rows):
                for p in range(planes):
                    at = b.add(b.mul(c.number(r), ldx), b.add(b.mul(c.number(p), plane), c.number(k)))
                    totals[r][p] = _dot(c, totals[r][p], values, c.load(x, at, I32, 1))
    return [[_whole(c, each) for each in planes] for planes in totals]


@intrinsic(prefer_literal=True)
def product(typing, rows, bits, w, s, m, groups, x, ldx, plane, scales, sums, lds, out, ldo):
    """out[r * ldo + lane] = a block of LANES outputs times `rows` rows. rows, bits: literals.

    w, s, m: addresses of the block's weights, scales and minima; x: of activations, `plane` bytes from the high to the
    low plane, ldx bytes from row to row; scales, sums: of what belongs to their groups, lds of them a row.
    """
    count, four = rows.literal_value, bits.literal_value == 4

    def write(c: Code, _r: Value, _b: Value, w: Value, s: Value, m: Value, groups: Value, x: Value, ldx: Value,
              plane: Value, scales: Value, sums: Value, lds: Value, out: Value, ldo: Value) -> None:  # fmt: skip
        b = c.b
        with cgutils.for_range(b, c.number(PARTS)) as part:
            lane = b.mul(part.index, c.number(WIDTH))
            wp, to = b.add(w, b.mul(lane, c.number(4))), b.add(out, b.mul(lane, c.number(4)))
            totals = [c.variable(ir.Constant(_FLOATS, [0.0] * WIDTH)) for _ in range(count)]
            for total in totals:
                b.store(ir.Constant(_FLOATS, [0.0] * WIDTH), total)
            with cgutils.for_range(b, groups) as loop:
                g = loop.index
                wg = b.add(wp, b.mul(g, c.number(BYTES * (4 if four else 8))))
                found = _group(c, wg, b.add(x, b.mul(g, c.number(GROUP))), ldx, plane, count, four)
                at = b.add(b.mul(g, c.number(LANES)), lane)
                scale = b.fpext(c.load(s, at, _HALVES, 2), _FLOATS)
                for r in range(count):
                    place = b.add(b.mul(c.number(r), lds), g)
                    number = found[r][0]
                    if not four:
                        high = b.shl(found[r][0], _ints(8))
                        number = b.sub(b.add(high, found[r][1]), c.splat(c.load(sums, place, I32, 4), WIDTH))
                    factor = b.fmul(scale, c.splat(c.load(scales, place, F32, 4), WIDTH))
                    c.add_product(totals[r], b.sitofp(number, _FLOATS), factor)
                    if four:
                        minimum = b.fpext(c.load(m, at, _HALVES, 2), _FLOATS)
                        c.add_product(totals[r], minimum, c.splat(c.load(sums, place, F32, 4), WIDTH))
            for r in range(count):
                c.store(b.load(totals[r]), to, b.mul(c.number(r), ldo))

    return lowered(14, write, literals=(rows, bits))


@intrinsic(prefer_literal=True)
def rounded(typing, planes, x, count, out, plane, scales, sums):
    """Rounds `count` floats (a multiple of GROUP) at x: bytes to out, and the low ones `plane` bytes further on.

    planes: a literal, 1 or 2; scales, sums: addresses of what the module's description says of each group.
    """
    two = planes.literal_value == 2
    largest = RANGE[planes.literal_value]

    def write(c: Code, _p: Value, x: Value, count: Value, out: Value, plane: Value, scales: Value, sums: Value) -> None:
        b, ints, small = c.b, ir.VectorType(I32, GROUP), ir.VectorType(I8, GROUP)
        with cgutils.for_range(b, b.udiv(count, c.number(GROUP))) as loop:
            at = b.mul(loop.index, c.number(GROUP))
            given = c.floats(x, at, GROUP)
            most = c.reduce("fmax", c.call("fabs", given))
            none = b.fcmp_ordered("<", most, ir.Constant(F32, LEAST))
            scale = b.select(none, ir.Constant(F32, 0.0), b.fdiv(most, ir.Constant(F32, largest)))
            inverse = b.select(none, ir.Constant(F32, 0.0), b.fdiv(ir.Constant(F32, largest), most))
            numbers = b.fptosi(c.call("rint", b.fmul(given, c.splat(inverse, GROUP))), ints)
            total = c.reduce("add", numbers)
            c.store(scale, scales, loop.index)
            if two:
                high = b.ashr(b.add(numbers, ir.Constant(ints, [128] * GROUP)), ir.Constant(ints, [8] * GROUP))
                low = b.sub(numbers, b.shl(high, ir.Constant(ints, [8] * GROUP)))
                c.store(b.trunc(high, small), out, at, 1)
                c.store(b.trunc(low, small), out, b.add(at, plane), 1)
                c.store(b.shl(total, ir.Constant(I32, 7)), sums, loop.index)
            else:
                c.store(b.trunc(numbers, small), out, at, 1)
                c.store(b.fmul(b.sitofp(total, F32), scale), sums, loop.index)

    return lowered(7, write, literals=(planes,))


@intrinsic
def row_of(typing, w, s, groups, out):
    """One output's weights as floats. w, s: addresses of its bytes and scale in the first step of an int8 block."""

    def write(c: Code, w: Value, s: Value, groups: Value, out: Value) -> None:
        b, bytes_, floats = c.b, ir.VectorType(I8, 4), ir.VectorType(F32, 4)
        with cgutils.for_range(b, groups) as loop:
            half = c.load(s, b.mul(loop.index, c.number(LANES)), ir.HalfType(), 2)
            scale = c.splat(b.fpext(half, F32), 4)
            for j in range(GROUP // 4):
                step = b.add(b.mul(loop.index, c.number(GROUP // 4)), c.number(j))
                numbers = b.uitofp(c.load(w, b.mul(step, c.number(BYTES)), bytes_, 1), floats)
                value = b.fmul(b.fsub(numbers, c.vector(128.0, 4)), scale)
                c.store(value, out, b.mul(step, c.number(4)))

    return lowered(4, write)
