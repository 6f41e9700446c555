"""Two runs of one name do not train over each other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.checkpoints import Checkpoints
from finetune.config import load_config
from finetune.errors import FinetuneError
from finetune.lock import held
from finetune.run import prepare, train
from finetune.world import Alone

from .test_configs import ROOT, questions, spoken, tiny

__all__ = ["tiny"]  # a fixture

HOLD = """
import sys
from pathlib import Path
from finetune.lock import held
from finetune.world import Alone
with held(Path(sys.argv[1]), Alone()):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_run_of_a_name_is_refused_while_the_first_one_trains(tiny: Path, tmp_path: Path) -> None:
    """Before and after the first checkpoint, however it is started; the first one ends with its own values."""
    checkpoint, tokenizer, template = spoken(tiny)
    config = load_config(
        "lora", {"train.epochs": 4, "train.max_steps": 4, "train.save_steps": 2, "train.eval_steps": 1}
    )
    found = prepare(config, tokenizer, template, {"squad": questions})
    places, refused = (tmp_path / "r", tmp_path / "a", "cpu"), list[str]()

    def second(record: dict[str, Any]) -> None:
        for way in ({}, {"resume": True}, {"restart": True}):
            with pytest.raises(FinetuneError) as raised:
                train(config, checkpoint, found, *places, listen=pytest.fail, **way)  # type: ignore[arg-type]
            refused.append(str(raised.value))

    train(config, checkpoint, found, *places, listen=second)
    assert len(refused) == 3 * 9, "four steps and five validations"
    assert set(refused) == {
        "'lora' is being trained by another process; wait for it, or give this one another name (--set name=NAME)"
    }
    other = config.model_copy(update={"name": "other"})
    train(other, checkpoint, found, *places)
    ours, alone = Checkpoints(tmp_path / "r" / "lora", 2).best(), Checkpoints(tmp_path / "r" / "other", 2).best()
    assert all(torch.equal(tensor, alone[name]) for name, tensor in ours.items())
    train(config, checkpoint, found, *places)  # nobody holds it any more, and another name never did


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    """Nor does the removal of the folder free what another process holds."""
    folder = tmp_path / "r" / "x"
    words = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert not folder.exists(), "what is removed is not what is locked"
        with pytest.raises(FinetuneError, match="'x' is being trained by another process"), held(folder, Alone()):
            pytest.fail("two hold it")
        process.kill()
    with held(folder, Alone()):
        pass


class One(Alone):
    """A process of two, and what both of them together say."""

    size = 2

    def __init__(self, rank: int, other: float = 0.0) -> None:
        self.rank, self.other, self.said = rank, other, list[float]()

    def total(self, *values: float) -> list[float]:
        self.said += values
        return [value + self.other for value in values]


def test_of_several_processes_the_first_takes_it_and_all_end_with_it(tmp_path: Path) -> None:
    first, second = One(0), One(1)
    with held(tmp_path / "x", first), held(tmp_path / "x", second):
        assert (first.said, second.said) == ([0], [0])
        refused = One(0)
        with pytest.raises(FinetuneError, match="being trained"), held(tmp_path / "x", refused):
            pytest.fail("two hold it")
        assert refused.said == [1], "said before it ended, or the other one would wait for ever"
    with pytest.raises(FinetuneError, match="see what its first process says"), held(tmp_path / "x", One(1, other=1)):
        pytest.fail("it trains without the first one")


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path: Path) -> None:
    (tmp_path / "r").write_text("")
    with pytest.raises(FinetuneError, match=r"\.x\.lock cannot be written"), held(tmp_path / "r" / "x", Alone()):
        pytest.fail("nothing is held")
