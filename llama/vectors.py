# mypy: ignore-errors
# llvmlite has no types.
"""Vector arithmetic for the CPU's decode step: a few loops written as LLVM instructions, through numba's intrinsics.

numba's own loops check for aliasing at every step, which costs more than the arithmetic when vectors are short. Here
accumulators stay in registers. LLVM maps the vectors to what the CPU has (AVX-512, AVX2, NEON). Everything takes plain
addresses as int64, for the caller keeps arrays of them; nothing is checked.

A matrix [out, in] is packed in blocks of LANES outputs, so that one register holds the same input's weights of many
outputs. No sum across a register is needed, and a row's result does not depend on the rows that are computed beside it.
Every GROUP inputs share a scale, and for int4 a minimum, in fp16 (as GGUF's Q8_0 and Q4_1 have it):

    int8   [blocks, in, LANES] int8         value = q * scale
    int4   [blocks, in / 2, LANES] uint8    value = q * scale + minimum; byte j of a group of 32 inputs has input j
                                            in its low and input j + 16 in its high half
    scale, minimum [blocks, in / GROUP, LANES] fp16
"""

from __future__ import annotations

import hashlib
import platform
import tempfile
from pathlib import Path
from typing import Any

import numba
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic

LANES = 32
GROUP = 32
CHUNK = 64  # widths of heads are multiples of this


def _cache_folder() -> str:
    """Where numba keeps what it compiled: a folder for these very sources, which it would not all compare itself."""
    here = Path(__file__).parent
    sources = b"".join((here / f"{name}.py").read_bytes() for name in ("vectors", "products", "decode_step"))
    folder = Path(numba.config.CACHE_DIR or here / "__pycache__") / hashlib.sha256(sources).hexdigest()[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix="paddock-"))
    return str(folder)


numba.config.CACHE_DIR = _cache_folder()
# LLVM avoids the widest registers, which once lowered the clock; here they are worth 1.7 times the speed.
if numba.config.CPU_FEATURES is None:
    numba.config.CPU_FEATURES = get_host_cpu_features() + (
        ",-prefer-256-bit" if platform.machine() in ("x86_64", "AMD64") else ""
    )

Value = ir.Value
F32, I8, I32, I64 = ir.FloatType(), ir.IntType(8), ir.IntType(32), ir.IntType(64)


class _Code:
    """Shorthands around an IRBuilder."""

    def __init__(self, builder: ir.IRBuilder) -> None:
        self.b = builder

    def number(self, value: int) -> Value:
        return ir.Constant(I64, value)

    def vector(self, value: float, size: int = LANES) -> Value:
        return ir.Constant(ir.VectorType(F32, size), [value] * size)

    def splat(self, value: Value, size: int = LANES) -> Value:
        kind = ir.VectorType(value.type, size)
        first = self.b.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(I32, 0))
        spread = ir.Constant(ir.VectorType(I32, size), [0] * size)
        return self.b.shuffle_vector(first, ir.Constant(kind, ir.Undefined), spread)

    def place(self, address: Value, offset: Value, kind: ir.Type, width: int) -> Value:
        """A pointer to element `offset` of `width` bytes."""
        return self.b.inttoptr(self.b.add(address, self.b.mul(offset, self.number(width))), kind.as_pointer())

    def load(self, address: Value, offset: Value, kind: ir.Type, width: int) -> Value:
        found = self.b.load(self.place(address, offset, kind, width))
        found.align = width
        return found

    def floats(self, address: Value, offset: Value, size: int) -> Value:
        return self.load(address, offset, ir.VectorType(F32, size), 4)

    def store(self, value: Value, address: Value, offset: Value) -> None:
        self.b.store(value, self.place(address, offset, value.type, 4)).align = 4

    def call(self, name: str, *args: Value) -> Value:
        """An LLVM intrinsic whose result has the type of its first argument."""
        kind = args[0].type
        suffix = f"v{kind.count}f32" if isinstance(kind, ir.VectorType) else "f32"
        function = ir.FunctionType(kind, [each.type for each in args])
        return self.b.call(cgutils.get_or_insert_function(self.b.module, function, f"llvm.{name}.{suffix}"), args)

    def variable(self, value: Value) -> Value:
        return cgutils.alloca_once_value(self.b, value)

    def add_product(self, variable: Value, x: Value, y: Value) -> None:
        self.b.store(self.call("fma", x, y, self.b.load(variable)), variable)


def _lowered(count: int, write: Any, result: Any = types.none) -> Any:
    """What numba's `intrinsic` wants: a signature of int64 arguments, and the writer of the code."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Value:
        found = write(_Code(builder), *args)
        return context.get_dummy_value() if found is None else found

    return result(*[types.int64] * count), generate


def _product(rows: int, four: bool) -> Any:
    """out[r * ldo + lane] = sum over k of x[r * ldx + k] * weight[k, lane], for a block of outputs and `rows` rows."""

    def write(c: _Code, w: Value, s: Value, m: Value, groups: Value, x: Value, ldx: Value, sums: Value, lds: Value,
              out: Value, ldo: Value) -> None:  # fmt: skip
        b, zero = c.b, c.vector(0.0)
        totals = [c.variable(zero) for _ in range(rows)]
        # Two sums that grow in turns: one chain of dependent additions would wait for itself.
        parts = [(c.variable(zero), c.variable(zero)) for _ in range(rows)]
        stored = 16 if four else 32  # steps of LANES bytes in a group
        with cgutils.for_range(b, groups) as group:
            for part in parts:
                b.store(zero, part[0])
                b.store(zero, part[1])
            with cgutils.for_range(b, c.number(stored // 2)) as pair:
                for odd in range(2):
                    j = b.add(b.mul(pair.index, c.number(2)), c.number(odd))
                    step = b.add(b.mul(group.index, c.number(stored)), j)
                    for i, values in enumerate(_unpacked(c, c.load(w, b.mul(step, c.number(LANES)), _BYTES, 1), four)):
                        k = b.add(b.add(b.mul(group.index, c.number(GROUP)), j), c.number(16 * i))
                        for r in range(rows):
                            value = c.load(x, b.add(b.mul(c.number(r), ldx), k), F32, 4)
                            c.add_product(parts[r][i if four else odd], values, c.splat(value))
            at = b.mul(group.index, c.number(LANES))
            scale = b.fpext(c.load(s, at, _HALVES, 2), _FLOATS)
            minimum = b.fpext(c.load(m, at, _HALVES, 2), _FLOATS) if four else None
            for r in range(rows):
                c.add_product(totals[r], b.fadd(b.load(parts[r][0]), b.load(parts[r][1])), scale)
                if minimum is not None:
                    total = c.load(sums, b.add(b.mul(c.number(r), lds), group.index), F32, 4)
                    c.add_product(totals[r], minimum, c.splat(total))
        for r in range(rows):
            c.store(b.load(totals[r]), out, b.mul(c.number(r), ldo))

    return write


_BYTES, _FLOATS = ir.VectorType(I8, LANES), ir.VectorType(F32, LANES)
_HALVES, _INTS = ir.VectorType(ir.HalfType(), LANES), ir.VectorType(I32, LANES)


def _unpacked(c: _Code, q: Value, four: bool) -> list[Value]:
    """The one (int8) or two (int4) vectors of numbers that LANES bytes hold."""
    if not four:
        return [c.b.sitofp(c.b.sext(q, _INTS), _FLOATS)]
    low = c.b.and_(q, ir.Constant(_BYTES, [15] * LANES))
    high = c.b.lshr(q, ir.Constant(_BYTES, [4] * LANES))
    return [c.b.uitofp(c.b.zext(each, _INTS), _FLOATS) for each in (low, high)]


@intrinsic
def product1_int8(typing, w, s, m, groups, x, ldx, sums, lds, out, ldo):
    """One row times one block of an int8 matrix. w, s, m, x, sums, out: addresses; ldx, lds, ldo: floats per row."""
    return _lowered(10, _product(1, four=False))


@intrinsic
def product2_int8(typing, w, s, m, groups, x, ldx, sums, lds, out, ldo):
    return _lowered(10, _product(2, four=False))


@intrinsic
def product4_int8(typing, w, s, m, groups, x, ldx, sums, lds, out, ldo):
    return _lowered(10, _product(4, four=False))


@intrinsic
def product1_int4(typing, w, s, m, groups, x, ldx, sums, lds, out, ldo):
    """One row times one block of an int4 matrix. sums: the row's sum over every group of its inputs."""
    return _lowered(10, _product(1, four=True))


@intrinsic
def product2_int4(typing, w, s, m, groups, x, ldx, sums, lds, out, ldo):
    return _lowered(10, _product(2, four=True))


@intrinsic
def product4_int4(typing, w, s, m, groups, x, ldx, sums, lds, out, ldo):
    return _lowered(10, _product(4, four=True))


@intrinsic
def unpack_int8(typing, w, s, m, groups, out, ldo):
    """One block of an int8 matrix as floats, transposed: out[k * ldo + lane]."""
    return _lowered(6, _unpack(four=False))


@intrinsic
def unpack_int4(typing, w, s, m, groups, out, ldo):
    """One block of an int4 matrix as floats, transposed: out[k * ldo + lane]."""
    return _lowered(6, _unpack(four=True))


def _unpack(four: bool) -> Any:
    def write(c: _Code, w: Value, s: Value, m: Value, groups: Value, out: Value, ldo: Value) -> None:
        b, stored = c.b, 16 if four else 32
        with cgutils.for_range(b, groups) as group:
            at = b.mul(group.index, c.number(LANES))
            scale = b.fpext(c.load(s, at, _HALVES, 2), _FLOATS)
            minimum = b.fpext(c.load(m, at, _HALVES, 2), _FLOATS) if four else c.vector(0.0)
            with cgutils.for_range(b, c.number(stored)) as step:
                j = b.add(b.mul(group.index, c.number(stored)), step.index)
                for i, values in enumerate(_unpacked(c, c.load(w, b.mul(j, c.number(LANES)), _BYTES, 1), four)):
                    k = b.add(b.add(b.mul(group.index, c.number(GROUP)), step.index), c.number(16 * i))
                    c.store(c.call("fma", values, scale, minimum), out, b.mul(k, ldo))

    return write


@intrinsic
def dot(typing, x, y, size):
    """The scalar product of `size` floats (a multiple of CHUNK) at two addresses."""

    def write(c: _Code, x: Value, y: Value, size: Value) -> Value:
        total = c.variable(ir.Constant(F32, 0.0))
        with cgutils.for_range_slice(c.b, c.number(0), size, c.number(CHUNK)) as (at, _):
            product = c.b.fmul(c.floats(x, at, CHUNK), c.floats(y, at, CHUNK))
            while product.type.count > 1:  # halves are added: the order is fixed, whatever the registers' width
                half = product.type.count // 2
                spread = [ir.Constant(ir.VectorType(I32, half), list(range(i * half, (i + 1) * half))) for i in (0, 1)]
                product = c.b.fadd(*(c.b.shuffle_vector(product, product, each) for each in spread))
            c.b.store(c.b.fadd(c.b.load(total), c.b.extract_element(product, ir.Constant(I32, 0))), total)
        return c.b.load(total)

    return _lowered(3, write, types.float32)


@intrinsic
def weighted_sum(typing, weights, count, rows, size, out):
    """out[e] = sum over t < count of weights[t] * rows[t * size + e], for e < size (a multiple of CHUNK)."""

    def write(c: _Code, weights: Value, count: Value, rows: Value, size: Value, out: Value) -> None:
        b = c.b
        total = c.variable(c.vector(0.0, CHUNK))
        with cgutils.for_range_slice(b, c.number(0), size, c.number(CHUNK)) as (at, _):
            b.store(c.vector(0.0, CHUNK), total)
            with cgutils.for_range(b, count) as t:
                weight = c.splat(c.load(weights, t.index, F32, 4), CHUNK)
                c.add_product(total, weight, c.floats(rows, b.add(b.mul(t.index, size), at), CHUNK))
            c.store(b.load(total), out, at)

    return _lowered(5, write)


@intrinsic
def exponentials(typing, x, count):
    """x[i] = exp(x[i]) for non-positive x, in place; writes up to the next multiple of 16.

    2^n * p(r) with n = round(x / ln 2) and p the Taylor polynomial of degree 6 on |r| <= ln 2 / 2: within 3e-7.
    """

    def write(c: _Code, x: Value, count: Value) -> None:
        b, v = c.b, lambda value: c.vector(value, 16)
        with cgutils.for_range_slice(b, c.number(0), count, c.number(16)) as (at, _):
            given = c.call("maxnum", c.floats(x, at, 16), v(-87.0))
            n = c.call("rint", b.fmul(given, v(1.4426950408889634)))
            r = c.call("fma", n, v(-0.693145751953125), given)
            r = c.call("fma", n, v(-1.428606820309417e-06), r)
            total = v(1 / 720)
            for factor in (1 / 120, 1 / 24, 1 / 6, 0.5, 1.0, 1.0):
                total = c.call("fma", total, r, v(factor))
            ints = ir.VectorType(I32, 16)
            power = b.shl(b.add(b.fptosi(n, ints), ir.Constant(ints, [127] * 16)), ir.Constant(ints, [23] * 16))
            c.store(b.fmul(total, b.bitcast(power, ir.VectorType(F32, 16))), x, at)

    return _lowered(2, write)


@intrinsic
def arrive(typing, counter):
    """Adds one to the int64 at an address, seen by all threads; gives what was there before."""

    def write(c: _Code, counter: Value) -> Value:
        return c.b.atomic_rmw("add", c.b.inttoptr(counter, I64.as_pointer()), c.number(1), "acq_rel")

    return _lowered(1, write, types.int64)


@intrinsic
def look(typing, counter):
    """The int64 at an address as other threads left it."""

    def write(c: _Code, counter: Value) -> Value:
        return c.b.load_atomic(c.b.inttoptr(counter, I64.as_pointer()), "acquire", 8)

    return _lowered(1, write, types.int64)


CAN_YIELD = binding.address_of_symbol("sched_yield") is not None


@intrinsic
def give_way(typing):
    """Lets another thread have the core, where the system has a call for it."""

    def write(c: _Code) -> None:
        if CAN_YIELD:
            c.b.call(cgutils.get_or_insert_function(c.b.module, ir.FunctionType(I32, []), "sched_yield"), [])

    return _lowered(0, write)


@intrinsic
def pointer(typing, address):
    """An address as a pointer to floats, for numba.carray."""

    def write(c: _Code, address: Value) -> Value:
        return c.b.inttoptr(address, F32.as_pointer())

    return _lowered(1, write, types.CPointer(types.float32))
