"""Options and objects that several commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from app import config
from app.errors import Misuse

if TYPE_CHECKING:
    from app.services import Services

MODEL_OPTIONS = [
    click.option("--model", metavar="NAME", help="Model: a file or folder under models/, or a path."),
    click.option("--adapter", metavar="NAME", help="Adapter: see `paddock finetune list`, or a path; none for none."),
    click.option("--device", metavar="D", help="auto, cpu, cuda or cuda:N."),
    click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16"]), help="Precision of the weights."),
    click.option(
        "--quant", type=click.Choice(["auto", "none", "int8", "int4"]), help="Bits of the weights; auto unless --dtype."
    ),
    click.option("--seed", type=click.IntRange(0), metavar="N", help="Seed of sampling (greedy decoding ignores it)."),
]


FILTER_OPTIONS = [
    click.option("--source", multiple=True, metavar="GLOB", help="Only documents with such a name or path: '2026/*'."),
    click.option("--type", multiple=True, metavar="EXT", help="Only documents of this type: pdf."),
    click.option("--after", metavar="DAY", help="Only documents modified on this day (2026-12-31) or later."),
    click.option("--before", metavar="DAY", help="Only documents modified before this day."),
    click.option("--language", multiple=True, metavar="CODE", help="Only documents in this language: en, zh."),
]


def filter_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that say which documents are asked; the command gets them as `filter`, None without any."""

    @functools.wraps(command)
    def filtered(*args: Any, **kwargs: Any) -> Any:
        from ingest.errors import IngestError
        from ingest.filter import Filter

        values = {name: kwargs.pop(name) for name in ("source", "type", "after", "before", "language")}
        try:
            only = Filter.of(values)
        except IngestError as error:
            raise Misuse(str(error)) from error
        return command(*args, filter=only or None, **kwargs)

    for option in reversed(FILTER_OPTIONS):
        filtered = option(filtered)
    return filtered


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that mean the same wherever a model runs."""
    for option in reversed(MODEL_OPTIONS):
        command = option(command)
    return command


def services(**overrides: Any) -> Services:
    from app.services import Services

    return Services(config.load_settings(**overrides))
