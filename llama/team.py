"""Threads that work on one product together, without an OpenMP of their own beside torch's."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np


class Team:
    """`size` threads, the caller among them, that share the tasks of one compiled function.

    A function takes its member's number and counters, 16 int64 for each of its phases; members claim tasks from them
    and return when all tasks of all phases are done (`llama.products`). It lets go of the interpreter meanwhile. A team
    does one thing at a time.
    """

    def __init__(self, size: int) -> None:
        self.size = max(1, size)
        self._turn = threading.Lock()
        self._others = ThreadPoolExecutor(self.size, "paddock-team")

    def run(self, function: Callable[..., None], phases: int, *args: Any) -> None:
        """Calls function(member, counters, *args) for every member and returns when all tasks are done.

        Members that come late find nothing to do; they are not waited for, and touch nothing but the counters.
        """
        counters = np.zeros(phases * 16, dtype=np.int64)
        with self._turn:
            others = [self._others.submit(function, member, counters, *args) for member in range(1, self.size)]
            function(0, counters, *args)
            for each in others:
                each.cancel()
