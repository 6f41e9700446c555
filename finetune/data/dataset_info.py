"""LLaMA-Factory's dataset_info.json: datasets by name, with their files, forms and columns."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.config import COLUMNS
from finetune.data.readers import Layout
from finetune.data.samples import text_of
from finetune.errors import FinetuneError, nearest

KNOWN = {"file_name", "formatting", "ranking", "subset", "split", "num_samples", "columns", "tags"}
TAGS = ("role_tag", "content_tag", "user_tag", "assistant_tag", "observation_tag", "function_tag", "system_tag")


@dataclass(frozen=True)
class Entry:
    """A dataset as the file describes it: where it lies, the reader's name, and what its columns are called."""

    path: Path
    form: str
    layout: Layout
    num_samples: int | None


def entry(path: Path, name: str) -> Entry:
    """The dataset of that name. Raises FinetuneError for an unknown name, and for what cannot be trained on here."""
    try:
        known = json.loads(text_of(path))
    except (ValueError, RecursionError) as error:
        raise FinetuneError(f"{path} is not JSON ({error})") from error
    if not isinstance(known, dict) or not known:
        raise FinetuneError(f"{path} is not an object of datasets by name")
    if name not in known:
        raise FinetuneError(f"{path} has no dataset '{name}'; did you mean '{nearest(name, known)}'?")
    given = known[name]
    if not isinstance(given, dict) or not isinstance(given.get("file_name"), str):
        raise FinetuneError(f"dataset '{name}' of {path} has no 'file_name'; only files are read, nothing is fetched")
    for key in given:
        if key not in KNOWN:
            raise FinetuneError(f"dataset '{name}' of {path}: unknown '{key}'; did you mean '{nearest(key, KNOWN)}'?")
    if given.get("ranking"):
        raise FinetuneError(f"dataset '{name}' of {path} ranks answers, and there is no training from preferences here")
    # What LLaMA-Factory hands to another library. A file by itself is that one's split "train".
    for what, whole in (("subset", None), ("split", "train")):
        if given.get(what) not in (None, whole):
            raise FinetuneError(
                f"dataset '{name}' of {path}: {what} = {given[what]!r} is not read: a file is taken whole; leave it out"
            )
    for what in ("columns", "tags"):
        named = given.get(what) if given.get(what) is not None else {}
        if not isinstance(named, dict) or not all(isinstance(each, str) for each in named.values()):
            raise FinetuneError(
                f"dataset '{name}' of {path}: {what} is not an object of names; write one or leave it out"
            )
    form = _form(given)
    if given.get("tags") and form != "sharegpt":
        raise FinetuneError(
            f"dataset '{name}' of {path}: tags are for formatting sharegpt, not for {form}; leave them out"
        )
    for what, known_here in (("columns", COLUMNS[form]), ("tags", TAGS)):
        for each in given.get(what) or {}:
            if each not in known_here:
                raise FinetuneError(
                    f"dataset '{name}' of {path}: unknown '{each}' in {what}; did you mean "
                    f"'{nearest(each, known_here)}'? For {form} there are: {', '.join(known_here)}"
                )
    count = given.get("num_samples")
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
        raise FinetuneError(
            f"dataset '{name}' of {path}: num_samples is {count!r}; give a whole number above 0 or leave it out"
        )
    return Entry(
        path.parent / given["file_name"],
        form,
        Layout(given.get("columns") or {}, given.get("tags") or {}),
        count,
    )


def _form(given: dict[str, Any]) -> str:
    form = given.get("formatting", "alpaca")
    if form not in ("alpaca", "sharegpt"):
        raise FinetuneError(f"formatting is '{form}'; there are alpaca and sharegpt")
    if form == "alpaca" and "prompt" in (given.get("columns") or {}) and "response" not in given["columns"]:
        return "text"  # how the file marks text to go on training with
    return str(form)
