"""Checkpoints that are there whole or not at all, and known to be so."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from finetune.errors import FinetuneError

TENSORS, STATE, SUMS = "tensors.safetensors", "state.json", "sha256.json"


@contextlib.contextmanager
def writing(path: Path, training: bool = False) -> Iterator[None]:
    """Puts what hinders writing into one line. training: a run can go on afterwards with --resume."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = getattr(error, "errno", None)
        full = number in (errno.ENOSPC, errno.EDQUOT) or f"os error {errno.ENOSPC}" in str(error)
        why = "the disk is full" if full else getattr(error, "strerror", None) or str(error)
        mend = "make room" if full else "see whether its folder is there and yours to write in"
        again = "go on with --resume" if training else "try again"
        raise FinetuneError(f"{path} cannot be written: {why}; {mend}, and {again}") from error


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file and has it on the disk when it returns."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_folder(target: Path, files: Mapping[str, bytes], training: bool = False) -> None:
    """A folder with these files in place of whatever is there; it appears in one step. Raises FinetuneError."""
    target = target.absolute()  # "." has no name, and is another place when what is there was moved away
    part, old = target.with_name(f".{target.name}.part"), _old(target)
    with writing(target, training):
        _put_back(target)
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        try:
            for name, data in files.items():
                write_whole(part / name, data)
            shutil.rmtree(old, ignore_errors=True)
            if target.exists():
                target.rename(old)
            part.rename(target)
            shutil.rmtree(old, ignore_errors=True)
        except OSError:
            shutil.rmtree(part, ignore_errors=True)
            _put_back(target)
            raise


def _old(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def _put_back(target: Path) -> None:
    """A kill between the two renames of `replace_folder` leaves the earlier folder whole, under another name."""
    if not target.exists():
        with contextlib.suppress(OSError):  # there is none, or another process of this run was faster
            _old(target).rename(target)


class Checkpoints:
    """The checkpoints of one run in its folder, the newest `keep` of them."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self._keep = folder, keep

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
        """Writes the checkpoint of a step. Raises FinetuneError where it cannot be."""
        target = self.folder / f"step-{step:07d}"
        _write(target, {TENSORS: save(dict(tensors)), STATE: json.dumps(state).encode()})
        for old in self._all()[: -self._keep]:
            shutil.rmtree(old, ignore_errors=True)
        return target

    def latest(self, tell: Any = None) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest that is whole; `tell` is given a line about each that is not. None where there is none."""
        for folder in reversed(self._all()):
            found = _read(folder)
            if found is not None:
                return found
            if tell is not None:
                tell(f"checkpoint {folder.name} is damaged or was cut short; it is passed over")
        return None

    def unfinished(self) -> bool:
        """Whether there is something to go on from, of a run that has not come to its end."""
        found = self.latest()
        return found is not None and not found[1].get("done")

    def save_best(self, tensors: Mapping[str, Tensor]) -> None:
        """Writes the values that validated best. Raises FinetuneError where they cannot be."""
        _write(self.folder / "best", {TENSORS: save(dict(tensors))})

    def best(self) -> dict[str, Tensor]:
        """The values that validated best. Raises FinetuneError where they are not whole."""
        _put_back(self.folder / "best")
        try:
            found = _whole(self.folder / "best", (TENSORS,))
            if found is not None:
                return load(found[TENSORS])
        except SafetensorError:
            pass  # told as any other damage
        raise FinetuneError(
            f"{self.folder / 'best'}, the values that validated best, is damaged or was cut short; begin the run anew "
            "with --restart"
        )

    def _all(self) -> list[Path]:
        for old in self.folder.glob(".step-*.old"):
            _put_back(self.folder / old.name[1 : -len(".old")])
        return sorted(path for path in self.folder.glob("step-*") if path.is_dir())


def _read(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    try:
        data = _whole(folder, (TENSORS, STATE))
        return None if data is None else (load(data[TENSORS]), json.loads(data[STATE]))
    except (ValueError, SafetensorError):
        return None


def _write(target: Path, files: Mapping[str, bytes]) -> None:
    """A run's folder of these files and their sums."""
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    replace_folder(target, {**files, SUMS: json.dumps(sums).encode()}, training=True)


def _whole(folder: Path, names: Sequence[str]) -> dict[str, bytes] | None:
    """What `_write` wrote; None where it is not that any more."""
    try:
        sums = json.loads((folder / SUMS).read_bytes())
        data = {name: (folder / name).read_bytes() for name in names}
        wrong = any(hashlib.sha256(each).hexdigest() != sums.get(name) for name, each in data.items())
        return None if wrong else data
    except (OSError, ValueError, AttributeError):
        return None
