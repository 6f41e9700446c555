"""What can go wrong in fine-tuning, in one line for the user."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FinetuneError(Exception):
    """A configuration, dataset, adapter or machine that cannot be used; the message says why and what to do."""


class Interrupted(FinetuneError):
    """A run that the user ended, and that can go on."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Of the known names the one that is spelled most alike."""
    return difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)[0]
