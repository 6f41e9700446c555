"""Which examples are computed when: a function of seed and step alone, so that a run can go on anywhere."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Collection, Sequence

from finetune.data.samples import Example


def split(
    examples: Sequence[Example], val_size: float, seed: int, aside: Collection[str] = ()
) -> tuple[list[Example], list[Example]]:
    """(for training, for validation), whole documents each. val_size: a share of them below 1, else their number.

    aside: documents that are validated on besides; of the others at least one stays for training, and nothing is kept
    aside where there is one only.
    """
    groups = sorted({each.group for each in examples}.difference(aside))
    wanted = round(val_size * len(groups)) if val_size < 1 else int(val_size)
    wanted = max(wanted, val_size > 0)
    random.Random(seed).shuffle(groups)
    kept = {*groups[: max(0, min(wanted, len(groups) - 1))], *aside}
    return [e for e in examples if e.group not in kept], [e for e in examples if e.group in kept]


def packs(examples: Sequence[Example], size: int) -> list[tuple[int, ...]]:
    """Examples joined, the longest first, each to the first pack of `size` tokens that has room."""
    made: list[tuple[int, list[int]]] = []
    for index in sorted(range(len(examples)), key=lambda i: -len(examples[i].ids)):
        length = len(examples[index].ids)
        place = next((k for k, (used, _) in enumerate(made) if used + length <= size), None)
        if place is None:
            made.append((length, [index]))
        else:
            made[place] = (made[place][0] + length, [*made[place][1], index])
    return [tuple(indices) for _, indices in made]


class Plan:
    """The order of a run. A unit is an example, or a pack of them."""

    def __init__(
        self,
        units: Sequence[Sequence[int]],
        lengths: Sequence[int],
        batch_size: int,
        micro_tokens: int,
        epochs: float,
        max_steps: int | None,
        seed: int,
        processes: int = 1,
    ) -> None:
        self._units, self._lengths = list(units), list(lengths)
        self._batch, self._micro, self._seed, self._processes = batch_size, micro_tokens, seed, processes
        steps = max(1, math.ceil(epochs * len(units) / batch_size))
        self.steps = steps if max_steps is None else min(steps, max_steps)
        # Where max_steps does not bind, the last step is as large as without it: nothing of a further epoch is learned.
        self._total = min(round(epochs * len(units)), self.steps * batch_size)
        self._orders: dict[int, list[int]] = {}

    def step(self, number: int) -> list[list[list[int]]]:
        """The examples of step `number` (from 0): for each process its micro-batches, each a list of examples."""
        end = min((number + 1) * self._batch, max(self._total, self._processes))
        chosen = [self._unit(place) for place in range(number * self._batch, end)]
        if len(chosen) < self._processes:  # each process needs something to do
            chosen = [self._unit(number * self._batch + k) for k in range(self._processes)]
        return self._shares(chosen)

    def _unit(self, place: int) -> int:
        epoch, inside = divmod(place, len(self._units))
        if epoch not in self._orders:
            order = list(range(len(self._units)))
            random.Random(f"{self._seed}/{epoch}").shuffle(order)
            self._orders = {epoch: order, **{k: v for k, v in self._orders.items() if k == epoch - 1}}
        return self._orders[epoch][inside]

    def _shares(self, chosen: Sequence[int]) -> list[list[list[int]]]:
        """Micro-batches of about equal length, as many for each process, and as few as the limit allows."""
        sizes = {unit: sum(self._lengths[i] for i in self._units[unit]) for unit in chosen}
        most = max(1, len(chosen) // self._processes)
        rounds = min(most, max(1, math.ceil(sum(sizes[u] for u in chosen) / (self._micro * self._processes))))
        while True:
            bins = self._balanced(chosen, sizes, rounds * self._processes)
            if rounds == most or max(sum(sizes[u] for u in each) for each in bins) <= self._micro:
                break
            rounds += 1
        whole = [[i for unit in each for i in self._units[unit]] for each in bins]
        return [whole[rank :: self._processes] for rank in range(self._processes)]

    @staticmethod
    def _balanced(chosen: Sequence[int], sizes: dict[int, int], count: int) -> list[list[int]]:
        """The longest first, each to the bin that has least."""
        bins: list[list[int]] = [[] for _ in range(count)]
        heap = [(0, k) for k in range(count)]
        for unit in sorted(chosen, key=lambda u: (-sizes[u], u)):
            used, place = heapq.heappop(heap)
            bins[place].append(unit)
            heapq.heappush(heap, (used + sizes[unit], place))
        return bins
