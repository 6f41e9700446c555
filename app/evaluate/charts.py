"""Charts of a report as SVG, drawn by Vega-Lite: no script and no network in the page, text in the page's colour."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Row = dict[str, Any]
INK = "currentColor"
# After Okabe and Ito (2008), so that any eye tells them apart; a little lighter, to be seen on dark ground too.
COLOURS = ["#2f8fd0", "#d9702b", "#1fa37a", "#c77cab", "#c99400", "#7a86d8"]
WIDTH, HEIGHT = 380, 230
BINS = 6


def _svg(chart: Any) -> str:
    import vl_convert

    quiet = {"labelColor": INK, "titleColor": INK, "domainColor": INK, "tickColor": INK, "titleFontWeight": "normal"}
    spec = chart.properties(width=WIDTH, height=HEIGHT).to_dict() | {
        "background": None,
        "config": {
            "font": "sans-serif",
            "axis": {**quiet, "gridColor": INK, "gridOpacity": 0.15, "labelFontSize": 11, "titleFontSize": 12},
            "legend": {"labelColor": INK, "titleColor": INK, "labelFontSize": 11, "orient": "bottom"},
            "view": {"stroke": None},
            "range": {"category": COLOURS},
        },
    }
    return str(vl_convert.vegalite_to_svg(json.dumps(spec)))


def _values(rows: Sequence[Mapping[str, Any]]) -> Any:
    import altair

    return altair.Data(values=list(rows))  # type: ignore[no-untyped-call]


def over_k(curves: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Recall over the number of retrieved chunks or documents; a colour for each level, a dash for each mode."""
    import altair as alt

    rows: list[Row] = [
        {"k": k, "found": value, "what": level, "mode": mode}
        for mode, levels in curves.items()
        for level, values in levels.items()
        for k, value in enumerate(values, 1)
    ]
    deepest = max((row["k"] for row in rows), default=1)
    line = (
        alt.Chart(_values(rows))
        .mark_line(point=True)
        .encode(
            x=alt.X(
                "k:Q", title="first k", axis=alt.Axis(tickMinStep=1, format="d"), scale=alt.Scale(domain=[1, deepest])
            ),
            y=alt.Y("found:Q", title="share found", axis=alt.Axis(format="%"), scale=alt.Scale(domain=[0, 1])),
            color=alt.Color("what:N", title=None),
            strokeDash=alt.StrokeDash("mode:N", title=None, legend=alt.Legend() if len(curves) > 1 else None),
        )
    )
    return _svg(line)


def f1_over_prompt(rows: Sequence[Row]) -> str:
    """Mean F1 of answerable questions by length of the prompt, in bins of like size, with 95% intervals."""
    import altair as alt

    from app.evaluate.stats import ratio

    of = sorted((row for row in rows if row["answerable"]), key=lambda row: row["timings"]["prompt_tokens"])
    found = []
    for part in np.array_split(np.arange(len(of)), min(BINS, max(len(of) // 5, 1))):
        if len(part):
            group = [of[i] for i in part]
            score = ratio([(row["scores"]["f1"], 1.0) for row in group])
            tokens = float(np.median([row["timings"]["prompt_tokens"] for row in group]))
            found.append({"tokens": tokens, "f1": score.value, "low": score.low, "high": score.high, "n": len(group)})
    base = alt.Chart(_values(found)).encode(
        x=alt.X("tokens:Q", title="tokens of the prompt (median of the bin)", scale=alt.Scale(zero=False, padding=12))
    )
    y = alt.Y("f1:Q", title="F1", axis=alt.Axis(format="%"), scale=alt.Scale(domainMin=0))
    bars = base.mark_rule(color=COLOURS[0], opacity=0.6).encode(y=alt.Y("low:Q", title="F1"), y2="high:Q")
    return _svg(bars + base.mark_line(point=True, color=COLOURS[0]).encode(y=y))


def scores(rows: Sequence[Row]) -> str:
    """How similar the best passage was, for right and for wrong answers."""
    import altair as alt

    from app.evaluate.compare import is_right

    found = [
        {"score": row["passages"][0]["score"], "answer": "right" if is_right(row) else "wrong"}
        for row in rows
        if row["passages"]
    ]
    chart = (
        alt.Chart(_values(found))
        .mark_bar(opacity=0.65)
        .encode(
            x=alt.X("score:Q", bin=alt.Bin(maxbins=24), title="similarity of the best passage"),
            y=alt.Y("count():Q", stack=None, title="questions"),
            color=alt.Color("answer:N", title=None, scale=alt.Scale(domain=["right", "wrong"], range=COLOURS[:2])),
        )
    )
    return _svg(chart)


def latency(seconds: Mapping[str, Sequence[float]]) -> str:
    """Share of questions that were done within a time, for each phase or mode."""
    import altair as alt

    rows = [
        {"ms": max(value * 1000, 0.1), "share": (place + 1) / len(values), "what": name}
        for name, values in seconds.items()
        for place, value in enumerate(np.sort(np.asarray(values, dtype=float)))
        if len(values) < 200 or place % (len(values) // 200) == 0 or place == len(values) - 1
    ]
    chart = (
        alt.Chart(_values(rows))
        .mark_line(interpolate="step-after")
        .encode(
            x=alt.X("ms:Q", title="milliseconds", scale=alt.Scale(type="log", nice=False), axis=alt.Axis(tickCount=6)),
            y=alt.Y("share:Q", title="share of questions done", axis=alt.Axis(format="%")),
            color=alt.Color("what:N", title=None, sort=list(seconds)),
        )
    )
    return _svg(chart)


def reliability(bins: Sequence[Row]) -> str:
    """Share of answerable questions over the mean confidence of each tenth; on the diagonal both are the same."""
    import altair as alt

    axis: dict[str, Any] = {"axis": alt.Axis(format="%"), "scale": alt.Scale(domain=[0, 1])}
    diagonal = alt.Chart(_values([{"x": 0, "y": 0}, {"x": 1, "y": 1}])).mark_line(
        color=INK, strokeDash=[4, 4], opacity=0.5
    )
    base = alt.Chart(_values(bins)).encode(
        x=alt.X("confidence:Q", title="confidence", **axis), y=alt.Y("answerable:Q", title="can be answered", **axis)
    )
    points = base.mark_circle(color=COLOURS[0], opacity=0.9).encode(
        size=alt.Size("n:Q", title="questions", scale=alt.Scale(range=[40, 400]))
    )
    return _svg(diagonal.encode(x="x:Q", y="y:Q") + base.mark_line(color=COLOURS[0]) + points)


def thresholds(curve: Sequence[Row], chosen: float) -> str:
    """Share of both kinds of questions that each threshold refuses, with the one that was chosen."""
    import altair as alt

    names = {"refused": "without an answer", "false refusals": "with an answer"}
    rows = [
        {"threshold": row["threshold"], "refused": row[name], "what": told}
        for row in curve
        for name, told in names.items()
    ]
    lines = (
        alt.Chart(_values(rows))
        .mark_line()
        .encode(
            x=alt.X("threshold:Q", title="threshold", scale=alt.Scale(domain=[0, 1])),
            y=alt.Y("refused:Q", title="refused", axis=alt.Axis(format="%"), scale=alt.Scale(domain=[0, 1])),
            color=alt.Color("what:N", title="questions", sort=list(names.values())),
        )
    )
    here = alt.Chart(_values([{"threshold": chosen}])).mark_rule(color=INK, strokeDash=[4, 4]).encode(x="threshold:Q")
    return _svg(lines + here)
