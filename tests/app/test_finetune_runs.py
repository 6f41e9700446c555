"""`paddock finetune train`: what reaches the run, what is refused before it, and who tells how it ended."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from app.cli import main
from app.config import DEFAULT_MODEL
from finetune import run
from finetune.trainer import State
from finetune.world import Alone

from .test_finetune import CONFIG, workplace

__all__ = ["workplace"]  # a fixture


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What each run was called with; none trains."""
    seen: list[dict[str, Any]] = []
    signature = inspect.signature(run.train)

    def noted(*given: Any, **more: Any) -> tuple[Path, State]:
        bound = signature.bind(*given, **more)
        bound.apply_defaults()
        seen.append(bound.arguments)
        return Path("adapters/talk"), State("x", step=2)

    monkeypatch.setattr("finetune.run.train", noted)
    return seen


def test_options_of_the_command_line_count_more_than_the_file(workplace: Path, runs: list[dict[str, Any]]) -> None:
    Path("own.toml").write_text('model = "none.gguf"\n' + CONFIG + 'seed = 1\ndtype = "float32"\n')
    words = ["--model", DEFAULT_MODEL, "--seed", "5", "--dtype", "bfloat16", "--device", "cpu"]
    assert main(["finetune", "train", "own.toml", *words]) == 0
    (given,) = runs
    assert (given["config"].train.seed, given["config"].train.dtype) == (5, "bfloat16")
    assert (given["config"].model, given["checkpoint"].path.name) == (DEFAULT_MODEL, DEFAULT_MODEL)
    assert (given["device"], given["resume"], given["restart"], given["start"]) == ("cpu", False, False, None)


def test_the_adapter_to_go_on_from_reaches_the_run(
    workplace: Path, runs: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    (earlier := workplace / "adapters" / "earlier").mkdir(parents=True)
    (earlier / "paddock.json").write_text("{}")
    assert main(["finetune", "train", "talk.toml", "--set", "start=earlier", "--resume"]) == 0
    assert runs[0]["start"] == earlier
    assert runs[0]["resume"]
    assert main(["finetune", "train", "talk.toml", "--set", "start=earlyer"]) == 1
    assert "did you mean 'earlier'" in capsys.readouterr().err


@pytest.mark.parametrize("rank", [0, 1])
def test_of_several_processes_the_first_tells_how_it_ended(
    rank: int,
    workplace: Path,
    runs: list[dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = Alone()
    world.rank, world.size = rank, 2
    monkeypatch.setattr("finetune.distributed.start", lambda kind: world)
    assert main(["finetune", "train", "talk.toml"]) == 0
    assert len(runs) == 1
    captured = capsys.readouterr()
    assert captured.out == ("adapters/talk: best after step 0 of 2, validation loss inf; 0 tokens in 0 s\n", "")[rank]
    assert ("examples to train on" in captured.err) == (rank == 0)


@pytest.mark.parametrize(
    ("method", "more", "told"),
    [
        ('"freeze"\nfreeze_trainable_layers = 999', "", "freeze_trainable_layers is 999; the model has 30 blocks"),
        ('"llama_pro"\nnum_new_layers = 7', "", "num_new_layers is 7, which does not divide"),
        ('"llama_adapter"\nadapter_layers = 31', "", "adapter_layers is 31 and the model has 30"),
        ('"bottleneck"', "final_scale = 0.5", "final_scale is for lora"),
        ('"prompt_tuning"\nnum_virtual_tokens = 8191', "", "so none are left for an example; lower num_virtual_tokens"),
        ('"prefix_tuning"\nnum_virtual_tokens = 9000', "", "num_virtual_tokens is 9000, and the model reads 8192 "),
    ],
)
@pytest.mark.parametrize("way", [["--dry-run"], []])
def test_options_that_the_model_has_no_room_for_are_refused_before_anything_runs(
    method: str,
    more: str,
    told: str,
    way: list[str],
    workplace: Path,
    runs: list[dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = CONFIG.replace('"lora"\nlora_rank = 2\nlora_target = ["v_proj"]', method)
    Path("wide.toml").write_text(f"{text}{more}\n")
    assert main(["finetune", "train", "wide.toml", *way]) == 1
    err = capsys.readouterr().err
    assert told in err
    assert len(err.strip().splitlines()) == 1
    assert not runs
