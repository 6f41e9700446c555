"""Options and objects that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from app import config

if TYPE_CHECKING:
    from app.services import Services

MODEL_OPTIONS = [
    click.option("--model", metavar="NAME", help="Model: a file or folder under models/, or a path."),
    click.option("--device", metavar="D", help="auto, cpu, cuda or cuda:N."),
    click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16"]), help="Precision of the weights."),
    click.option(
        "--quant", type=click.Choice(["auto", "none", "int8", "int4"]), help="Bits of the weights; auto unless --dtype."
    ),
    click.option("--seed", type=click.IntRange(0), metavar="N", help="Seed of sampling (greedy decoding ignores it)."),
]


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that mean the same wherever a model runs."""
    for option in reversed(MODEL_OPTIONS):
        command = option(command)
    return command


def services(**overrides: Any) -> Services:
    from app.services import Services

    return Services(config.load_settings(**overrides))
