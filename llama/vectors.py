# mypy: ignore-errors
# llvmlite has no types.
"""Vector arithmetic for the CPU's decode step: a few loops written as LLVM instructions, through numba's intrinsics.

numba's own loops check for aliasing at every step, which costs more than the arithmetic when vectors are short. Here
accumulators stay in registers. LLVM maps the vectors to what the CPU has (AVX-512, AVX2, NEON). Everything takes plain
addresses as int64, for the caller keeps arrays of them; nothing is checked. Every sum has one order, whatever is
computed beside it. Products with packed weights lie in `llama.integers`.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import tempfile
import time
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
STALE = 30 * 86400  # seconds after which what other versions compiled is removed


def _cache_folder() -> str:
    """Where numba keeps what it compiled: a folder for these very sources, which it would not all compare itself."""
    here = Path(__file__).parent
    sources = b"".join(
        (here / f"{name}.py").read_bytes() for name in ("vectors", "integers", "products", "low_rank", "step")
    )
    root = Path(numba.config.CACHE_DIR or here / "__pycache__")
    folder = root / f"step-{hashlib.sha256(sources).hexdigest()[:16]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for other in root.glob("step-*"):
            if other != folder and other.stat().st_mtime < time.time() - STALE:
                shutil.rmtree(other, ignore_errors=True)
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix="paddock-"))
    return str(folder)


numba.config.CACHE_DIR = _cache_folder()
# LLVM avoids the widest registers, which once lowered the clock; here they are worth 1.7 times the speed.
if numba.config.CPU_FEATURES is None:
    numba.config.CPU_FEATURES = get_host_cpu_features() + (
        ",-prefer-256-bit" if platform.machine() in ("x86_64", "AMD64") else ""
    )

FEATURES = str(numba.config.CPU_FEATURES).split(",")

Value = ir.Value
F32, I8, I32, I64 = ir.FloatType(), ir.IntType(8), ir.IntType(32), ir.IntType(64)


class Code:
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

    def store(self, value: Value, address: Value, offset: Value, width: int = 4) -> None:
        self.b.store(value, self.place(address, offset, value.type, width)).align = width

    def reduce(self, name: str, vector: Value) -> Value:
        """One number of a vector's: 'add' of integers, 'fmax' of floats."""
        kind = vector.type
        letter = "f" if kind.element == F32 else "i"
        function = ir.FunctionType(kind.element, [kind])
        name = f"llvm.vector.reduce.{name}.v{kind.count}{letter}32"
        return self.b.call(cgutils.get_or_insert_function(self.b.module, function, name), [vector])

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


def lowered(count: int, write: Any, result: Any = types.none, literals: tuple[Any, ...] = ()) -> Any:
    """What numba's `intrinsic` wants: a signature of `count` int64, the first ones literals; and the code's writer."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Value:
        found = write(Code(builder), *args)
        return context.get_dummy_value() if found is None else found

    return result(*literals, *[types.int64] * (count - len(literals))), generate


def _halved(c: Code, vectors: list[Value]) -> Value:
    """The sum of each vector's 16 numbers, all in one vector. vectors: one, or 16.

    Of every vector the upper half is added to the lower one, until one number is left. Of two vectors that is done at
    once, their halves side by side.
    """
    block = 16
    while block > 1:
        half, size = block // 2, vectors[0].type.count
        pairs = list(zip(vectors[::2], vectors[1::2], strict=True)) if len(vectors) > 1 else [(vectors[0], vectors[0])]
        starts = [
            at for source in range(min(2, len(vectors))) for at in range(source * size, (source + 1) * size, block)
        ]
        places = [[at + upper + i for at in starts for i in range(half)] for upper in (0, half)]
        chosen = [ir.Constant(ir.VectorType(I32, len(each)), each) for each in places]
        vectors = [c.b.fadd(*(c.b.shuffle_vector(x, y, each) for each in chosen)) for x, y in pairs]
        block = half
    return vectors[0]


@intrinsic
def dots(typing, x, ys, size, out):
    """out[j] = the scalar product of `size` floats (a multiple of 16) with row j of the 16 at ys."""

    def write(c: Code, x: Value, ys: Value, size: Value, out: Value) -> None:
        b, zero = c.b, c.vector(0.0, 16)
        totals = [c.variable(zero) for _ in range(16)]
        for total in totals:
            b.store(zero, total)
        with cgutils.for_range_slice(b, c.number(0), size, c.number(16)) as (at, _):
            given = c.floats(x, at, 16)
            for j, total in enumerate(totals):
                c.add_product(total, given, c.floats(ys, b.add(b.mul(c.number(j), size), at), 16))
        c.store(_halved(c, [b.load(each) for each in totals]), out, c.number(0))

    return lowered(4, write)


@intrinsic(prefer_literal=True)
def add_weighted(typing, queries, weights, ldw, count, rows, size, out, ldo):
    """out[q, e] += the sum over t < count of weights[q, t] * rows[t, e], for e < size (a multiple of CHUNK).

    queries: a literal; ldw, ldo: floats from a query's weights, or sums, to the next one's.
    """
    number = queries.literal_value

    def write(c: Code, _q: Value, weights: Value, ldw: Value, count: Value, rows: Value, size: Value, out: Value,
              ldo: Value) -> None:  # fmt: skip
        b = c.b
        totals = [c.variable(c.vector(0.0, CHUNK)) for _ in range(number)]
        with cgutils.for_range_slice(b, c.number(0), size, c.number(CHUNK)) as (at, _):
            places = [b.add(b.mul(c.number(q), ldo), at) for q in range(number)]
            for total, place in zip(totals, places, strict=True):
                b.store(c.floats(out, place, CHUNK), total)
            with cgutils.for_range(b, count) as t:
                row = c.floats(rows, b.add(b.mul(t.index, size), at), CHUNK)
                for q, total in enumerate(totals):
                    weight = c.load(weights, b.add(b.mul(c.number(q), ldw), t.index), F32, 4)
                    c.add_product(total, c.splat(weight, CHUNK), row)
            for total, place in zip(totals, places, strict=True):
                c.store(b.load(total), out, place)

    return lowered(8, write, literals=(queries,))


def _exp(c: Code, x: Value) -> Value:
    """exp of 16 floats within [-87, 87]; what lies beyond counts as the bound.

    2^n * p(r) with n = round(x / ln 2) and p the Taylor polynomial of degree 6 on |r| <= ln 2 / 2: within 3e-7.
    """
    b, v = c.b, lambda value: c.vector(value, 16)
    given = c.call("minnum", c.call("maxnum", x, v(-87.0)), v(87.0))
    n = c.call("rint", b.fmul(given, v(1.4426950408889634)))
    r = c.call("fma", n, v(-0.693145751953125), given)
    r = c.call("fma", n, v(-1.428606820309417e-06), r)
    total = v(1 / 720)
    for factor in (1 / 120, 1 / 24, 1 / 6, 0.5, 1.0, 1.0):
        total = c.call("fma", total, r, v(factor))
    ints = ir.VectorType(I32, 16)
    power = b.shl(b.add(b.fptosi(n, ints), ir.Constant(ints, [127] * 16)), ir.Constant(ints, [23] * 16))
    return b.fmul(total, b.bitcast(power, ir.VectorType(F32, 16)))


@intrinsic
def widen(typing, halves, count, out):
    """out[i] = the fp16 numbers at an address as floats, for i < count (a multiple of 16)."""

    def write(c: Code, halves: Value, count: Value, out: Value) -> None:
        b = c.b
        with cgutils.for_range_slice(b, c.number(0), count, c.number(16)) as (at, _):
            given = c.load(halves, at, ir.VectorType(ir.HalfType(), 16), 2)
            c.store(b.fpext(given, ir.VectorType(F32, 16)), out, at)

    return lowered(3, write)


@intrinsic
def narrow(typing, floats, count, out):
    """The floats at an address to fp16 at another, for i < count (a multiple of 16); the largest stays finite."""

    def write(c: Code, floats: Value, count: Value, out: Value) -> None:
        b, most = c.b, 65504.0
        with cgutils.for_range_slice(b, c.number(0), count, c.number(16)) as (at, _):
            given = c.call("minnum", c.floats(floats, at, 16), c.vector(most, 16))
            given = c.call("maxnum", given, c.vector(-most, 16))
            c.store(b.fptrunc(given, ir.VectorType(ir.HalfType(), 16)), out, at, 2)

    return lowered(3, write)


@intrinsic
def softmax(typing, scores, length, size, part):
    """Scores of heads of `size` to weights exp(score / sqrt(size) - largest), in place; part = [largest, their sum].

    Writes up to the next multiple of 16 behind `length` > 0, and 16 beyond.
    """

    def write(c: Code, scores: Value, length: Value, size: Value, part: Value) -> None:
        b, lowest = c.b, c.vector(-3e38, 16)
        factor = b.fdiv(ir.Constant(F32, 1.0), c.call("sqrt", b.sitofp(size, F32)))
        c.store(lowest, scores, length)  # what lies behind counts as nothing
        most, total = c.variable(lowest), c.variable(c.vector(0.0, 16))
        b.store(lowest, most)
        b.store(c.vector(0.0, 16), total)
        with cgutils.for_range_slice(b, c.number(0), length, c.number(16)) as (at, _):
            b.store(c.call("maxnum", b.load(most), c.floats(scores, at, 16)), most)
        largest = c.reduce("fmax", b.load(most))
        with cgutils.for_range_slice(b, c.number(0), length, c.number(16)) as (at, _):
            below = b.fsub(c.floats(scores, at, 16), c.splat(largest, 16))
            weights = _exp(c, b.fmul(below, c.splat(factor, 16)))
            c.store(weights, scores, at)
            b.store(b.fadd(b.load(total), weights), total)
        c.store(b.fmul(largest, factor), part, c.number(0))
        c.store(_halved(c, [b.load(total)]), part, c.number(1))

    return lowered(4, write)


@intrinsic
def silu_times(typing, gate, up, count):
    """gate[i] = silu(gate[i]) * up[i] for i < count (a multiple of 16)."""

    def write(c: Code, gate: Value, up: Value, count: Value) -> None:
        b = c.b
        with cgutils.for_range_slice(b, c.number(0), count, c.number(16)) as (at, _):
            given = c.floats(gate, at, 16)
            below = b.fadd(c.vector(1.0, 16), _exp(c, b.fsub(c.vector(0.0, 16), given)))
            c.store(b.fmul(b.fdiv(given, below), c.floats(up, at, 16)), gate, at)

    return lowered(3, write)


@intrinsic
def arrive(typing, counter):
    """Adds one to the int64 at an address, seen by all threads; gives what was there before."""

    def write(c: Code, counter: Value) -> Value:
        return c.b.atomic_rmw("add", c.b.inttoptr(counter, I64.as_pointer()), c.number(1), "acq_rel")

    return lowered(1, write, types.int64)


@intrinsic
def look(typing, counter):
    """The int64 at an address as other threads left it."""

    def write(c: Code, counter: Value) -> Value:
        return c.b.load_atomic(c.b.inttoptr(counter, I64.as_pointer()), "acquire", 8)

    return lowered(1, write, types.int64)


CAN_YIELD = binding.address_of_symbol("sched_yield") is not None


@intrinsic
def give_way(typing):
    """Lets another thread have the core, where the system has a call for it."""

    def write(c: Code) -> None:
        if CAN_YIELD:
            c.b.call(cgutils.get_or_insert_function(c.b.module, ir.FunctionType(I32, []), "sched_yield"), [])

    return lowered(0, write)
