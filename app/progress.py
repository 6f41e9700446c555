"""Progress of long work: a bar with the time left on a terminal, plain lines elsewhere. Always on standard error."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from tqdm import tqdm

LINE_EVERY_S = 10.0


@contextlib.contextmanager
def bar(total: int, unit: str, quiet: bool = False) -> Iterator[Callable[[int, str], None]]:
    """Yields `advance(n, what)`. Without a terminal a line is printed every ten seconds, so that logs stay short."""
    if quiet:
        yield lambda n, what: None
    elif sys.stderr.isatty():
        with tqdm(total=total, unit=unit, dynamic_ncols=True, file=sys.stderr) as line:

            def advance(n: int, what: str) -> None:
                line.set_postfix_str(what[-40:], refresh=False)
                line.update(n)

            yield advance
    else:
        yield _Lines(total, unit)


class _Lines:
    """Plain lines: how far, and how long it will take at the pace so far."""

    def __init__(self, total: int, unit: str) -> None:
        self.total, self.unit, self.done = total, unit, 0
        self.started = self.told = time.monotonic()

    def __call__(self, n: int, what: str) -> None:
        self.done += n
        now = time.monotonic()
        if now - self.told < LINE_EVERY_S:
            return
        self.told = now
        left = (now - self.started) / max(self.done, 1) * (self.total - self.done)
        print(f"{self.done} of {self.total} {self.unit}s, about {left:.0f} s left ({what})", file=sys.stderr, flush=True)
