"""A whole evaluation: inputs read, the knowledge base found or built, figures taken, everything recorded."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from app import confidence as confidence_of
from app.config import Retrieval
from app.errors import AppError, Misuse
from app.evaluate import answers, calibrate, corpus, retrieval
from app.evaluate.beir import read_beir
from app.evaluate.corpus import Corpus, unfindable
from app.evaluate.questions import Dataset, read_jsonl, read_squads
from app.evaluate.record import identity_of, make_folder, read_results, recorded, surroundings, write_json, write_rows
from app.evaluate.stats import Score
from app.progress import bar, ingest_bar
from app.prompt import language_of
from app.services import RETRIEVERS, Services

Row = dict[str, Any]
FAULTS_SHOWN = 20


@dataclass(frozen=True)
class Inputs:
    """Where questions and documents come from: one of `file`, `squad` and `beir`; `docs` goes with `file`.

    `similar`: its articles are so much alike that one may answer the questions of another.
    """

    file: Path | None = None
    squad: tuple[Path, ...] = ()
    beir: Path | None = None
    docs: Path | None = None
    limit: int | None = None
    similar: bool = False

    def __post_init__(self) -> None:
        """Raises Misuse when it is not one set of questions."""
        if sum([bool(self.file), bool(self.squad), bool(self.beir)]) != 1:
            raise Misuse("give the questions as one of FILE, --squad FILE and --beir DIR")
        if self.docs and not self.file:
            raise Misuse("--docs goes with a FILE of questions; the other sets bring their own documents")

    def read(self, seed: int) -> Dataset:
        """The questions, `limit` of them. Raises AppError for a file or folder that cannot be used."""
        if self.squad:
            found = read_squads(self.squad)
        elif self.beir:
            found = read_beir(self.beir)
        else:
            assert self.file is not None
            found = read_jsonl(self.file)
        return found.sample(self.limit, seed)

    def corpus(self, dataset: Dataset, services: Services) -> Corpus:
        """The knowledge base to ask: the set's own documents, those of `docs`, or the user's."""
        with ingest_bar() as progress:
            if dataset.articles:
                found = corpus.of_articles(dataset.articles, services.settings, progress)
            elif self.docs:
                found = corpus.of_folder(self.docs, services.settings, progress)
            else:
                found = Corpus(services, {})
        if found.report is not None:
            dataset.faults += [f"{each.source}: {each.error}" for each in found.report.failed]
        if self.file is not None:
            dataset.faults += [
                f"{self.file}:{gold.line}: {what}" for gold, what in unfindable(dataset.questions, found)
            ]
        return found


@dataclass
class Run:
    """What came out: `results` is results.json, `rows` what stands behind the figures, a row a question."""

    results: dict[str, Any]
    rows: list[Row] = field(default_factory=list)


def tell_faults(faults: Sequence[str]) -> None:
    """Faults of the input on standard error, the first of them one by one."""
    for fault in faults[:FAULTS_SHOWN]:
        click.echo(f"paddock: {' '.join(fault.split())}", err=True)
    if len(faults) > FAULTS_SHOWN:
        click.echo(f"paddock: and {len(faults) - FAULTS_SHOWN} more faults like these", err=True)


def run_retrieval(inputs: Inputs, services: Services, modes: Sequence[Retrieval], report: Path | None = None) -> Run:
    """Every mode on the same questions. Raises AppError for inputs or a folder that cannot be used."""
    settings = services.settings
    make_folder(report)
    dataset = inputs.read(settings.seed)
    place = inputs.corpus(dataset, services)
    tell_faults(dataset.faults)
    started = time.perf_counter()
    found: dict[str, list[Row]] = {}
    with bar(len(dataset.questions) * len(modes or RETRIEVERS), "question") as advance:
        for mode in modes or RETRIEVERS:
            found[mode] = retrieval.evaluate(dataset.questions, place, place.services.settings.kb, mode, advance)
    results = {
        **recorded("retrieval", dataset, inputs.limit, place),
        "seconds": round(time.perf_counter() - started, 2),
        "figures": {mode: _json(retrieval.figures(each, settings.seed)) for mode, each in found.items()},
        "by_language": {mode: _by_language(each, retrieval.figures, settings.seed) for mode, each in found.items()},
        "latency": {mode: retrieval.latency([row["seconds"] for row in each]) for mode, each in found.items()},
        "over_k": {mode: retrieval.over_k(each) for mode, each in found.items()},
    }
    return Run(results, [row for each in found.values() for row in each])


def run_answers(
    inputs: Inputs,
    services: Services,
    gold_context: bool = False,
    rows: int = 16,
    report: Path | None = None,
    resume: bool = False,
) -> Run:
    """Answers and scores every question; with `report`, each row is on disk as soon as it is there.

    resume takes over the answers in `report` that an earlier run with the same settings left, and scores them by the
    gold answers as they are now. Raises AppError.
    """
    settings = services.settings
    make_folder(report)
    dataset = inputs.read(settings.seed)
    answers.require_answers(dataset.questions)
    place = inputs.corpus(dataset, services)
    if place.services.retriever(place.services.settings.kb, settings.k) is None:
        raise AppError(
            f"the knowledge base '{place.services.settings.kb}' holds no documents; ingest some, then evaluate"
        )
    tell_faults(dataset.faults)
    place.services.warm()
    head = {**recorded("answers", dataset, inputs.limit, place), "gold_context": gold_context, "k": settings.k}
    head["model"]["dtype"] = place.services.engine.precision
    head["calibration"] = place.services.confidence.digest
    head["identity"] = identity_of(head)
    known = _known(report, head["identity"]) if report and resume else {}
    started = time.perf_counter()
    plan = answers.plan(dataset.questions, place, place.services.settings.kb, settings.k, gold_context, known)
    taken = {row["id"]: row for row in [*plan.kept, *plan.failed]}
    # Answers to questions that are not asked this time (a smaller --limit) stay until the run is through.
    others = [row for id_, row in known.items() if id_ not in {gold.id for gold in dataset.questions}]
    with bar(len(dataset.questions), "question") as advance, _Log(report, head, [*plan.kept, *others]) as log:
        advance(len(taken), "kept")
        for row in answers.ask(plan.todo, place, rows):
            log.write(row)
            taken[row["id"]] = row
            advance(1, row["id"])
    ordered = [taken[gold.id] for gold in dataset.questions]
    return Run(_answer_results(head, ordered, len(plan.kept), time.perf_counter() - started, settings.seed), ordered)


def _answer_results(head: Row, rows: Sequence[Row], kept: int, seconds: float, seed: int) -> Row:
    good = [row for row in rows if "error" not in row]
    failed = [{"id": row["id"], "error": row["error"]} for row in rows if "error" in row]
    if not good:
        raise AppError(f"none of the {len(rows)} questions could be answered ({failed[0]['error']})")
    spent = [row["timings"] for row in good]
    return {
        **head,
        "seconds": round(seconds, 2),
        "answered": len(good),
        "kept": kept,
        "failed": failed,
        "figures": _json(answers.figures(good, seed)),
        "by_language": _by_language(good, answers.figures, seed),
        "bleu": answers.bleu(good),
        "latency": {
            name: retrieval.latency([each[f"{name}_s"] for each in spent])
            for name in ("retrieve", "prefill", "decode", "total")
        },
        "tokens": {
            name: sum(each[name] for each in spent) for name in ("prompt_tokens", "cached_tokens", "answer_tokens")
        },
    }


def run_calibrate(inputs: Sequence[Inputs], services: Services, out: Path | None, report: Path | None = None) -> Run:
    """Learns P(answerable) from several sets, each asked its own documents and the others', and keeps the parameters.

    out: the file they go to, by default the user's for this embedder. Raises AppError.
    """
    settings = services.settings
    make_folder(report)
    sets = []
    for each in inputs:
        dataset = each.read(settings.seed)
        answers.require_answers(dataset.questions)
        asked_to = each.corpus(dataset, services)
        with ingest_bar() as progress:
            kb = asked_to.services.settings.kb
            alone = corpus.each_alone(asked_to, kb, calibrate.chosen(dataset), settings, progress)
        sets.append(calibrate.Set(dataset, asked_to, alone, each.similar))
        tell_faults(dataset.faults)
    started = time.perf_counter()
    with bar(sum(len(each.dataset.questions) for each in sets), "question") as advance:
        asked = list(calibrate.ask(sets, advance))
    names = [each.dataset.name for each in sets]
    made, confidence = calibrate.calibrate(asked, services, names)
    place = confidence_of.path_of(services.calibration, made[0].holds_for) if out is None else out
    confidence_of.write(place, made[:1] if out is None else made)
    threshold = made[0].threshold if settings.threshold is None else settings.threshold
    results = {
        "kind": "calibrate",
        "dataset": {"name": "+".join(names), "sets": names, "questions": len(asked)},
        "embedder": services.embedder.identity,
        **surroundings(settings),
        "seconds": round(time.perf_counter() - started, 2),
        "written": str(place),
        "parameters": dict(made[0].parameters),
        "threshold": threshold,
        "groups": calibrate.figures(asked, confidence, threshold),
        "area": calibrate.ablation(asked),
        "curve": calibrate.curve(asked, confidence),
        "reliability": calibrate.reliability(asked, confidence),
    }
    return Run(results, [each.to_json(float(value)) for each, value in zip(asked, confidence, strict=True)])


class _Log:
    """answers.jsonl while a run goes on: begun with the rows that are kept, a line added for each that comes."""

    def __init__(self, folder: Path | None, head: Row, kept: Iterable[Row]) -> None:
        self.file = None
        if folder is None:
            return
        try:
            write_json(folder / "results.json", {**head, "unfinished": True})
            write_rows(folder / "answers.jsonl", kept)
            self.file = (folder / "answers.jsonl").open("a", encoding="utf-8")
        except OSError as error:
            raise AppError(f"{folder} cannot be written ({error.strerror}); choose another --report") from error

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            self.file.close()

    def write(self, row: Row) -> None:
        if self.file is not None:
            self.file.write(json.dumps(row, ensure_ascii=False) + "\n")
            self.file.flush()


def _known(report: Path, identity: str) -> dict[str, Row]:
    """The rows of an earlier run in that folder. Raises AppError if it was made with other settings."""
    path = report / "results.json"
    if not path.exists():
        return {}
    before = read_results(report)
    if before.get("identity") != identity:
        raise AppError(
            f"{report} holds a run with other settings, documents or model; "
            "choose another --report, or leave out --resume to begin anew"
        )
    return answers.read_rows(report / "answers.jsonl")


def _by_language(
    rows: Sequence[Row], figures: Callable[[Sequence[Row], int], dict[str, Score]], seed: int
) -> dict[str, Any]:
    """Figures of the questions in each language; empty where all are in one."""
    of: dict[str, list[Row]] = {}
    for row in rows:
        of.setdefault(language_of(row["question"]), []).append(row)
    return {language: _json(figures(of[language], seed)) for language in sorted(of)} if len(of) > 1 else {}


def _json(figures: dict[str, Score]) -> dict[str, Any]:
    return {name: figure.to_json() for name, figure in figures.items()}
