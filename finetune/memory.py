"""Memory that runs out, in one line that says what to lower."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from finetune.errors import FinetuneError


@contextlib.contextmanager
def memory(told: str) -> Iterator[None]:
    """told: when it ran out, and what to do. Raises FinetuneError in place of what torch and the system raise."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        known = isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)
        if not known:
            raise
        raise FinetuneError(f"memory ran out {told}") from error
