"""Progress of long work: a bar with the time left on a terminal, plain lines elsewhere. Always on standard error."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from tqdm import tqdm

if TYPE_CHECKING:
    from ingest.sync import Event

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
        print(
            f"{self.done} of {self.total} {self.unit}s, about {left:.0f} s left ({what})", file=sys.stderr, flush=True
        )


@contextlib.contextmanager
def ingest_bar() -> Iterator[Callable[[Event], None]]:
    """Yields a listener for the events of `ingest.sync`: a bar over bytes on a terminal, plain lines elsewhere."""
    if sys.stderr.isatty():
        with tqdm(total=0, unit="B", unit_scale=True, dynamic_ncols=True, leave=False, file=sys.stderr) as line:

            def show(event: Event) -> None:
                line.total = event.total_bytes
                line.set_description_str(event.kind, refresh=False)
                line.set_postfix_str((event.source or "")[-40:], refresh=False)
                line.update(event.done_bytes - line.n)

            yield show
    else:
        started = time.monotonic()
        told = started

        def tell(event: Event) -> None:
            nonlocal told
            now = time.monotonic()
            if event.kind == "wait":
                print("another paddock is ingesting; waiting for it", file=sys.stderr, flush=True)
            elif now - told >= LINE_EVERY_S and event.done_files:
                told = now
                left = (now - started) / event.done_bytes * (event.total_bytes - event.done_bytes)
                print(
                    f"{event.done_files} of {event.total_files} files, about {left:.0f} s left ({event.source})",
                    file=sys.stderr,
                    flush=True,
                )

        yield tell
