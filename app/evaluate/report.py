"""The report of a run: results.json, the rows, and one HTML page that needs nothing from anywhere."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.errors import AppError
from app.evaluate import charts
from app.evaluate.compare import is_right
from app.evaluate.record import ROWS, write_json, write_rows
from app.evaluate.run import Run

if TYPE_CHECKING:
    from jinja2 import Template

Row = dict[str, Any]
WORST = 50
KINDS = {
    "missed": "answer not among the passages",
    "unread": "answer among the passages, not in the answer",
    "refused": "refused, though it can be answered",
    "invented": "answered, though it cannot be",
    "right": "right",
}


def write_report(run: Run, folder: Path) -> None:
    """Writes the three files (two for perplexity, which has no rows), each in one step.

    Raises AppError when the folder cannot be written.
    """
    kind = run.results["kind"]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if kind in ROWS:
            write_rows(folder / ROWS[kind], run.rows)
        if kind == "calibrate":
            write_rows(folder / "calibrate.jsonl", run.rows)
        write_json(folder / "results.json", run.results)
        part = folder / "report.html.part"
        others = {"calibrate": page_of_calibration, "perplexity": page_of_perplexity}
        part.write_text(page(run) if kind in ROWS else others[kind](run.results), encoding="utf-8")
        part.replace(folder / "report.html")
    except OSError as error:
        raise AppError(f"{folder} cannot be written ({error.strerror}); choose another --report") from error


def _template(name: str) -> Template:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template(name)


def page_of_perplexity(results: Row) -> str:
    """The HTML of `paddock eval perplexity`: figures of every file, the lowest perplexity last."""
    files = sorted(results["files"].items(), key=lambda item: -(item[1]["perplexity"] or 0.0))
    rows = [("all", results), *files] if len(files) > 1 else files
    title = files[0][0] if len(files) == 1 else f"{len(files)} files"
    return _template("perplexity.html.j2").render(title=title, results=results, rows=rows, settings=_flat(results))


def page_of_calibration(results: Row) -> str:
    """The HTML of `paddock eval calibrate`: how far P(answerable) can be trusted, and what a threshold does."""
    plots = [
        ("Confidence, and how many can be answered", charts.reliability(results["reliability"])),
        ("What a threshold refuses", charts.thresholds(results["curve"], results["threshold"])),
    ]
    return _template("calibrate.html.j2").render(
        title=results["dataset"]["name"], results=results, charts=plots, settings=_flat(results)
    )


def page(run: Run) -> str:
    """The HTML of a run that asked questions."""
    good = [row for row in run.rows if "error" not in row]
    answers = run.results["kind"] == "answers"
    cases = [_case(row) for row in sorted(good, key=_badness)[:WORST]]
    figures = _tables(run.results, answers)
    return _template("report.html.j2").render(
        title=run.results["dataset"]["name"],
        results=run.results,
        figures=figures,
        charts=_charts_of_answers(good) if answers else _charts_of_retrieval(run),
        cases=cases,
        kinds={kind: text for kind, text in KINDS.items() if any(case["kind"] == kind for case in cases)},
        total=len(good),
        settings=_flat(run.results),
    )


def _tables(results: dict[str, Any], answers: bool) -> dict[str, dict[str, Any]]:
    """The tables of figures by their titles: every mode, then every language."""
    if answers:
        return {"all": results["figures"], **{f"questions in {n}": each for n, each in results["by_language"].items()}}
    languages = {
        f"{mode}, questions in {name}": each for mode, of in results["by_language"].items() for name, each in of.items()
    }
    return {**results["figures"], **languages}


def _flat(results: dict[str, Any]) -> dict[str, Any]:
    """Settings, models, versions and machine, a line each."""
    named: dict[str, Any] = results["settings"] | {
        name: results[name] for name in ("embedder", "seed") if name in results
    }
    for group in ("model", "versions", "machine"):
        named |= {f"{group}: {name}": value for name, value in results[group].items()}
    return named


# -- charts ------------------------------------------------------------------------------------------------------


def _charts_of_answers(rows: Sequence[Row]) -> list[tuple[str, str]]:
    answerable = [row for row in rows if row["answerable"]]
    found = []
    if answerable:
        deepest = max(len(row["passages"]) for row in answerable)
        held = [
            sum(any(_holds(p, row) for p in row["passages"][:k]) for row in answerable) / len(answerable)
            for k in range(1, max(deepest, 1) + 1)
        ]
        found.append(("Answer among the first k passages", charts.over_k({"": {"answer in context": held}})))
        found.append(("F1 over the prompt's length", charts.f1_over_prompt(rows)))
    if any(row["passages"] for row in rows):
        found.append(("Similarity of the best passage, right and wrong answers", charts.scores(rows)))
    phases = {
        name: [row["timings"][f"{name}_s"] for row in rows] for name in ("retrieve", "prefill", "decode", "total")
    }
    found.append(("Latency (answers run side by side)", charts.latency(phases)))
    return found


def _charts_of_retrieval(run: Run) -> list[tuple[str, str]]:
    modes: dict[str, list[float]] = {}
    for row in run.rows:
        modes.setdefault(row["mode"], []).append(row["seconds"])
    return [
        ("Recall over k", charts.over_k(run.results["over_k"])),
        ("Latency of a query", charts.latency(modes)),
    ]


def _holds(passage: Row, row: Row) -> bool:
    from app.evaluate.metrics import contains

    return bool(contains(passage["text"], row["answers"]))


# -- cases -------------------------------------------------------------------------------------------------------


def _kind(row: Row) -> str:
    if is_right(row):
        return "right"
    if "holds_answer" in row:
        return "missed"
    if not row["answerable"]:
        return "invented"
    if row["refused"]:
        return "refused"
    return "unread" if row["in_context"] else "missed"


def _badness(row: Row) -> tuple[int, float, float]:
    """Sort key, worst first: wrong before right, then by the score that says how far off it was."""
    if "holds_answer" in row:
        first = [values.get("mrr@10", 0.0) for values in row["scores"].values()]
        return int(is_right(row)), min(first, default=0.0), -(row["passages"][0]["score"] if row["passages"] else 0.0)
    # A wrong answer from the right passage tells most about the model, so it stands before what was not retrieved.
    return int(is_right(row)), row["scores"]["f1"] if row["answerable"] else 0.0, -float(row["in_context"])


def _case(row: Row) -> dict[str, Any]:
    quotes: dict[str, list[str]] = {}
    for citation in row.get("citations", ()):
        quotes.setdefault(citation["chunk_id"], []).append(citation["quote"])
    return {
        "id": row["id"],
        "kind": _kind(row),
        "question": row["question"],
        "gold": row["answers"],
        "answer": row.get("answer"),
        "mode": row.get("mode"),
        "ranks": {
            level: next((n for n, id_ in enumerate(row["retrieved"][level], 1) if id_ in relevant), None)
            for level, relevant in row.get("relevant", {}).items()
        },
        "scores": row["scores"] if "answer" in row else {},
        "passages": [
            {**each, "marked": marked(each["text"], quotes.get(each["chunk_id"], []), row["answers"])}
            for each in row["passages"]
        ],
    }


def marked(text: str, quotes: Iterable[str], golds: Iterable[str]) -> list[tuple[str, str]]:
    """The text as pieces (CSS classes, text): 'quote' where a citation quotes it, 'gold' where a gold answer stands."""
    classes: list[set[str]] = [set() for _ in text]
    for name, wanted in (("quote", quotes), ("gold", golds)):
        for one in wanted:
            if one.strip():
                for hit in re.finditer(re.escape(one), text, re.IGNORECASE):
                    for place in range(*hit.span()):
                        classes[place].add(name)
    pieces: list[tuple[str, str]] = []
    for letter, names in zip(text, classes, strict=True):
        name = " ".join(sorted(names))
        if pieces and pieces[-1][0] == name:
            pieces[-1] = (name, pieces[-1][1] + letter)
        else:
            pieces.append((name, letter))
    return pieces
