"""What a run leaves when it ends early, and what becomes of that."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from finetune.checkpoints import TENSORS, Checkpoints, writing
from finetune.errors import FinetuneError
from finetune.log import read_log
from finetune.run import Prepared, train

from .test_configs import load_config, prepare, questions, spoken, tiny
from .test_trainer import Killed, killed_at, trainer

__all__ = ["tiny"]  # a fixture


def test_an_earlier_run_goes_only_when_the_next_begins(tiny: Path, tmp_path: Path) -> None:
    checkpoint, tokenizer, template = spoken(tiny)
    config = load_config("lora", {"train.max_steps": 3, "train.save_steps": 2})
    found = prepare(config, tokenizer, template, {"squad": questions})
    places, run = (tmp_path / "r", tmp_path / "a", "cpu"), tmp_path / "r" / "lora"
    empty = Prepared([], [], found.quality, found.faults)
    with pytest.raises(Killed):
        train(config, checkpoint, found, *places, listen=killed_at(3))
    before = sorted(run.rglob("*"))
    with pytest.raises(FinetuneError, match="not finished; go on with --resume, or start anew with --restart"):
        train(config, checkpoint, found, *places)
    with pytest.raises(FinetuneError, match="no example is left"):
        train(config, checkpoint, empty, *places, restart=True)
    assert sorted(run.rglob("*")) == before, "what cannot begin takes nothing away"
    steps: list[Any] = []
    train(config, checkpoint, found, *places, restart=True, listen=steps.append)
    assert [r["step"] for r in steps if "loss" in r] == [1, 2, 3]
    assert not Checkpoints(run, 2).unfinished()
    train(config, checkpoint, found, *places)  # a finished one is replaced


def test_without_a_whole_checkpoint_a_run_begins_anew(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        trainer(tmp_path, listen=killed_at(3)).run()
    told: list[str] = []
    trainer(tmp_path, resume=True, tell=told.append).run()
    assert told == [f"there is no whole checkpoint in {tmp_path} to go on from; the run begins anew"]
    assert [row["step"] for row in read_log(tmp_path) if "val_loss" in row].count(0) == 1
    for each in tmp_path.glob("step-*"):
        (each / TENSORS).unlink()
    trainer(tmp_path, resume=True, tell=told.append)
    assert [line.split("; ")[-1] for line in told[1:]] == ["it is passed over"] * 2 + ["the run begins anew"]


@pytest.mark.parametrize(
    ("number", "training", "told"),
    [
        (errno.ENOSPC, True, "the disk is full; make room, and go on with --resume"),
        (errno.ENOSPC, False, "the disk is full; make room, and try again"),
        (errno.EACCES, False, "Permission denied; see whether its folder is there and yours to write in, and try"),
        (errno.ENOTDIR, True, "Not a directory; see whether its folder is there and yours to write in, and go on"),
    ],
)
def test_what_hinders_writing_is_told(number: int, training: bool, told: str) -> None:

    with pytest.raises(FinetuneError, match=told), writing(Path("x"), training):
        raise OSError(number, os.strerror(number))
