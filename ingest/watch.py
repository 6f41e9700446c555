"""Watches the inbox and calls sync, once the files are quiet."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver
from watchdog.observers.polling import PollingObserver

from ingest.inbox import TEMPORARY, ensure_folder
from ingest.report import Report
from ingest.sync import Ingestor

log = logging.getLogger("paddock.ingest")

CHANGES = {"created", "modified", "moved", "deleted", "closed"}  # not: opened, closed_no_write, which reading causes
LONGEST_WAIT = 30.0  # s; a file that is written to all the time does not keep the others waiting for ever
FIRST_RETRY, LAST_RETRY = 5.0, 300.0  # s


class Watcher(FileSystemEventHandler):
    """Calls `ingestor.sync` for each knowledge base touched, after `debounce_s` seconds without a change in it."""

    def __init__(self, ingestor: Ingestor, on_report: Callable[[Report], None], debounce_s: float = 1.0) -> None:
        self.ingestor = ingestor
        self.on_report = on_report
        self.debounce_s = debounce_s
        self._due: dict[str, float] = {}  # knowledge base -> when to sync it
        self._first: dict[str, float] = {}  # knowledge base -> when its first change was
        self._retry: dict[str, float] = {}  # knowledge base -> how long to wait after the next failure
        self._wake = threading.Condition()
        self._stopping = False
        self._observer: BaseObserver | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begins to watch; what changed before is not looked for. Raises IngestError if there can be no inbox."""
        root = self.ingestor.inbox.root
        ensure_folder(root)
        self._stopping = False
        self._observer = self._observe(root)
        self._thread = threading.Thread(target=self._run, name="paddock-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends watching; waits for a sync under way."""
        with self._wake:
            self._stopping = True
            self._wake.notify_all()
        if self._observer is not None:
            self._observer.stop()
            self._observer.join()
            self._observer = None
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _observe(self, root: Path) -> BaseObserver:
        for make in (Observer, PollingObserver):
            observer: BaseObserver = make()
            try:
                observer.schedule(self, str(root), recursive=True)
                observer.start()
            except OSError as error:  # no inotify watches left, or a file system without them
                log.warning("watching %s by polling: %s", root, error)
                continue
            return observer
        raise AssertionError("polling needs nothing that can fail")

    # -- events ----------------------------------------------------------------------------------------------------

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Notes which knowledge base an event concerns."""
        if event.event_type not in CHANGES or (event.is_directory and event.event_type == "modified"):
            return
        for name in (event.src_path, event.dest_path):
            if not name:
                continue
            kb = self._kb_of(Path(name if isinstance(name, str) else name.decode("utf-8", "replace")), event)
            if kb is not None:
                self._touch(kb)

    def _kb_of(self, path: Path, event: FileSystemEvent) -> str | None:
        try:
            parts = path.relative_to(self.ingestor.inbox.root).parts
        except ValueError:
            return None
        if not parts or any(TEMPORARY.search(part) for part in parts):
            return None
        return parts[0] if len(parts) > 1 or event.is_directory else "default"

    def _touch(self, kb: str) -> None:
        now = time.monotonic()
        with self._wake:
            first = self._first.setdefault(kb, now)
            self._due[kb] = min(now + self.debounce_s, first + max(LONGEST_WAIT, self.debounce_s))
            self._wake.notify_all()

    # -- the thread that syncs ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        while (kb := self._next()) is not None:
            try:
                if kb in self.ingestor.kbs():
                    self.on_report(self.ingestor.sync(kb))
                self._retry.pop(kb, None)
            except Exception as error:
                wait = self._retry.get(kb, FIRST_RETRY)
                self._retry[kb] = min(2 * wait, LAST_RETRY)
                log.warning("knowledge base '%s' could not be brought up to date: %s", kb, error)
                with self._wake:
                    self._due.setdefault(kb, time.monotonic() + wait)

    def _next(self) -> str | None:
        """Waits for a knowledge base whose time has come; None when stopping."""
        with self._wake:
            while not self._stopping:
                now = time.monotonic()
                kb = min(self._due, key=self._due.__getitem__, default=None)
                if kb is not None and self._due[kb] <= now:
                    del self._due[kb]
                    self._first.pop(kb, None)
                    return kb
                self._wake.wait(None if kb is None else self._due[kb] - now)
        return None
