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
    """Raises TimeUp in the thread that made it, until stopped."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.target = ctypes.c_ulong(threading.get_ident())
        self.finished = threading.Event()
        self.lock = threading.Lock()
        self.thread = threading.Thread(target=self.watch, daemon=True, name="time-limit")
        self.start = self.thread.start

    def watch(self) -> None:
        wait = self.seconds
        while not self.finished.wait(wait):
            self.throw(TimeUp)
            wait = AGAIN

    def throw(self, error: type[BaseException] | None) -> None:
        with self.lock:
            if error is None or not self.finished.is_set():
                thrown = None if error is None else ctypes.py_object(error)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(self.target, thrown)

    def stop(self) -> None:
        """No TimeUp comes after this; one that is on its way is taken back."""
        self.finished.set()
        self.throw(None)
