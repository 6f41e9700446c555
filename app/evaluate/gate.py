"""The gate: figures on the sample inbox must not fall below a baseline that is kept with the code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.config import Settings
from app.errors import AppError
from app.evaluate.questions import Dataset
from app.evaluate.record import adapter_of, dataset_digest, model_of, write_json
from app.evaluate.run import Inputs, Run
from app.services import Services

Row = dict[str, Any]

# Figure -> how far it may fall (or rise, for those of RISING). One question of the sample is about 1 (recall, contains,
# false refusals) or up to 6 points (refusals); precision and the number of cores move single answers of a greedy model.
TOLERANCES = {"document recall@5": 0.01, "contains": 0.03, "refusal f1": 0.05, "false refusals": 0.03}
RISING = {"false refusals"}  # the less, the better; guards where refusal F1 is 0 already and cannot fall


def require(dataset: Dataset, file: Path | None) -> None:
    """Raises AppError for questions on which a guarded figure could not be taken, before minutes of work."""
    kinds = {
        "a 'source' (for document recall@5)": any("document" in gold.relevant for gold in dataset.questions),
        "gold 'answers' (for contains and false refusals)": any(gold.answers for gold in dataset.questions),
        '"answerable": false (for refusal f1)': not all(gold.answerable for gold in dataset.questions),
    }
    if missing := [what for what, there in kinds.items() if not there]:
        raise AppError(
            f"{file} holds no question with {', none with '.join(missing)}; the gate needs both kinds, add some"
        )


def made_with(dataset: Dataset, services: Services) -> Row:
    """What figures depend on besides the code: of two runs that differ in it neither is the other's baseline."""
    settings = services.settings
    return {
        "questions": dataset_digest(dataset),
        "model": {**model_of(settings), "dtype": _precision(settings)},
        "adapter": None if (found := adapter_of(settings, services.adapter())) is None else found["sha256"],
        "embedder": services.embedder.identity,
        "k": settings.k,
        "retrieval": settings.retrieval,
    }


def _precision(settings: Settings) -> str:
    """What the model will be loaded in."""
    from llama.engine import precision_of

    return precision_of(settings.path_of_model(settings.model), settings.device, settings.dtype, settings.quant)


def prepare(inputs: Inputs, services: Services, path: Path, update: bool) -> tuple[Row | None, Row]:
    """(the baseline to hold, None with update; what this run is made with). Raises AppError when the questions cannot
    be used, or the baseline was made with something else.
    """
    before = None if update else read_baseline(path)
    dataset = inputs.read(services.settings.seed)
    require(dataset, inputs.file)
    now = made_with(dataset, services)
    if before is not None and (changed := differences(before["made_with"], now)):
        raise AppError(
            f"{path} was made with other things than this run ({'; '.join(changed)}), so it says nothing about it; "
            "leave the change out, or make the baseline anew with --update and commit it"
        )
    return before, now


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs, by name and value; of hashes only that they do."""
    found = []
    for name, value in _flat(now).items():
        was = _flat(before).get(name)
        if was != value:
            hashed = name == "questions" or name.endswith("sha256")
            found.append(f"{name} differ" if hashed else f"{name}: {was} there, {value} here")
    return found


def _flat(row: Mapping[str, Any]) -> Row:
    model = row.get("model")
    rest = {name: value for name, value in row.items() if name != "model"}
    return rest | {f"model {name}": value for name, value in (model if isinstance(model, dict) else {}).items()}


def taken(retrieval: Run, answers: Run) -> dict[str, float]:
    """The guarded figures of two runs. Raises AppError when a question failed, of which no figure would tell."""
    if failed := answers.results["failed"]:
        first = failed[0]
        raise AppError(f"{len(failed)} questions could not be asked, '{first['id']}' for one: {first['error']}")
    (mode,) = retrieval.results["figures"].values()
    found = {**mode, **answers.results["figures"]}
    if missing := [name for name in TOLERANCES if name not in found]:
        raise AppError(f"{', '.join(missing)} could not be taken; see the faults above")
    return {name: found[name]["value"] for name in TOLERANCES}


def read_baseline(path: Path) -> Row:
    """Raises AppError for a file that is missing or holds no baseline."""
    try:
        baseline = json.loads(path.read_text("utf-8"))
        figures = baseline["figures"]
        if set(figures) != set(TOLERANCES) or not all(isinstance(figures[name], int | float) for name in figures):
            raise ValueError(f"it must hold {', '.join(TOLERANCES)}")
        if not isinstance(baseline["made_with"], dict):
            raise ValueError("it must say what it was made with")
    except FileNotFoundError as error:
        raise AppError(f"there is no baseline {path}; make it with --update") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AppError(f"{path} is no baseline ({error}); make it anew with --update") from error
    return dict(baseline)


def write_baseline(path: Path, figures: Mapping[str, float], made_with: Row) -> None:
    """Replaces the baseline; what it was measured with stands beside it."""
    write_json(path, {"figures": {name: round(value, 4) for name, value in figures.items()}, "made_with": made_with})


def judge(figures: Mapping[str, float], baseline: Mapping[str, Any]) -> tuple[list[str], bool]:
    """A line for every figure, and whether all hold."""
    lines, good = [], True
    for name, tolerance in TOLERANCES.items():
        now, before = figures[name], baseline["figures"][name]
        rising = name in RISING
        holds = (now - before if rising else before - now) <= tolerance + 1e-9
        good &= holds
        word = "holds" if holds else "ROSE " if rising else "FELL "
        idle = " (it cannot: nothing is left to fall)" if not rising and before <= tolerance else ""
        lines.append(
            f"{word}  {name:18} {100 * now:5.1f}  baseline {100 * before:5.1f}, "
            f"may {'rise' if rising else 'fall'} by {100 * tolerance:.0f}{idle}"
        )
    return lines, good
