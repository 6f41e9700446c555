"""Perplexity of a text under the model (Jelinek et al. 1977), with a sliding window.

exp(total loss / total tokens), so that it depends neither on how many windows run together nor on how a text is cut
into lines. Bits per byte beside it can be compared across tokenizers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import torch
import torch.nn.functional as F

from app.errors import AppError, Misuse
from app.evaluate.record import surroundings
from app.progress import bar
from ingest.errors import IngestError
from ingest.loaders import load
from llama.engine import Engine
from llama.serving import Variant

if TYPE_CHECKING:
    from app.services import Services

WINDOW = 1024
CHUNK = 256  # tokens whose logits are held at once, in each row: memory is rows * CHUNK * vocabulary


@dataclass(frozen=True)
class Window:
    """Tokens start to end - 1 are read; those from `scored` on count, the others are context."""

    start: int
    scored: int
    end: int


@dataclass
class Perplexity:
    """Sums over texts: natural-log loss, scored tokens and the bytes that they stand for."""

    loss: float = 0.0
    tokens: int = 0
    bytes: int = 0

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss / self.tokens) if self.tokens else math.nan

    @property
    def bits_per_byte(self) -> float:
        return self.loss / math.log(2) / self.bytes if self.bytes else math.nan

    def add(self, other: Perplexity) -> None:
        """Sums of both."""
        self.loss, self.tokens, self.bytes = (
            self.loss + other.loss,
            self.tokens + other.tokens,
            self.bytes + other.bytes,
        )

    def to_json(self) -> dict[str, Any]:
        """Figures are None where nothing was scored."""
        return {
            "perplexity": round(self.perplexity, 6) if self.tokens else None,
            "bits_per_byte": round(self.bits_per_byte, 6) if self.tokens else None,
            "loss": round(self.loss, 4),
            "tokens": self.tokens,
            "bytes": self.bytes,
        }


def run(services: Services, files: Sequence[Path], window: int | None, stride: int | None, rows: int) -> dict[str, Any]:
    """Figures of every file and of all together; a file that cannot be read is told and left out.

    Raises Misuse when the windows leave tokens out, and AppError when a window is longer than the model's context or no
    file can be read.
    """
    if window and stride:
        _check_stride(window, stride)
    engine, adapter = services.engine, services.named_adapter
    variant = engine.variant(adapter)
    longest = engine.context_length - variant.front
    size = window or min(WINDOW, longest)
    step = stride or max(size // 2, 1)
    if size > longest:
        raise AppError(f"--window {size} exceeds the model's context of {longest}; choose a smaller one")
    _check_stride(size, step)
    texts, failed = _read(files)
    total, each = Perplexity(), {}
    with bar(sum(len(text) for text in texts.values()), "character") as advance:
        for name, text in texts.items():
            tell = lambda n, name=name: advance(n, name)  # noqa: E731
            found = measure(engine, text, size, step, rows, tell, variant)
            total.add(found)
            each[name] = found.to_json()
    if not total.tokens:
        raise AppError("the files hold less than two tokens; give longer ones")
    about = surroundings(services.settings, adapter)
    about["model"]["dtype"] = engine.precision
    return {
        "kind": "perplexity",
        **about,
        "window": size,
        "stride": step,
        "files": each,
        "failed": failed,
        **total.to_json(),
    }


def _check_stride(window: int, stride: int) -> None:
    if stride >= window:
        raise Misuse(
            f"--stride {stride} must be smaller than the window of {window}; tokens in between would be skipped"
        )


def _read(files: Sequence[Path]) -> tuple[dict[str, str], list[dict[str, str]]]:
    """The text of each file, and those that cannot be read, which are told. Raises AppError when none can be."""
    texts: dict[str, str] = {}
    failed: list[dict[str, str]] = []
    for path in files:
        try:
            texts[str(path)] = _text_of(path)
        except (IngestError, AppError) as error:
            failed.append({"file": str(path), "error": str(error)})
            click.echo(f"paddock: {path}: {error}", err=True)
    if not texts:
        raise AppError("none of the files can be read, so there is nothing to measure")
    return texts, failed


def _text_of(path: Path) -> str:
    """The text that ingest would read. Raises IngestError."""
    if not path.exists():
        raise AppError("there is no such file")
    return "\n\n".join(document.page_content for document in load(path))


def windows(tokens: int, window: int, stride: int) -> Iterator[Window]:
    """Windows of `window` tokens, each `stride` further; every token but the first is scored once."""
    scored = 1
    for start in range(0, tokens, stride):
        end = min(start + window, tokens)
        if end > scored:
            yield Window(start, scored, end)
        scored = max(scored, end)
        if end == tokens:
            return


def measure(
    engine: Engine,
    text: str,
    window: int,
    stride: int,
    rows: int = 1,
    advance: Callable[[int], None] = lambda characters: None,
    variant: Variant | None = None,
) -> Perplexity:
    """The sums of one text. `window` is at most the model's context; `rows` windows run together.

    `advance` hears of the characters that are done, those of the whole text in the end. variant: the model with an
    adapter, by default the bare one.
    """
    tokenizer, found = engine.tokenizer, Perplexity()
    ids = [*([tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []), *tokenizer.encode(text)]
    found.bytes = sum(len(tokenizer.bytes_of(token)) for token in ids[1:])
    told = 0
    # Windows of one length make an even batch; only the first and the last have another.
    for _, alike in groupby(windows(len(ids), window, stride), lambda w: (w.end - w.start, w.scored - w.start)):
        group = iter(alike)
        while batch := list(islice(group, rows)):
            found.loss += _loss(engine, variant or engine.plain, ids, batch)
            found.tokens += sum(each.end - each.scored for each in batch)
            done = len(text) * batch[-1].end // len(ids)
            advance(done - told)
            told = done
    advance(len(text) - told)
    return found


def _loss(engine: Engine, variant: Variant, ids: Sequence[int], batch: Sequence[Window]) -> float:
    """Summed loss of the scored tokens of windows that are equally long; logits are never held for all of them."""
    size = batch[0].end - batch[0].start
    from_ = batch[0].scored - batch[0].start
    rows = [ids[each.start : each.end] for each in batch]
    caches, variants = [variant.new_cache(1, size) for _ in batch], [variant] * len(batch)
    total = 0.0
    for start in range(0, size - 1, CHUNK):
        end = min(start + CHUNK, size - 1)
        scored = end - max(from_ - 1, start)
        found = engine.forward([row[start:end] for row in rows], caches, [max(scored, 1)] * len(rows), variants)
        if scored > 0:
            for row, logits in zip(rows, found, strict=True):
                targets = torch.tensor(row[end - scored + 1 : end + 1], device=engine.device)
                total += float(F.cross_entropy(logits.float(), targets, reduction="sum"))
    return total
