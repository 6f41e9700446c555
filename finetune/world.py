"""How a run shares its work among processes; here, with nobody."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from finetune.learner import Learner


class Alone:
    """One process. `finetune.distributed` has those of several."""

    rank, size = 0, 1

    def prepare(self, learner: Learner) -> Any:
        """What is called in the learner's place; its parameters may be others afterwards."""
        return learner

    @contextlib.contextmanager
    def accumulating(self, module: nn.Module, more: bool) -> Iterator[None]:
        """Around forward and backward of a micro-batch; `more`: the step has another one, so nothing is exchanged."""
        yield

    def total(self, *values: float) -> list[float]:
        """The sums of the values over all processes."""
        return list(values)

    def whole(self, tensor: Tensor) -> Tensor:
        """A tensor of which each process may hold a part, detached."""
        return tensor.detach()

    def part(self, whole: Tensor, like: Tensor) -> Tensor:
        """Of a whole tensor what this process holds, as `like` is held."""
        return whole

    def save(self, write: Callable[[], object], learner: Learner) -> None:
        """Has one process call `write` while the learner holds whole tensors."""
        write()

    def wait(self) -> None:
        """Returns when all processes are here."""

    def close(self) -> None:
        """Ends the connection to the other processes."""
