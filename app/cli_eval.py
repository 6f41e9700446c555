"""`paddock eval`: thin, like the rest of the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from app.errors import AppError
from app.options import model_options, services

PATH = click.Path(path_type=Path)

INPUT_OPTIONS = [
    click.argument("file", required=False, type=PATH),
    click.option("--squad", multiple=True, type=PATH, metavar="FILE", help="Questions and documents in SQuAD's form."),
    click.option("--docs", type=PATH, metavar="DIR", help="Ask these documents instead of a knowledge base."),
    click.option("--kb", metavar="NAME", help="Knowledge base to ask (default: default)."),
    click.option("--limit", type=click.IntRange(1), metavar="N", help="Only N questions, drawn by --seed."),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table."),
    click.option("--report", type=PATH, metavar="DIR", help="Write results.json, the rows and report.html there."),
]


SEED = click.option("--seed", type=click.IntRange(0), metavar="N", help="Seed of --limit and of the intervals.")


def input_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of the commands that ask questions."""
    for option in reversed(INPUT_OPTIONS):
        command = option(command)
    return command


@click.group("eval")
def eval_group() -> None:
    """Measure retrieval, answers, refusals and perplexity.

    Questions come from a FILE of JSON lines ({"question", "answers", "source", "page", "answerable"}), asked to a
    knowledge base or to the documents of --docs; or from a set that brings its own documents (--squad, --beir), for
    which a throw-away knowledge base is built once and kept in the cache.
    """


@eval_group.command("retrieval")
@input_options
@click.option("--beir", type=PATH, metavar="DIR", help="Questions and documents as BEIR has them.")
@click.option("--mode", "modes", multiple=True, help="Way to retrieve (default: every one there is, side by side).")
@click.option("--rerank", metavar="HOW", help="off, likelihood (by the LLaMA), or a cross-encoder's folder.")
@SEED
def eval_retrieval(
    file: Path | None,
    squad: tuple[Path, ...],
    docs: Path | None,
    limit: int | None,
    as_json: bool,
    report: Path | None,
    beir: Path | None,
    modes: tuple[Any, ...],
    **overrides: Any,
) -> None:
    """Recall, MRR and nDCG of documents, pages and paragraphs, and whether a retrieved chunk holds a gold answer."""
    from app.evaluate.run import Inputs, run_retrieval
    from app.services import RETRIEVERS

    for mode in modes:
        if mode not in RETRIEVERS:
            raise click.UsageError(f"there is no mode '{mode}'; there are: {', '.join(RETRIEVERS)}")
    inputs = Inputs(file, squad, beir, docs, limit)
    _no_kb(inputs, overrides)
    _give(run_retrieval(inputs, services(**overrides), modes, report), as_json, report)


@eval_group.command("answers")
@input_options
@click.option("--k", type=click.IntRange(1, 50), metavar="N", help="Chunks to retrieve (default 4).")
@click.option("--gold-context", is_flag=True, help="Give the model the passage that holds the answer; no retrieval.")
@click.option("--rows", type=click.IntRange(1, 256), default=16, show_default=True, help="Answers generated at once.")
@click.option("--resume", is_flag=True, help="Go on with the unfinished run in --report.")
@model_options
def eval_answers(
    file: Path | None,
    squad: tuple[Path, ...],
    docs: Path | None,
    limit: int | None,
    as_json: bool,
    report: Path | None,
    gold_context: bool,
    rows: int,
    resume: bool,
    **overrides: Any,
) -> None:
    """Exact match, F1, contains, ROUGE-L, BLEU, refusals, citations and groundedness of the answers."""
    from app.evaluate.run import Inputs, run_answers

    if resume and report is None:
        raise click.UsageError("--resume goes with --report, whose rows it takes over")
    inputs = Inputs(file, squad, None, docs, limit)
    _no_kb(inputs, overrides)
    _give(run_answers(inputs, services(**overrides), gold_context, rows, report, resume), as_json, report)


@eval_group.command("calibrate")
@click.argument("file", required=False, type=PATH)
@click.option("--docs", type=PATH, metavar="DIR", help="The documents that the questions of FILE are about.")
@click.option("--squad", multiple=True, type=PATH, metavar="FILE", help="A set in SQuAD's form; several times.")
@click.option(
    "--similar",
    multiple=True,
    type=PATH,
    metavar="FILE",
    help="As --squad, of articles so much alike that one may answer the questions of another.",
)
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only N questions of each set, drawn by --seed.")
@click.option("-o", "--out", type=PATH, metavar="FILE", help="Write the parameters there, with those for any embedder.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
@click.option("--report", type=PATH, metavar="DIR", help="Write results.json, the rows and report.html there.")
@SEED
def eval_calibrate(
    file: Path | None,
    docs: Path | None,
    squad: tuple[Path, ...],
    similar: tuple[Path, ...],
    limit: int | None,
    out: Path | None,
    as_json: bool,
    report: Path | None,
    **overrides: Any,
) -> None:
    """Learn when a question is refused, for the embedder in use: P(answerable) from what retrieval finds.

    Every set is asked its own documents, all of them, without the question's article and by single articles, and those
    of the other sets in its language; in FILE, questions may be marked as not answerable. The parameters are kept in
    the state folder under calibration/ and used from then on wherever questions are asked with this embedder.
    """
    from app.evaluate.run import Inputs, run_calibrate

    if docs is not None and file is None:
        raise click.UsageError("--docs goes with a FILE of questions")
    inputs = [Inputs(squad=(path,), limit=limit) for path in squad]
    inputs += [Inputs(squad=(path,), limit=limit, similar=True) for path in similar]
    if file is not None:
        inputs.append(Inputs(file=file, docs=docs, limit=limit))
    if not inputs:
        raise click.UsageError("give questions: --squad FILE, --similar FILE, or a FILE with --docs DIR")
    _give(run_calibrate(inputs, services(**overrides), out, report), as_json, report)


def _no_kb(inputs: Any, overrides: dict[str, Any]) -> None:
    """Refuses --kb where nothing of it would be asked."""
    if overrides["kb"] is not None and (inputs.squad or inputs.beir or inputs.docs):
        raise click.UsageError("--kb goes with a FILE alone; --squad, --beir and --docs bring their own documents")


def _give(run: Any, as_json: bool, report: Path | None) -> None:
    from app.evaluate.text import render

    if report is not None:
        from app.evaluate.report import write_report

        write_report(run, report)
    click.echo(json.dumps(run.results, ensure_ascii=False) if as_json else render(run.results))
    if report is not None:
        click.echo(f"Report: {report / 'report.html'}", err=True)


@eval_group.command("perplexity")
@click.argument("files", nargs=-1, required=True, type=PATH)
@click.option("--window", type=click.IntRange(2), metavar="N", help="Tokens read at once (default 1024).")
@click.option("--stride", type=click.IntRange(1), metavar="N", help="Tokens a window moves on (default: half of it).")
@click.option("--rows", type=click.IntRange(1, 64), default=4, show_default=True, help="Windows read at once.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
@click.option("--report", type=PATH, metavar="DIR", help="Write results.json and report.html there.")
@model_options
def eval_perplexity(
    files: tuple[Path, ...],
    window: int | None,
    stride: int | None,
    rows: int,
    as_json: bool,
    report: Path | None,
    **overrides: Any,
) -> None:
    """Perplexity and bits per byte of the text of FILES, whatever can be ingested."""
    from app.evaluate.perplexity import run
    from app.evaluate.record import make_folder
    from app.evaluate.run import Run

    make_folder(report)
    _give(Run(run(services(**overrides), files, window, stride, rows)), as_json, report)


@eval_group.command("compare")
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@click.option(
    "--judge",
    is_flag=False,
    flag_value="local",
    metavar="[URL]",
    help="Have a model choose between the answers: the loaded one, or that of an OpenAI-compatible URL.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
@model_options
def eval_compare(a: Path, b: Path, judge: str | None, as_json: bool, **overrides: Any) -> None:
    """Set runs A and B (their --report folders) side by side, with paired significance and what flipped.

    The options of a model are those of the loaded one that --judge asks.
    """
    from app.evaluate.compare import compare, render

    given = [name for name, value in overrides.items() if value is not None and name != "seed"]
    if given and judge != "local":
        raise click.UsageError(f"--{given[0]} goes with --judge alone, which loads a model; nothing else here does")
    made = services(**overrides)
    result = compare(a, b, made.settings.seed)
    if judge is not None:
        from app.evaluate.judge import EndpointJudge, LocalJudge, judge_runs
        from app.progress import bar

        settings = made.settings
        if judge == "local":
            by: Any = LocalJudge(made.engine, made.named_adapter)
        elif judge.startswith(("http://", "https://")):
            by = EndpointJudge(judge, settings.judge_model, settings.judge_api_key)
        else:
            raise click.UsageError(f"--judge takes an http:// or https:// address, or nothing; not '{judge}'")
        with bar(result["shared"], "answer") as advance:
            result["judge"] = judge_runs(a, b, by, advance)
    click.echo(json.dumps(result, ensure_ascii=False) if as_json else render(result))


@eval_group.command("gate")
@click.argument("file", type=PATH)
@click.option("--docs", required=True, type=PATH, metavar="DIR", help="Documents to ask.")
@click.option("--baseline", required=True, type=PATH, metavar="FILE", help="Figures that must hold.")
@click.option("--update", is_flag=True, help="Write the figures as the new baseline.")
@model_options
def eval_gate(file: Path, docs: Path, baseline: Path, update: bool, **overrides: Any) -> None:
    """Fail (exit 1) when figures are worse than a baseline by more than their tolerance.

    These are recall@5, contains, refusal F1 and the share of answerable questions that are refused. A baseline of other
    questions, or of another model, embedder or --k, is not compared with.
    """
    from app.evaluate import gate
    from app.evaluate.run import Inputs, run_answers, run_retrieval
    from app.evaluate.text import render

    made = services(**overrides)
    inputs = Inputs(file=file, docs=docs)
    before, with_ = gate.prepare(inputs, made, baseline, update)
    found, answered = run_retrieval(inputs, made, [made.settings.retrieval]), run_answers(inputs, made)
    click.echo(render(found.results) + "\n\n" + render(answered.results) + "\n")
    figures = gate.taken(found, answered)
    if before is None:
        gate.write_baseline(baseline, figures, with_)
        click.echo(f"Written to {baseline}: " + ", ".join(f"{name} {100 * v:.1f}" for name, v in figures.items()))
        return
    lines, good = gate.judge(figures, before)
    click.echo("\n".join(lines))
    if not good:
        raise AppError(
            f"figures are worse than {baseline}; mend the cause, or accept them on purpose with --update and commit it"
        )
