"""What `paddock finetune` does: training runs and adapters in the state folder."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.adapters import Shelf
from app.config import Settings
from app.errors import AppError
from app.grounded import readers
from finetune.config import Config
from finetune.errors import FinetuneError

if TYPE_CHECKING:
    from finetune.run import Prepared
    from llama.checkpoint import Checkpoint
    from llama.tokenizer import Tokenizer

SHOWN = 3  # examples of a dry run


def checkpoint_of(settings: Settings, model: str = "") -> Checkpoint:
    """The base model: that of the configuration, else that of the settings."""
    from llama.checkpoint import open_checkpoint

    return open_checkpoint(settings.path_of_model(model or settings.model))


def prepare(settings: Settings, config: Config) -> tuple[Checkpoint, Tokenizer, Prepared]:
    """Reads and encodes a run's data. Raises FinetuneError, also for a method that does not fit the model."""
    from finetune.run import prepare as prepared
    from finetune.run import require_fit
    from llama.chat import ChatTemplate

    checkpoint = checkpoint_of(settings, config.model)
    require_fit(config, checkpoint.config)
    tokenizer, source = checkpoint.tokenizer(), checkpoint.chat_template
    template = None if source is None else ChatTemplate(source, tokenizer)
    return (
        checkpoint,
        tokenizer,
        prepared(config, tokenizer, template, readers(settings), checkpoint.config.context_length),
    )


def report(found: Prepared, tell: Callable[[str], None], faults: int | None = 5) -> None:
    """The quality report, and the first faults; all of them with None."""
    for line in (*found.quality.lines(), *found.faults.lines[:faults]):
        tell(line)
    if faults is not None and (more := len(found.faults.lines) - faults) > 0:
        tell(f"… and {more} more, which --dry-run tells")
    tell(f"{len(found.training)} examples to train on, {len(found.validation)} of other documents to validate")


def dry_run(settings: Settings, config: Config) -> str:
    """The quality report and the first examples as text, what is learned between ⟦ and ⟧."""
    from finetune.run import shown

    _, tokenizer, found = prepare(settings, config)
    lines: list[str] = []
    report(found, lines.append, faults=None)
    for example in found.training[:SHOWN]:
        learned = example.supervised
        lines.append(
            f"\n-- {example.origin}: {len(example.ids)} tokens, {learned} learned\n{shown(example, tokenizer)}"
        )
    return "\n".join(lines)


def train(settings: Settings, config: Config, resume: bool, restart: bool) -> str | None:
    """Trains and returns a line about the adapter, in the first of several processes. Raises FinetuneError.

    Progress goes to standard error.
    """
    from finetune.distributed import start
    from finetune.run import train as run

    world = start(config.train.distributed)
    first, told = world.rank == 0, Told()
    try:
        checkpoint, _, found = prepare(settings, config)
        if first:
            report(found, tell)
        folder, state = run(
            config,
            checkpoint,
            found,
            settings.home / "runs",
            settings.adapters,
            settings.device,
            settings.cache / "models.json",
            resume,
            restart,
            told if first else (lambda record: None),
            tell if first else (lambda line: None),
            world,
            Shelf(settings).folder_of(config.start) if config.start else None,
        )
    finally:
        told.close()
        world.close()
    if not first:
        return None
    if not found.validation:
        return f"{folder}: {state.step} steps, {state.tokens} tokens in {state.seconds:.0f} s"
    return (
        f"{folder}: best after step {state.best_step} of {state.step}, validation loss {state.best_loss:.4f}; "
        f"{state.tokens} tokens in {state.seconds:.0f} s"
    )


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class Told:
    """Progress of a run: a line that is written over on a terminal, every tenth step elsewhere; every validation."""

    def __init__(self) -> None:
        self._open = False

    def close(self) -> None:
        """Whatever is told next begins a line of its own."""
        if self._open:
            tell("")
        self._open = False

    def __call__(self, record: dict[str, Any]) -> None:
        live = sys.stderr.isatty()
        if "val_loss" in record:
            best = " (best so far)" if record["best"] else ""
            tell(
                ("\r\033[K" if live else "") + f"step {record['step']}: validation loss {record['val_loss']:.4f}{best}"
            )
            self._open = False
            return
        line = (
            f"step {record['step']} of {record['steps']}, loss {record['loss']:.4f}, {record['tokens_per_s']:.0f} "
            f"tokens/s, about {record['seconds_left']:.0f} s left"
        )
        if live:
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
            self._open = True
        elif record["step"] % 10 == 1 or record["step"] == record["steps"]:
            tell(line)


def listed(settings: Settings) -> list[dict[str, Any]]:
    """What is known of each adapter, in the state folder or ours; of one that cannot be read, its `error`."""
    from finetune.folder import TENSORS, read_card

    found: list[dict[str, Any]] = []
    for _, each in sorted(Shelf(settings).folders().items()):
        try:
            card, size = read_card(each), (each / TENSORS).stat().st_size
        except (FinetuneError, OSError) as error:
            found.append({"name": each.name, "error": str(error)})
            continue
        found.append(
            {
                "name": each.name,
                "method": card.method,
                "base": card.base.model if card.base else None,
                "bytes": size,
                "validation_loss": card.notes.get("best_validation_loss"),
                "trained": card.notes.get("finished"),
            }
        )
    return found


def render(rows: list[dict[str, Any]]) -> str:
    """The list for a terminal."""
    if not rows:
        return "no adapters yet; `paddock finetune train CONFIG` makes one"
    lines = []
    for row in rows:
        if "error" in row:
            lines.append(f"{row['name']}: {row['error']}")
            continue
        loss = row["validation_loss"]
        told = f", validation loss {loss:.4f}" if isinstance(loss, float) else ""
        lines.append(f"{row['name']}: {row['method']} for {row['base'] or 'a base it does not name'}, "
                     f"{row['bytes'] / 1e6:.1f} MB{told}")  # fmt: skip
    return "\n".join(lines)


def export_peft(settings: Settings, name: str, out: Path) -> str:
    """Writes an adapter as a folder that PEFT loads."""
    from finetune.folder import peft_folder

    _free(out)
    peft_folder(out, Shelf(settings).folder_of(name), checkpoint_of(settings).config)
    return f"Written to {out}, in PEFT's form"


def merge(settings: Settings, name: str, out: Path, dtype: str, into: str | None = None) -> str:
    """Merges an adapter into its base model, written as a Hugging Face folder.

    into: for QLoRA, "original" or "dequantized", the weights that it is merged into; as it was trained by default.
    """
    import torch

    from finetune.data.encode import ALPACA_CHAT
    from finetune.export import export
    from finetune.folder import load_adapter, read_card
    from finetune.run import base_of
    from llama.adaptation import NONE
    from llama.checkpoint import load_transformer

    _free(out)
    source, checkpoint = Shelf(settings).folder_of(name), checkpoint_of(settings)
    model = load_transformer(checkpoint, torch.float32, "cpu")
    base, card = base_of(checkpoint, settings.cache / "models.json"), read_card(source)
    if card.base is not None and card.base.chat_template == ALPACA_CHAT:
        base = replace(base, chat_template=ALPACA_CHAT)  # which goes into the merged model
    entered, adapter, card = load_adapter(source, model, base)
    kept = getattr(adapter.options, "merge_into", None)
    if into is not None and kept is None:
        raise AppError(f"--into is for QLoRA, and '{name}' is of the method {card.method}; leave it out")
    kept, written = into or kept, getattr(torch, dtype)
    ids = torch.tensor([checkpoint.tokenizer().encode("The quick brown fox jumps over the lazy dog. 一二三。")])
    with torch.no_grad():
        beside = entered(ids, adaptation=adapter)
        if kept == "original":  # not the four bits that it was trained beside
            entered = load_transformer(checkpoint, torch.float32, "cpu")
        adapter.merge(entered)
        for parameter in entered.parameters():
            parameter.copy_(parameter.to(written))  # what is told is of the weights as they are written
        drift = (entered(ids, adaptation=NONE) - beside).abs().max().item()
    template = card.base.chat_template if card.base else checkpoint.chat_template
    missing = export(entered, checkpoint, out, template, written)
    hint = " (--into dequantized writes what it was trained beside)" if kept == "original" else ""
    return "\n".join([f"Written to {out}; logits differ from the adapter's by {drift:.2g} at most{hint}",
                      *(f"Not written: {each}" for each in missing)])  # fmt: skip


def _free(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise AppError(f"{out} is there already; choose another folder with -o")
