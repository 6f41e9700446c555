"""What a run leaves when it ends early, and what becomes of that."""

from __future__ import annotations

import errno
import math
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune import checkpoints
from finetune.checkpoints import TENSORS, Checkpoints, replace_folder, writing
from finetune.distributed import start
from finetune.errors import FinetuneError, Interrupted
from finetune.learner import Learner
from finetune.log import Log, read_log
from finetune.run import Prepared, train

from .test_configs import load_config, prepare, questions, spoken, tiny
from .test_trainer import DATA, LOOP, Killed, killed_at, losses, trainer

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


def test_damage_to_the_best_values_is_told(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        trainer(tmp_path, listen=killed_at(9)).run()
    file = tmp_path / "best" / TENSORS
    whole = file.read_bytes()
    for damaged in (whole[:-7], whole[:-1] + bytes([whole[-1] ^ 1])):
        file.write_bytes(damaged)
        with pytest.raises(FinetuneError, match="best, the values that validated best, is damaged or was cut short"):
            trainer(tmp_path, resume=True)
    file.write_bytes(whole)
    assert trainer(tmp_path, resume=True).run().done


@pytest.mark.parametrize("name", ["best", "step-0000008"])
def test_a_run_that_was_killed_while_a_folder_was_replaced_goes_on(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the two renames the old folder has another name, and nothing stands under its own."""
    with pytest.raises(Killed):
        trainer(tmp_path, listen=killed_at(9)).run()
    rename = Path.rename

    def killed(path: Path, target: Path) -> Path:
        if path.name.endswith(".part"):
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        replace_folder(tmp_path / name, {TENSORS: b"new"})
    monkeypatch.setattr(Path, "rename", rename)
    assert not (tmp_path / name).exists()
    resumed = trainer(tmp_path, resume=True)
    assert resumed.state.step == 8
    assert resumed.run().done
    assert not list(tmp_path.glob(".*.old"))


def test_the_only_whole_folder_stays_until_another_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that meets what a kill between the two renames left, and does not come to its end either."""
    target = tmp_path / "a"
    replace_folder(target, {"x": b"old"})
    target.rename(tmp_path / ".a.old")

    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoints, "write_whole", full)
    with pytest.raises(FinetuneError, match="the disk is full"):
        replace_folder(target, {"x": b"new"})
    assert (target / "x").read_bytes() == b"old"


def test_ctrl_c_ends_after_a_step_and_loses_nothing(tmp_path: Path) -> None:
    def press(record: dict[str, Any]) -> None:
        if record["step"] == 5:
            signal.raise_signal(signal.SIGINT)

    trainer(tmp_path / "a").run()
    with pytest.raises(Interrupted, match="interrupted after step 5; go on with --resume"):
        trainer(tmp_path / "b", listen=press).run()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    resumed = trainer(tmp_path / "b", resume=True)
    assert resumed.state.step == 5
    resumed.run()
    assert losses(tmp_path / "b") == losses(tmp_path / "a")


def test_ctrl_c_twice_ends_at_once(tmp_path: Path) -> None:
    def press(record: dict[str, Any]) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, listen=press).run()


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(
    "where",
    [
        "torch.utils.tensorboard.SummaryWriter.add_scalar",
        "torch.utils.tensorboard.SummaryWriter.close",
        "tensorboard.summary.writer.record_writer.RecordWriter.write",  # in a thread of TensorBoard's own
    ],
)
def test_a_run_goes_on_without_its_board(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(*given: Any, **more: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(where, full)
    told: list[str] = []
    assert trainer(tmp_path, tell=told.append).run().done
    assert len(told) == 1
    assert "No space left on device; the run goes on without them" in told[0]
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full disk to write to")
def test_a_full_disk_under_the_log_is_told_once(tmp_path: Path) -> None:
    before = threading.excepthook
    log = Log(tmp_path, lambda record: None)
    log._file.close()
    log._file = Path("/dev/full").open("a")  # noqa: SIM115 - the log closes it
    with pytest.raises(FinetuneError, match=r"log\.jsonl cannot be written: the disk is full; make room"):
        log({"step": 1, "loss": 1.0})
    log.close()
    assert threading.excepthook is before


def test_what_to_lower_when_memory_runs_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing cuts a pack; and an optimizer's moments are as large as what trains."""

    def full(*given: Any, **more: Any) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    packed = LOOP.model_copy(update={"packing": True, "cutoff_len": 60, "batch_size": 1})
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "forward", full)
        with pytest.raises(FinetuneError, match=r"\d\d tokens at once; lower cutoff_len"):
            trainer(tmp_path / "a", loop=packed, data=(DATA, [])).run()
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", full)
        with pytest.raises(FinetuneError, match="choose a method that trains fewer"):
            trainer(tmp_path / "b").run()


def test_a_model_that_finds_no_memory(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: Any) -> None:
        raise MemoryError

    checkpoint, tokenizer, template = spoken(tiny)
    config = load_config("lora", {"train.max_steps": 1})
    found = prepare(config, tokenizer, template, {"squad": questions})
    monkeypatch.setattr("finetune.run.load_transformer", full)
    with pytest.raises(FinetuneError, match="memory ran out while the model was loaded"):
        train(config, checkpoint, found, tmp_path / "r", tmp_path / "a", "cpu")


def test_advice_against_nan_fits_the_dtype(tmp_path: Path) -> None:
    for dtype, advised in ((torch.float32, False), (torch.bfloat16, True)):
        made = trainer(tmp_path, dtype=dtype)
        made.learner.model.norm.weight.data.fill_(math.nan)
        with pytest.raises(FinetuneError, match="lower learning_rate") as raised:
            made._step()
        assert ("float32" in str(raised.value)) == advised


def test_torchrun_needs_to_be_told_how_work_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    with pytest.raises(FinetuneError, match="train alone, over the others"):
        start("none")
