"""What a run leaves when it ends early, and what becomes of that."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from finetune import checkpoints
from finetune.checkpoints import TENSORS, Checkpoints, replace_folder, writing
from finetune.config import load_config
from finetune.data.encode import ALPACA, ALPACA_CHAT
from finetune.distributed import start
from finetune.errors import FinetuneError, Interrupted
from finetune.folder import read_card
from finetune.learner import Learner
from finetune.log import Log, read_log
from finetune.run import Prepared, prepare, train

from .test_configs import ROOT, questions, spoken, tiny
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


def test_eight_samples_of_alpacas_form_are_overfitted(tiny: Path, tmp_path: Path) -> None:
    """From the file to the adapter's folder, which says what it wants to be asked with."""
    words = ("red", "blue", "green", "black", "white", "brown", "pink", "grey")
    rows = [{"instruction": f"Which colour has box {i}?", "input": "Look." * (i % 2), "output": f"It is {word}."}
            for i, word in enumerate(words)]  # fmt: skip
    (tmp_path / "data.json").write_text(json.dumps(rows))
    config = load_config("alpaca", {
        "data.0.file": str(tmp_path / "data.json"), "train.template": "alpaca", "train.val_size": 0,
        "method": {"name": "full"},  # the tiny model's embeddings are too small for any other to be sure of a token
        "train.batch_size": 8, "train.epochs": 40, "train.learning_rate": 0.01,
    })  # fmt: skip
    checkpoint, tokenizer, template = spoken(tiny)
    found = prepare(config, tokenizer, template, {})
    assert len(found.training) == 8
    assert tokenizer.decode(found.training[0].ids).startswith(ALPACA.format(instruction=rows[0]["instruction"]))
    folder, state = train(config, checkpoint, found, tmp_path / "r", tmp_path / "a", "cpu")
    curve = losses(tmp_path / "r" / "alpaca")
    assert len(curve) == state.step == 40
    assert curve[-1] < curve[0] / 3
    card = read_card(folder)
    assert card.base is not None
    assert card.base.chat_template == ALPACA_CHAT


def test_packed_pretraining_goes_on_bit_for_bit(tiny: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    for i in range(9):
        (notes / f"{i}.txt").write_text(" ".join(f"Note {i} on item {k}." for k in range(4 + 2 * i)))
    config = load_config("pretrain", {
        "data.0.file": str(notes), "method.lora_dropout": 0.2, "train.epochs": 4, "train.cutoff_len": 100,
        "train.batch_size": 2, "train.micro_batch_tokens": 100, "train.eval_steps": 3, "train.save_steps": 3,
    })  # fmt: skip
    assert config.train.packing
    checkpoint, tokenizer, template = spoken(tiny)
    found = prepare(config, tokenizer, template, {})

    def ran(folder: str, **changes: Any) -> tuple[list[Any], dict[str, Any], Any]:
        told: list[Any] = []
        places = (tmp_path / folder / "r", tmp_path / folder / "a", "cpu")
        try:
            _, state = train(config, checkpoint, found, *places, tell=told.append, **changes)
        finally:
            assert told == []
        kept = Checkpoints(places[0] / "pretrain", 2)
        latest = kept.latest()
        assert latest is not None
        return losses(places[0] / "pretrain"), {**latest[0], **kept.best()}, state

    curve, tensors, state = ran("a")
    with pytest.raises(Killed):
        ran("b", listen=killed_at(8))
    steps: list[Any] = []
    again, others, end = ran("b", resume=True, listen=steps.append)
    assert steps[0]["step"] == 7, "from the checkpoint of step 6"
    assert len(curve) == state.step > 10
    assert again == curve
    assert (end.best_loss, end.best_step, end.tokens) == (state.best_loss, state.best_step, state.tokens)
    assert others.keys() == tensors.keys()
    assert all(torch.equal(others[name], tensors[name]) for name in tensors)


def test_a_killed_process_is_gone_on_with_to_the_last_digit(tiny: Path, tmp_path: Path) -> None:
    """SIGKILL from outside, at whatever the run is doing; the losses are those of one that nobody killed."""
    rows = [{"instruction": f"Say {i}.", "output": f"{i} and {i + 1}."} for i in range(30)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    file = tmp_path / "killed.toml"
    file.write_text(
        f'''name = "killed"\nmodel = "{tiny}"\n[method]\nname = "lora"\nlora_dropout = 0.1\n'''
        f'''[[data]]\nfile = "{tmp_path / "data.jsonl"}"\nformat = "alpaca"\n'''
        "[train]\nepochs = 4\nbatch_size = 4\nsave_steps = 4\neval_steps = 10\npatience = 99\n"
    )
    config, (checkpoint, tokenizer, template) = load_config(str(file)), spoken(tiny)
    found = prepare(config, tokenizer, template, {})
    _, end = train(config, checkpoint, found, tmp_path / "r", tmp_path / "a", "cpu")
    expected = losses(tmp_path / "r" / "killed")
    home, run = tmp_path / "home", tmp_path / "home" / "runs" / "killed"
    words = [sys.executable, "-m", "app.cli", "finetune", "train", str(file), "--device", "cpu"]
    env = {**os.environ, "PADDOCK_HOME": str(home), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with (tmp_path / "told").open("w") as told, subprocess.Popen(words, cwd=ROOT, env=env, stderr=told) as process:
        until = time.monotonic() + 120
        while len(losses(run)) < 6 and process.poll() is None and time.monotonic() < until:
            time.sleep(0.005)
        process.kill()
        assert process.wait() == -signal.SIGKILL, (tmp_path / "told").read_text()
    before = len(losses(run))
    assert 6 <= before < end.step
    assert not (home / "adapters" / "killed").exists()
    done = subprocess.run([*words, "--resume"], cwd=ROOT, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "begins anew" not in done.stderr
    assert losses(run) == expected
    assert read_card(home / "adapters" / "killed").notes["best_validation_loss"] == end.best_loss


def test_a_share_of_what_was_learned_stays(tiny: Path, tmp_path: Path) -> None:
    """B of LoRA alone is smaller; what cannot be weakened so is refused before it trains."""
    checkpoint, tokenizer, template = spoken(tiny)
    found = {}
    for share in (1.0, 0.5):
        config = load_config("lora", {"train.max_steps": 2, "train.val_size": 1, "train.final_scale": share})
        config = config.model_copy(update={"name": f"lora-{share}"})
        read = prepare(config, tokenizer, template, {"squad": questions})
        folder, state = train(config, checkpoint, read, tmp_path / "r", tmp_path / "a", "cpu")
        said = read_card(folder).notes["best_validation_loss"]
        assert said == state.best_loss
        assert (
            said == min(row["val_loss"] for row in read_log(tmp_path / "r" / config.name) if "val_loss" in row)
        ) == (share == 1.0), "of what is written"
        found[share] = load_file(folder / "adapter_model.safetensors")
    assert any(tensor.abs().max() > 0 for name, tensor in found[1.0].items() if "lora_B" in name)
    for name, tensor in found[1.0].items():
        assert torch.equal(found[0.5][name], tensor * (0.5 if "lora_B" in name else 1.0)), name
    for name in ("dora", "full"):
        config = load_config(name, {"train.max_steps": 2, "train.final_scale": 0.5})
        read = prepare(config, tokenizer, template, {"squad": questions})
        with pytest.raises(FinetuneError, match="final_scale is for lora and qlora without use_dora"):
            train(config, checkpoint, read, tmp_path / "r", tmp_path / "a", "cpu", listen=pytest.fail)
