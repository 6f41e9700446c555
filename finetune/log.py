"""What a run tells: a JSON line a step, TensorBoard, and whoever listens."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from finetune.checkpoints import writing

Listener = Callable[[dict[str, Any]], None]
Tell = Callable[[str], None]


class Log:
    """Records of a run, in log.jsonl and for TensorBoard in the same folder. Each has a `step`, from 1."""

    def __init__(self, folder: Path, listen: Listener, after: int = 0, tell: Tell = print) -> None:
        """after: the step that the run goes on behind; what an interrupted run wrote of later ones is dropped."""
        from torch.utils.tensorboard import SummaryWriter

        self._path, self._listen, self._tell = folder / "log.jsonl", listen, tell
        # A run that begins anew validates before its first step once more, so of step 0 nothing is kept either.
        kept = [row for row in read_log(folder) if 0 < after >= row["step"]]
        with writing(self._path, training=True):
            folder.mkdir(parents=True, exist_ok=True)
            self._path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
            self._file = self._path.open("a", encoding="utf-8")
        purged = after + 1 if after else None
        # The board's writing thread would print a traceback of a full disk, which is told in one line below.
        self._others, threading.excepthook = threading.excepthook, self._of_thread
        self._board = self._drawn(lambda: SummaryWriter(str(folder / "tensorboard"), purge_step=purged))

    def __call__(self, record: dict[str, Any]) -> None:
        with writing(self._path, training=True):
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        for name, value in record.items():
            if self._board is not None and name != "step" and isinstance(value, float):
                self._drawn(partial(self._board.add_scalar, name, value, record["step"]))
        self._listen(record)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what could not be written was told when it was
            self._file.close()
        self._drawn(lambda: self._board and self._board.close())
        threading.excepthook = self._others

    def _of_thread(self, failed: threading.ExceptHookArgs) -> None:
        if not type(failed.thread).__module__.startswith("tensorboard."):
            self._others(failed)

    def _drawn(self, draw: Callable[[], Any]) -> Any:
        """Calls what has to do with the board. The run does without it where it fails, and says so once."""
        try:
            return draw()
        except Exception as error:
            self._board = None
            self._tell(f"TensorBoard's curves cannot be written: {error}; the run goes on without them")


class Silent:
    """What processes but the first write to."""

    def __call__(self, record: dict[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The records of a run so far; a line that was cut off is left out."""
    path, found = folder / "log.jsonl", []
    for line in path.read_text("utf-8").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            found.append(row)
    return found
