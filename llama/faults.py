"""All that is wrong with a checkpoint's tensors, as one line that a person can read."""

from __future__ import annotations

import re
from collections.abc import Iterable

BLOCK = re.compile(r"(?:(?<=\bblk\.)|(?<=\blayers\.))(\d+)(?=\.)")
MOST = 40  # that are named of a kind
LONGEST = 200  # characters of one; a name is data from outside


def one_line(kinds: Iterable[Iterable[str]]) -> str:
    """Faults by their kinds, each once, those that differ in the number of the block as one; empty where none is.

    Of a kind with very many, the first are named, and how many more there are is said.
    """
    said = []
    for kind in kinds:
        faults = _grouped(kind)
        said += [_plain(fault) for fault in faults[:MOST]]
        if len(faults) > MOST:
            said.append(f"and {len(faults) - MOST} more like the last")
    return "; ".join(said)


def _plain(fault: str) -> str:
    fault = "".join(c if c.isprintable() else "?" for c in fault)
    return fault if len(fault) <= LONGEST else fault[:LONGEST] + "…"


def _grouped(faults: Iterable[str]) -> list[str]:
    """The same faults, those that differ in the number of the block only as one: blk.0-31.attn_q.bias."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for fault in faults:
        before, *rest = BLOCK.split(fault, maxsplit=1)  # and, where there is a block, its number and what follows
        groups.setdefault((before, *rest[1:]), []).extend(map(int, rest[:1]))
    return [_ranges(sorted(set(numbers))).join(key) if numbers else key[0] for key, numbers in groups.items()]


def _ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] -> "0-2,5"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ",".join("-".join(map(str, run)) for run in runs)
