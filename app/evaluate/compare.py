"""Two runs side by side: paired differences, the questions that flipped, and a judge's verdicts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.errors import AppError
from app.evaluate import answers, retrieval
from app.evaluate.record import ROWS, read_results
from app.evaluate.stats import Parts, paired, ratio
from app.lines import is_valid, read_lines

Row = dict[str, Any]
PARTS: dict[str, Callable[[Row], dict[str, Parts]]] = {"answers": answers.parts_of, "retrieval": retrieval.parts_of}
FLIP_AT = 5


def read_run(folder: Path) -> tuple[dict[str, Any], dict[str, Row]]:
    """A run's results and its scored rows by question. Raises AppError for a folder that holds none."""
    results = read_results(folder)
    if "unfinished" in results:
        raise AppError(f"the run in {folder} was interrupted; finish it with --resume")
    name = ROWS.get(results["kind"])
    if name is None:
        raise AppError(f"{folder} holds a run of kind '{results['kind']}', which has no questions to compare")
    rows: dict[str, Row] = {}
    try:
        for _, line in read_lines(folder / name):
            row = json.loads(line) if is_valid(line) else {}
            if "scores" in row:
                # A run of retrieval may hold several modes; the same question in another mode is another row.
                rows[json.dumps([row["id"], row.get("mode")])] = row
    except (OSError, ValueError) as error:
        raise AppError(f"{folder / name} cannot be read ({error}); run the evaluation again") from error
    return results, rows


def compare(a: Path, b: Path, seed: int = 0) -> dict[str, Any]:
    """Figures of both runs on the questions that they share, with the paired difference, and what flipped.

    Raises AppError for runs of different kinds, without common questions, or not written by an evaluation.
    """
    try:
        return _compared(a, b, seed)
    except (KeyError, TypeError, AttributeError) as error:
        raise AppError(f"{a} or {b} was not written whole by `paddock eval` ({error}); evaluate again") from error


@dataclass(frozen=True)
class Pair:
    """Two runs of one kind; `shared` are the keys of the questions that both have, by id and text."""

    results: tuple[Row, Row]
    rows: tuple[dict[str, Row], dict[str, Row]]
    shared: list[str]


def read_pair(a: Path, b: Path) -> Pair:
    """Raises AppError for runs of different kinds or without common questions."""
    kinds = [read_results(folder)["kind"] for folder in (a, b)]
    if kinds[0] != kinds[1]:
        raise AppError(f"{a} is a run of kind {kinds[0]} and {b} one of kind {kinds[1]}; give two of one kind")
    (results_a, rows_a), (results_b, rows_b) = read_run(a), read_run(b)
    rows_a, rows_b = _by_mode(results_a, rows_a), _by_mode(results_b, rows_b)
    shared = [id_ for id_ in rows_a if id_ in rows_b and rows_a[id_]["question"] == rows_b[id_]["question"]]
    if not shared:
        raise AppError(f"{a} and {b} have no question in common; compare runs of the same questions")
    return Pair((results_a, results_b), (rows_a, rows_b), shared)


def _compared(a: Path, b: Path, seed: int) -> dict[str, Any]:
    pair = read_pair(a, b)
    (results_a, results_b), (rows_a, rows_b), shared = pair.results, pair.rows, pair.shared
    parts = PARTS[results_a["kind"]]
    columns_a, columns_b = _columns(rows_a, shared, parts), _columns(rows_b, shared, parts)
    figures = {
        name: found
        for name in dict.fromkeys([*columns_a, *columns_b])
        if (found := _side_by_side(columns_a.get(name, {}), columns_b.get(name, {}), seed)) is not None
    }
    return {
        "kind": results_a["kind"],
        "a": str(a),
        "b": str(b),
        "shared": len(shared),
        "only_a": len(rows_a) - len(shared),
        "only_b": len(rows_b) - len(shared),
        "changed_settings": _changed(results_a, results_b),
        "figures": figures,
        "flipped": _flipped(rows_a, rows_b, shared),
    }


def _side_by_side(a: Mapping[str, Parts], b: Mapping[str, Parts], seed: int) -> dict[str, Any] | None:
    """A figure of both runs; of one alone where the other has none (nothing was refused, for one), without a p."""
    difference = paired(a, b, seed)
    if difference is not None:
        return difference.to_json()
    one, other = ratio(list(a.values()), seed), ratio(list(b.values()), seed)
    if not (one.n or other.n):
        return None
    nothing = dict.fromkeys(("difference", "low", "high", "p"))
    return {"a": one.to_json()["value"], "b": other.to_json()["value"], **nothing, "n": one.n + other.n}


def _by_mode(results: Mapping[str, Any], rows: dict[str, Row]) -> dict[str, Row]:
    """Without the mode in the key where a run has but one, so that two modes can be compared from two runs."""
    if len(results["figures"]) == 1 or results["kind"] != "retrieval":
        return {json.dumps(row["id"]): row for row in rows.values()}
    return rows


def _columns(
    rows: Mapping[str, Row], shared: Sequence[str], parts: Callable[[Row], dict[str, Parts]]
) -> dict[str, dict[str, Parts]]:
    """figure -> question -> its parts; questions that a figure is not about count nothing in it."""
    found: dict[str, dict[str, Parts]] = {}
    for id_ in shared:
        for name, each in parts(rows[id_]).items():
            found.setdefault(name, dict.fromkeys(shared, (0.0, 0.0)))[id_] = each
    return found


def _changed(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """Settings, models and data that differ, as [in A, in B]."""
    flat_a, flat_b = _flat(a), _flat(b)
    names = [name for name in flat_a | flat_b if flat_a.get(name) != flat_b.get(name)]
    return {name: [flat_a.get(name), flat_b.get(name)] for name in names}


def _flat(results: Mapping[str, Any]) -> dict[str, Any]:
    data = {name: results["dataset"][name] for name in ("name", "index", "limit")}
    more = {name: results[name] for name in ("adapter", "embedder", "seed", "gold_context", "k") if name in results}
    return {**data, **results["settings"], **{f"model {k}": v for k, v in results["model"].items()}, **more}


def is_right(row: Row) -> bool:
    """Whether a question counts as won: answered with a gold answer, refused where there is none, or retrieved."""
    if "holds_answer" in row:
        found = retrieval.parts_of(row)
        names = [name for name in found if name.endswith(f"@{FLIP_AT}")]
        return bool(names) and found[names[-1]][0] > 0
    return bool(row["scores"]["contains"]) if row["answerable"] else bool(row["refused"])


def _flipped(rows_a: Mapping[str, Row], rows_b: Mapping[str, Row], shared: Sequence[str]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {"won": [], "lost": []}
    for id_ in shared:
        a, b = rows_a[id_], rows_b[id_]
        if is_right(a) != is_right(b):
            one = {"id": b["id"], "question": b["question"], "answers": b["answers"]}
            if "answer" in a:
                one |= {"a": a["answer"], "b": b["answer"]}
            found["won" if is_right(b) else "lost"].append(one)
    return found


def render(result: Mapping[str, Any], shown: int = 10) -> str:
    """What `paddock eval compare` prints."""
    lines = [f"{result['shared']} shared questions; A = {result['a']}, B = {result['b']}"]
    if result["only_a"] or result["only_b"]:
        lines.append(f"left out: {result['only_a']} only in A, {result['only_b']} only in B")
    for name, (a, b) in result["changed_settings"].items():
        lines.append(f"  {name}: {a} -> {b}")
    width = max(len(name) for name in result["figures"])
    lines.append(f"{'':{width}}       A       B   B - A   95% interval        p")
    lines += [f"{name:{width}}  {_columns_of(each)}" for name, each in result["figures"].items()]
    won, lost = result["flipped"]["won"], result["flipped"]["lost"]
    lines.append(f"flipped: {len(won)} won, {len(lost)} lost")
    for word, rows in (("won ", won), ("lost", lost)):
        for row in rows[:shown]:
            lines.append(f"  {word} {row['id']}: {row['question']}")
            if "a" in row:
                lines.append(f"       gold {_short(' / '.join(row['answers'])) or '(none)'} | A: {_short(row['a'])}")
                lines.append(f"       B: {_short(row['b'])}")
        if len(rows) > shown:
            lines.append(f"  ... {len(rows) - shown} more {word.strip()}; --json has all")
    if judged := result.get("judge"):
        lines.append(
            f"judge {judged['by']}: A {judged['a']}, B {judged['b']}, ties {judged['ties']} "
            f"({judged['identical']} of them identical answers); "
            f"{judged['inconsistent']} inconsistent verdicts dropped, {judged['failed']} failed"
        )
    return "\n".join(lines)


def _columns_of(figure: Mapping[str, Any]) -> str:
    """A, B, B - A, interval and p of a figure."""
    a, b = (f"{'–' if figure[side] is None else f'{100 * figure[side]:.1f}':>6}" for side in ("a", "b"))
    if figure["p"] is None:
        return f"{a}  {b}  {'–':>6}"
    low, high, p = 100 * figure["low"], 100 * figure["high"], figure["p"]
    # Fewer than one resample in a thousand is all that can be told from 2,000 of them.
    shown = "<0.001" if p < 0.001 else f"{p:.3f}"
    return f"{a}  {b}  {100 * figure['difference']:+6.1f}   {f'[{low:+.1f}, {high:+.1f}]':16} {shown:>6}"


def _short(text: str, most: int = 100) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"
