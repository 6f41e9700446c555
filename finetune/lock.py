"""One process at a time trains what has a name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from finetune.checkpoints import writing
from finetune.errors import FinetuneError
from finetune.world import Alone


@contextlib.contextmanager
def held(folder: Path, world: Alone) -> Iterator[None]:
    """Around a run in `folder`: nobody else trains there meanwhile. Raises FinetuneError where somebody does.

    The system lets go of the lock when its process ends, however it does. Its file lies beside the folder, which a run
    that begins anew removes. Of several processes the first one takes it for all, and all learn what came of it.
    """
    path = folder.with_name(f".{folder.name}.lock")
    lock, error = FileLock(str(path)), None
    if world.rank == 0:
        try:
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(Timeout):  # an OSError, but nothing that hinders writing
                    lock.acquire(timeout=0)
        except FinetuneError as hindered:
            error = hindered
        else:
            if not lock.is_locked:
                error = FinetuneError(
                    f"'{folder.name}' is being trained by another process; wait for it, or give this one another name "
                    "(--set name=NAME)"
                )
    try:
        (refused,) = world.total(error is not None)
        if error is not None:
            raise error
        if refused:
            raise FinetuneError(f"the run '{folder.name}' could not begin; see what its first process says")
        yield
    finally:
        lock.release()
