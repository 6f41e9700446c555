# mypy: ignore-errors
# numba's decorated functions have no types.
"""Products with packed weights, and how a team of threads shares the tasks of a phase; compiled by numba.

A phase is over when its tasks are done, not when all threads have come: tasks are claimed one by one, and a thread that
the system has put aside for another program is not waited for unless it holds one. (With barriers, two busy programs
beside us made a step a hundred times as slow.)

Rounded activations `acts` are three arrays: numbers uint8 [N, planes, K], scales fp32 [N, K / GROUP] and sums of four
bytes [N, K / GROUP], as `llama.integers` describes them.
"""

from __future__ import annotations

from typing import Any

import numba

from llama import integers
from llama import vectors as v

LANES, GROUP = v.LANES, v.GROUP
PATIENCE = 50_000  # looks at a phase that others are at, some 100 microseconds, before the core is offered
COUNTERS = 16  # int64 of a phase: tasks claimed, and on another cache line tasks done
# What is known of a matrix: bits, addresses of weight, scale and minimum, blocks, groups. A layer has seven of them.
FIELDS = 6
BITS, WEIGHT, SCALE, MINIMUM, BLOCKS, GROUPS = range(FIELDS)
PART = 64  # rows of a task where there are more of them
ROWS = 4  # rows of a task that is done row by row

compiled: Any = numba.njit(nogil=True, cache=True, error_model="numpy")
# Sums along a row may be taken in any order, the same one for every row.
reducing: Any = numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract"})


# Not kept on the disk by itself: numba cannot build a generator that it finds there into another function.
@numba.njit(nogil=True)
def shared(counters, phase, tasks):
    """Gives the numbers of a member's tasks in a phase one by one, and ends when all members' tasks are done.

    Asking for the next one says that the last one is done. Tasks that do not exist are claimed too, in the end.
    """
    claimed = counters.ctypes.data + phase * COUNTERS * 8
    done, looks = claimed + COUNTERS // 2 * 8, 0
    task = v.arrive(claimed)
    while task < tasks:
        yield task
        v.arrive(done)
        task = v.arrive(claimed)
    while v.look(done) < tasks:
        looks += 1
        if looks > PATIENCE:
            v.give_way()


@compiled
def by_rows(rows):
    """Tasks of ROWS rows each."""
    return (rows + ROWS - 1) // ROWS


@compiled
def rows_of(task, rows):
    """The rows of such a task."""
    return range(task * ROWS, min((task + 1) * ROWS, rows))


@compiled
def shares(blocks, rows):
    """How many shares a matrix's blocks are cut into."""
    return blocks if rows > PART else min(blocks, max(12, blocks // 16))


@compiled
def tasks_of(matrix, rows):
    """Tasks of a product: shares of the outputs times parts of the rows."""
    return shares(matrix[BLOCKS], rows) * ((rows + PART - 1) // PART)


@compiled
def part_of(matrix, task, rows):
    """A task's part of a product: its blocks from first to before last, its rows from start to before stop."""
    blocks = matrix[BLOCKS]
    cut = shares(blocks, rows)
    share, start = task % cut, task // cut * PART
    return share * blocks // cut, (share + 1) * blocks // cut, start, min(start + PART, rows)


@compiled
def round_row(matrix, x, first, acts, row):
    """Rounds floats x, the inputs from group `first` on, for a product with a matrix."""
    numbers, scales, sums = acts
    at = numbers.ctypes.data + row * numbers.strides[0] + first * GROUP
    scale = scales.ctypes.data + (row * scales.shape[1] + first) * 4
    total = sums.ctypes.data + (row * sums.shape[1] + first) * 4
    if matrix[BITS] == 4:
        integers.rounded(1, x.ctypes.data, len(x), at, numbers.strides[1], scale, total)
    else:
        integers.rounded(2, x.ctypes.data, len(x), at, numbers.strides[1], scale, total)


@compiled
def times(matrix, part, acts, out, ldo):
    """A part of the outputs. out: the address of the part's first output; ldo: floats from row to row."""
    first, last, start, stop = part
    numbers, scales, sums = acts
    groups, four = matrix[GROUPS], matrix[BITS] == 4
    ldx, plane, lds = numbers.strides[0], numbers.strides[1], scales.shape[1]
    for block in range(first, last):
        w = matrix[WEIGHT] + block * groups * (16 if four else 32) * LANES
        s = matrix[SCALE] + block * groups * LANES * 2
        m = matrix[MINIMUM] + block * groups * LANES * 2
        row = start
        while row < stop:
            x = numbers.ctypes.data + row * ldx
            c, u = scales.ctypes.data + row * lds * 4, sums.ctypes.data + row * lds * 4
            to = out + ((row - start) * ldo + (block - first) * LANES) * 4
            if stop - row >= 4:
                if four:
                    integers.product(4, 4, w, s, m, groups, x, ldx, plane, c, u, lds, to, ldo)
                else:
                    integers.product(4, 8, w, s, m, groups, x, ldx, plane, c, u, lds, to, ldo)
                row += 4
            elif stop - row >= 2:
                if four:
                    integers.product(2, 4, w, s, m, groups, x, ldx, plane, c, u, lds, to, ldo)
                else:
                    integers.product(2, 8, w, s, m, groups, x, ldx, plane, c, u, lds, to, ldo)
                row += 2
            else:
                if four:
                    integers.product(1, 4, w, s, m, groups, x, ldx, plane, c, u, lds, to, ldo)
                else:
                    integers.product(1, 8, w, s, m, groups, x, ldx, plane, c, u, lds, to, ldo)
                row += 1


@compiled
def product(counters, phase, matrix, acts, out):
    """out [N, blocks * LANES] = activations times a matrix. One phase."""
    rows, width = out.shape
    for task in shared(counters, phase, tasks_of(matrix, rows)):
        part = part_of(matrix, task, rows)
        times(matrix, part, acts, out.ctypes.data + (part[2] * width + part[0] * LANES) * 4, width)


@compiled
def linear(member, counters, matrix, x, numbers, scales, sums, out):
    """out [N, blocks * LANES] = x [N, K] times a packed matrix; the other arrays are scratch. Two phases."""
    acts, rows = (numbers, scales, sums), len(x)
    for task in shared(counters, 0, by_rows(rows)):
        for n in rows_of(task, rows):
            round_row(matrix, x[n], 0, acts, n)
    product(counters, 1, matrix, acts, out)
