"""The gate: figures on the sample inbox must not fall below a baseline that is kept with the code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.errors import AppError
from app.evaluate.record import write_json
from app.evaluate.run import Run

# Figure -> how far it may fall. One question of the sample is about 1 (recall, contains) or up to 6 points (refusals);
# precision and the number of cores move single answers of a greedy model.
TOLERANCES = {"document recall@5": 0.01, "contains": 0.03, "refusal f1": 0.05}


def taken(retrieval: Run, answers: Run) -> dict[str, float]:
    """The guarded figures of two runs."""
    (mode,) = retrieval.results["figures"].values()
    found = {**mode, **answers.results["figures"]}
    return {name: found[name]["value"] for name in TOLERANCES}


def read_baseline(path: Path) -> dict[str, Any]:
    """Raises AppError for a file that is missing or holds no baseline."""
    try:
        baseline = json.loads(path.read_text("utf-8"))
        figures = baseline["figures"]
        if set(figures) != set(TOLERANCES) or not all(isinstance(figures[name], int | float) for name in figures):
            raise ValueError(f"it must hold {', '.join(TOLERANCES)}")
    except FileNotFoundError as error:
        raise AppError(f"there is no baseline {path}; make it with --update") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AppError(f"{path} is no baseline ({error}); make it anew with --update") from error
    return dict(baseline)


def write_baseline(path: Path, figures: Mapping[str, float], answers: Run) -> None:
    """Replaces the baseline; what it was measured with stands beside it."""
    results = answers.results
    made_with = {
        "questions": results["dataset"]["sha256"],
        "model": results["model"],
        "embedder": results["embedder"],
        "k": results["k"],
    }
    write_json(path, {"figures": {name: round(value, 4) for name, value in figures.items()}, "made_with": made_with})


def judge(figures: Mapping[str, float], baseline: Mapping[str, Any]) -> tuple[list[str], bool]:
    """A line for every figure, and whether all hold."""
    lines, good = [], True
    for name, tolerance in TOLERANCES.items():
        now, before = figures[name], baseline["figures"][name]
        holds = now >= before - tolerance - 1e-9
        good &= holds
        lines.append(
            f"{'holds' if holds else 'FELL '}  {name:18} {100 * now:5.1f}  baseline {100 * before:5.1f}, "
            f"may fall by {100 * tolerance:.0f}"
        )
    return lines, good
