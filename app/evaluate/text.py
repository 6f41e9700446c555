"""Figures for a terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def table(figures: dict[str, Any]) -> str:
    """Figures in per cent with their intervals, a line each."""
    width = max(len(name) for name in figures)
    lines = [f"{'':{width}}   value   95% interval      n"]
    for name, each in figures.items():
        interval = f"[{100 * each['low']:.1f}, {100 * each['high']:.1f}]"
        lines.append(f"{name:{width}}  {100 * each['value']:6.1f}   {interval:14} {each['n']:4}")
    return "\n".join(lines)


def side_by_side(figures: dict[str, dict[str, Any]]) -> str:
    """Figures of several modes, a column each."""
    names = list(dict.fromkeys(name for each in figures.values() for name in each))
    width = max(len(name) for name in names)
    lines = [" " * width + "".join(f"{mode:>10}" for mode in figures)]
    show: Callable[[Any], str] = lambda each: f"{100 * each['value']:.1f}" if each else "–"  # noqa: E731
    lines += [f"{name:{width}}" + "".join(f"{show(each.get(name)):>10}" for each in figures.values()) for name in names]
    return "\n".join(lines)


def render(results: dict[str, Any]) -> str:
    """What `paddock eval` prints of a run."""
    if results["kind"] == "perplexity":
        return _perplexity(results)
    if results["kind"] == "calibrate":
        return _calibrate(results)
    data = results["dataset"]
    head = f"{data['name']}: {data['questions']} questions, {data['documents']} documents, {data['chunks']} chunks"
    if results["kind"] == "retrieval":
        return f"{head}\n{_modes(results)}"
    how = "gold context" if results["gold_context"] else f"k = {results['k']}"
    lines = [f"{head}; {results['model']['name']} ({results['model']['dtype']}), {how}", table(results["figures"])]
    if results["by_language"]:
        lines += ["by the question's language", side_by_side(results["by_language"])]
    lines += [
        f"BLEU ({b['language']}) {b['value']:.1f} [{b['low']:.1f}, {b['high']:.1f}]  {b['signature']}"
        for b in results["bleu"]
    ]
    rate = (results["answered"] - results["kept"]) / max(results["seconds"], 1e-9)
    lines.append(
        f"{results['answered']} answered ({results['kept']} of them before), {len(results['failed'])} failed; "
        f"{results['seconds']:.0f} s, {rate:.2f} answers a second"
    )
    return "\n".join(lines)


def _calibrate(results: dict[str, Any]) -> str:
    """What is refused of each group of questions, and what each feature is worth."""
    told = {
        "own": "own documents",
        "alone": "its article alone",
        "without": "without its article",
        "other": "other documents",
        "another": "another article",
    }
    threshold, questions = results["threshold"], results["dataset"]["questions"]
    width = max(len(each["dataset"]) for each in results["groups"])
    lines = [f"{questions} questions; {results['embedder']}; refused below {threshold:.3f}, articles held out"]
    lines.append(f"{'set':{width}}  asked to             answerable  refused      n")
    lines += [
        f"{each['dataset']:{width}}  {told[each['how']]:20} {'yes' if each['answerable'] else 'no':10} "
        f"{100 * each['refused']:7.1f}% {each['n']:6}"
        for each in results["groups"]
    ]
    lines.append("area under the curve: " + ", ".join(f"{name} {value:.3f}" for name, value in results["area"].items()))
    return "\n".join([*lines, f"Written to {results['written']}"])


def _modes(results: dict[str, Any]) -> str:
    """One mode with its intervals, several side by side."""
    modes = results["figures"]
    lines = [table(next(iter(modes.values()))) if len(modes) == 1 else side_by_side(modes)]
    languages = {f"{mode} {name}": each for mode, of in results["by_language"].items() for name, each in of.items()}
    if languages:
        lines += ["by the question's language", side_by_side(languages)]
    times = [f"{mode} {t['p50_ms']:.0f} and {t['p95_ms']:.0f} ms" for mode, t in results["latency"].items()]
    return "\n".join([*lines, f"latency of a query (p50 and p95): {', '.join(times)}"])


def _perplexity(results: dict[str, Any]) -> str:
    """A line for each file and one for all."""
    model = results["model"]
    lines = [f"{model['name']} ({model['dtype']}), windows of {results['window']}, stride {results['stride']}"]
    lines.append("perplexity   bits/byte    tokens  file")
    for name, each in [*results["files"].items(), ("all", results)]:
        if each["perplexity"] is not None:
            lines.append(f"{each['perplexity']:10.3f}  {each['bits_per_byte']:10.4f}  {each['tokens']:8}  {name}")
    return "\n".join(lines if len(results["files"]) > 1 else lines[:-1])
