"""A time limit for pure-Python code that works in any thread."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

AGAIN = 1.0  # s; code may swallow even TimeUp, so it is raised until the code gives up


class TimeUp(BaseException):
    """The time is up. Not an Exception, so that a library's `except Exception` does not swallow it."""


def run_limited(seconds: float, call: Callable[[], T]) -> T:
    """What `call` returns. Raises TimeUp inside it, at a Python instruction, once `seconds` have passed."""
    watcher = _Watcher(seconds)
    try:
        watcher.start()
        try:
            return call()
        finally:
            watcher.stop()
    finally:
        watcher.stop()  # again: TimeUp may have cut the first one short


class _Watcher:
    """Raises TimeUp in the thread that made it, until stopped.

    TimeUp may strike between any two instructions here too. So the signal to stop is one call into C (an Event could be
    left locked for ever), and a TimeUp on its way is waited for: to take it back by PyThreadState_SetAsyncExc(None)
    leaves CPython 3.11's evaluation loop slow for good.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.target = ctypes.c_ulong(threading.get_ident())
        self.working = threading.Lock()  # released when the work is done
        self.working.acquire()
        self.thread = threading.Thread(target=self.watch, daemon=True, name="time-limit")
        self.start = self.thread.start

    def watch(self) -> None:
        wait = self.seconds
        while not self.working.acquire(timeout=wait):
            ctypes.pythonapi.PyThreadState_SetAsyncExc(self.target, ctypes.py_object(TimeUp))
            wait = AGAIN

    def stop(self) -> None:
        """No TimeUp comes after this."""
        while self.thread.ident is not None:
            try:
                if self.working.locked():
                    self.working.release()
                self.thread.join()
                for _ in range(3):
                    pass  # here strikes what was on its way
                return
            except (TimeUp, RuntimeError):  # RuntimeError: released by the watcher's end in between
                continue
