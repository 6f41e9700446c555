"""`paddock finetune`: thin, like the rest of the command line."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import click

from app import config
from app.options import model_options, services

PATH = click.Path(path_type=Path)
OUT = click.option("-o", "--out", required=True, type=PATH, metavar="DIR", help="Where it goes; a new folder.")
MODEL = click.option("--model", metavar="NAME", help="Base model: a file or folder under models/, or a path.")


@click.group("finetune")
def finetune_group() -> None:
    """Train the model on your own data, and manage the adapters that come of it.

    An adapter is a folder under adapters/ in the state folder, in PEFT's form where that can say it.
    """


@finetune_group.command("train")
@click.argument("configuration", metavar="CONFIG")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a key, as train.epochs=2.")
@click.option("--resume", is_flag=True, help="Go on with the run of this name where it was interrupted.")
@click.option("--restart", is_flag=True, help="Start anew where a run of this name could still go on.")
@click.option("--dry-run", is_flag=True, help="Show what would be trained on, decoded, and what is learned of it.")
@MODEL
@click.option("--device", metavar="D", help="auto, cpu, cuda or cuda:N.")
@click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16"]), help="Precision that is computed in.")
@click.option("--seed", type=click.IntRange(0), metavar="N", help="Seed of the order, the split and first values.")
def train(
    configuration: str,
    changes: tuple[str, ...],
    resume: bool,
    restart: bool,
    dry_run: bool,
    dtype: str | None,
    seed: int | None,
    **overrides: Any,
) -> None:
    """Train an adapter as CONFIG says: a TOML file, or the name of one that comes with Paddock.

    Checkpoints and curves lie under runs/, the adapter with the best validation loss under adapters/. With several
    processes: torchrun --nproc-per-node N -m app.cli finetune train CONFIG --set train.distributed=ddp
    """
    from app import finetuning
    from finetune.config import load_config

    if resume and restart:
        raise click.UsageError("--resume goes on with a run and --restart begins it anew; give one of them")
    given = {key: value for key, value in (("train.dtype", dtype), ("train.seed", seed)) if value is not None}
    if overrides["model"] is not None:
        given["model"] = overrides["model"]
    found = load_config(configuration, {**dict(map(_change, changes)), **given})
    settings = config.load_settings(**overrides)
    told = finetuning.dry_run(settings, found) if dry_run else finetuning.train(settings, found, resume, restart)
    if told is not None:  # of several processes one tells
        click.echo(told)


def _change(given: str) -> tuple[str, Any]:
    """KEY=VALUE, the value as TOML has it, or plain text."""
    key, equals, value = given.partition("=")
    if not equals or not key:
        raise click.UsageError(f"--set takes KEY=VALUE, not '{given}'")
    try:
        return key.strip(), tomllib.loads(f"x = {value}")["x"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value


@finetune_group.command("list")
@click.option("--configs", is_flag=True, help="List the configurations that come with Paddock, and the methods.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(configs: bool, as_json: bool) -> None:
    """List the adapters: those in the state folder, and those that come with Paddock."""
    from app import finetuning
    from finetune.adapters import METHODS
    from finetune.config import shipped

    if configs:
        rows: Any = {"configs": list(shipped()), "methods": {m.name: m.summary for m in METHODS.values()}}
        text = "\n".join([f"configurations: {', '.join(rows['configs'])}",
                          *(f"method {name}: {summary}" for name, summary in rows["methods"].items())])  # fmt: skip
    else:
        rows = finetuning.listed(config.load_settings())
        text = finetuning.render(rows)
    click.echo(json.dumps(rows, ensure_ascii=False) if as_json else text)


@finetune_group.command("merge")
@click.argument("name")
@OUT
@MODEL
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="Precision of the weights that are written.",
)
@click.option(
    "--into",
    type=click.Choice(["original", "dequantized"]),
    help="QLoRA: the weights as they were, or as the four bits have them that it was trained beside.",
)
def merge(name: str, out: Path, dtype: str, into: str | None, **overrides: Any) -> None:
    """Merge adapter NAME into its base model and write that as a Hugging Face folder."""
    from app import finetuning

    click.echo(finetuning.merge(config.load_settings(**overrides), name, out, dtype, into))


@finetune_group.command("export")
@click.argument("name")
@OUT
@MODEL
def export(name: str, out: Path, **overrides: Any) -> None:
    """Write adapter NAME as a folder that Hugging Face's PEFT loads."""
    from app import finetuning

    click.echo(finetuning.export_peft(config.load_settings(**overrides), name, out))


@finetune_group.command("make-data")
@click.argument("kb")
@click.option("-o", "--out", required=True, type=PATH, metavar="FILE", help="Where the questions go (JSON lines).")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only N passages, spread over the documents.")
@click.option(
    "--likelihood",
    type=click.FloatRange(0, 1),
    default=0.2,
    show_default=True,
    help="How likely the model must find a token of an answer.",
)
@click.option("--k", type=click.IntRange(1, 50), metavar="N", help="Chunks to retrieve (default 4).")
@model_options
def make_data(kb: str, out: Path, limit: int | None, likelihood: float, **overrides: Any) -> None:
    """Have the model write questions about knowledge base KB, filter them, and write them for you to review.

    Lines have question, answers, source, page, passage and likelihood. Delete or mend what is wrong, and train on the
    rest with format = "questions".
    """
    from app.make_data import write

    counts = write(services(**overrides), kb, out, limit, likelihood)
    told = ", ".join(f"{n} {why}" for why, n in sorted(counts.items(), key=lambda each: -each[1]))
    click.echo(f"{sum(counts.values())} passages: {told or 'none'}; written to {out}", err=True)
