# mypy: ignore-errors
# numba's decorated functions have no types.
"""Products with packed weights, and how a team of threads shares the tasks of a phase; compiled by numba.

A phase is over when its tasks are done, not when all threads have come: tasks are claimed one by one, and a thread that
the system has put aside for another program is not waited for unless it holds one. (With barriers, two busy programs
beside us made a step a hundred times as slow.)
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from llama import vectors as v

LANES, GROUP = v.LANES, v.GROUP
PATIENCE = 50_000  # looks at a phase that others are at, some 100 microseconds, before the core is offered
COUNTERS = 16  # int64 of a phase: tasks claimed, and on another cache line tasks done
# What is known of a matrix: bits, addresses of weight, scale and minimum, blocks, groups. A layer has seven of them.
FIELDS = 6
BITS, WEIGHT, SCALE, MINIMUM, BLOCKS, GROUPS = range(FIELDS)

compiled: Any = numba.njit(nogil=True, cache=True, error_model="numpy")
# Sums along a row may be taken in any order, the same one for every row.
reducing: Any = numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract"})


@compiled
def claim(counters, phase):
    """The number of the next task of a phase; tasks that do not exist are claimed too, in the end."""
    return v.arrive(counters.ctypes.data + phase * COUNTERS * 8)


@compiled
def go_on(counters, phase):
    """Counts a task as done and claims the next one."""
    v.arrive(counters.ctypes.data + (phase * COUNTERS + COUNTERS // 2) * 8)
    return claim(counters, phase)


@compiled
def wait(counters, phase, tasks):
    """Returns when all tasks of a phase are done."""
    done, looks = counters.ctypes.data + (phase * COUNTERS + COUNTERS // 2) * 8, 0
    while v.look(done) < tasks:
        looks += 1
        if looks > PATIENCE:
            v.give_way()


@compiled
def shares(blocks):
    """How many tasks a matrix's blocks are cut into."""
    return min(blocks, max(12, blocks // 16))


@compiled
def blocks_times(matrix, first, last, x, ldx, sums, lds, rows, out, ldo):
    """Blocks first to last - 1 of a matrix times all rows. x, sums, out: addresses; out is that of output 0."""
    groups = matrix[GROUPS]
    four = matrix[BITS] == 4
    for block in range(first, last):
        w = matrix[WEIGHT] + block * groups * (16 if four else 32) * LANES
        s = matrix[SCALE] + block * groups * LANES * 2
        m = matrix[MINIMUM] + block * groups * LANES * 2
        row = 0
        while row < rows:
            xr, ur = x + row * ldx * 4, sums + row * lds * 4
            to = out + (row * ldo + block * LANES) * 4
            if rows - row >= 4:
                if four:
                    v.product4_int4(w, s, m, groups, xr, ldx, ur, lds, to, ldo)
                else:
                    v.product4_int8(w, s, m, groups, xr, ldx, ur, lds, to, ldo)
                row += 4
            elif rows - row >= 2:
                if four:
                    v.product2_int4(w, s, m, groups, xr, ldx, ur, lds, to, ldo)
                else:
                    v.product2_int8(w, s, m, groups, xr, ldx, ur, lds, to, ldo)
                row += 2
            else:
                if four:
                    v.product1_int4(w, s, m, groups, xr, ldx, ur, lds, to, ldo)
                else:
                    v.product1_int8(w, s, m, groups, xr, ldx, ur, lds, to, ldo)
                row += 1


@reducing
def sum_groups(matrix, x, sums):
    """sums[n, g] = sum of x[n, g * GROUP : (g + 1) * GROUP], which minima are multiplied with; int8 has none."""
    if matrix[BITS] != 4:
        return
    for n in range(x.shape[0]):
        for g in range(x.shape[1] // GROUP):
            total = np.float32(0)
            for k in range(g * GROUP, (g + 1) * GROUP):
                total += x[n, k]
            sums[n, g] = total


@compiled
def product(member, counters, matrix, x, sums, out):
    """out [N, blocks * LANES] = x [N, K] times a packed matrix; sums [team, N, K / GROUP] is scratch. One phase."""
    own, ready, tasks = sums[member], False, shares(matrix[BLOCKS])
    task = claim(counters, 0)
    while task < tasks:
        if not ready:
            sum_groups(matrix, x, own)
            ready = True
        times_share(matrix, task, tasks, x, own, out)
        task = go_on(counters, 0)
    wait(counters, 0, tasks)


@compiled
def times_share(matrix, task, tasks, x, sums, out):
    """A task's part of the outputs: out [N, ...] = x [N, K] times some blocks of a matrix."""
    blocks = matrix[BLOCKS]
    blocks_times(matrix, task * blocks // tasks, (task + 1) * blocks // tasks, x.ctypes.data, x.shape[1],
                 sums.ctypes.data, sums.shape[1], x.shape[0], out.ctypes.data, out.strides[0] // 4)  # fmt: skip


@compiled
def unpack(member, counters, matrix, out):
    """out [K, blocks * LANES] = the packed matrix as floats, transposed. One phase."""
    blocks, groups, width = matrix[BLOCKS], matrix[GROUPS], out.shape[1]
    tasks = shares(blocks)
    task = claim(counters, 0)
    while task < tasks:
        for block in range(task * blocks // tasks, (task + 1) * blocks // tasks):
            s = matrix[SCALE] + block * groups * LANES * 2
            to = out.ctypes.data + block * LANES * 4
            if matrix[BITS] == 4:
                w, m = matrix[WEIGHT] + block * groups * 16 * LANES, matrix[MINIMUM] + block * groups * LANES * 2
                v.unpack_int4(w, s, m, groups, to, width)
            else:
                v.unpack_int8(matrix[WEIGHT] + block * groups * 32 * LANES, s, s, groups, to, width)
        task = go_on(counters, 0)
    wait(counters, 0, tasks)
