"""What `paddock ingest` and `paddock kb` do and print."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from app.errors import AppError
from app.progress import ingest_bar
from app.units import in_bytes
from ingest.inbox import is_document
from ingest.loaders import LOADERS
from ingest.report import Failure
from vectorstore.place import place_of

if TYPE_CHECKING:
    from app.config import Settings
    from app.services import Services
    from ingest.report import Report
    from ingest.sync import EmbedderLike, Ingestor


def run(made: Services, paths: Sequence[Path], kb: str | None, watch: bool, rebuild: bool, as_json: bool) -> None:
    """Syncs the knowledge bases that are meant and prints a report for each; with `watch` stays and follows changes."""

    def tell(report: Report) -> None:
        click.echo(json.dumps(report.to_json(), ensure_ascii=False) if as_json else render(report))

    from ingest.watch import Watcher

    watcher = Watcher(made.ingestor, tell)
    if watch:
        watcher.start()  # before the first round, so that nothing that changes during it is missed
    try:
        for report in reports(made.ingestor, paths, kb, rebuild):
            tell(report)
        if watch:
            click.echo(f"Watching {made.settings.inbox}; Ctrl+C ends it.", err=True)
            threading.Event().wait()
    finally:
        watcher.stop()


def reports(ingestor: Ingestor, paths: Sequence[Path], kb: str | None, rebuild: bool = False) -> Iterator[Report]:
    """Brings the files in line and yields a report for each knowledge base concerned.

    Paths outside the inbox are copied into it first. Raises AppError for a path that does not exist, or that lies in
    another knowledge base than `kb`.
    """
    targets: dict[str, list[Path] | None] = {}
    failures: list[Failure] = []
    if not paths:
        targets = dict.fromkeys([kb] if kb is not None else ingestor.kbs())
    for path in paths:
        if not path.exists():
            raise AppError(f"there is no file or folder {path}; give one that exists")
        if not ingestor.inbox.contains(path):
            touched, failed = ingestor.import_paths([path], kb)
            failures += failed
            targets.update(dict.fromkeys(touched or {kb or "default"}))
        elif (owner := ingestor.inbox.kb_of(path)) is None:  # the inbox itself
            targets.update(dict.fromkeys([kb] if kb is not None else ingestor.kbs()))
        elif path.is_file() and not is_document(path.name):
            failures.append(
                Failure(path.name, f"is of a type that is not read; these are: {', '.join(sorted(LOADERS))}")
            )
            targets.setdefault(owner, [])
        elif kb in (None, owner):
            _add(targets, owner, path)
        else:
            raise AppError(f"{path} belongs to knowledge base '{owner}', not '{kb}'; leave --kb away")
    for name, only in targets.items():
        with ingest_bar() as progress:
            report = ingestor.sync(name, only=only, progress=progress, rebuild=rebuild)
        # What could not even be copied into the inbox is told once, with the first report.
        report.failed.extend(failures)
        failures = []
        yield report


def _add(targets: dict[str, list[Path] | None], kb: str, path: Path) -> None:
    """Limits the work in a knowledge base to the paths given, unless all of it is wanted already."""
    only = targets.setdefault(kb, [])
    if only is not None:
        only.append(path)


def render(report: Report) -> str:
    """A report in words: one line, and one more for every file that failed."""
    changes = [
        f"{count} {name}"
        for name in ("added", "changed", "renamed", "deleted")
        if (count := getattr(report, name)) or name == "added"
    ]
    counts = ", ".join([*changes, f"{report.unchanged} unchanged", f"{len(report.failed)} failed"])
    lines = [f"{report.kb}: {counts}; {report.chunks} chunks in {report.seconds:.1f} s"]
    if report.keyworded:
        lines.append(f"  {report.keyworded} documents that were indexed before are now found by their words, too")
    lines += [f"  {failure.source}: {failure.error}" for failure in report.failed]
    return "\n".join(lines)


def reader(settings: Settings) -> Ingestor:
    """For listing what there is: inbox and manifest alone, so that neither models nor index need be in order."""
    from ingest.sync import Ingestor

    def closed(kb: str, create: bool) -> Any:
        raise AssertionError("a listing opens no index")

    vectors = place_of(settings.store, settings.index)
    return Ingestor(settings.inbox, settings.index, cast("EmbedderLike", None), closed, vectors=vectors)


def list_kbs(ingestor: Ingestor, as_json: bool) -> str:
    """The knowledge bases, one a line."""
    rows = []
    for kb in ingestor.kbs():
        documents = ingestor.documents(kb)
        rows.append(
            {
                "kb": kb,
                "documents": len(documents),
                "indexed": sum(document.status == "indexed" for document in documents),
                "failed": sum(document.status == "failed" for document in documents),
                "chunks": sum(document.chunks for document in documents),
                "folder": str(ingestor.folder(kb)),
            }
        )
    if as_json:
        return json.dumps(rows, ensure_ascii=False)
    return table(
        [
            ("KNOWLEDGE BASE", "DOCUMENTS", "INDEXED", "FAILED", "CHUNKS", "FOLDER"),
            *(tuple(map(str, row.values())) for row in rows),
        ]
    )


def status(ingestor: Ingestor, kb: str, as_json: bool) -> str:
    """The documents of a knowledge base and how they stand. Raises AppError for an unknown one."""
    require(ingestor, kb)
    documents = ingestor.documents(kb)
    if as_json:
        fields = ("source", "status", "error", "chunks", "pages", "size", "ingested_at")
        return json.dumps([{name: getattr(d, name) for name in fields} for d in documents], ensure_ascii=False)
    if not documents:
        return f"'{kb}' holds no documents; put some into {ingestor.folder(kb)} and run `paddock ingest`"
    rows = [(d.source, d.status, str(d.chunks), d.error or "") for d in documents]
    state = [keyword_state(ingestor, kb), language_state(ingestor, kb), index_cost(ingestor, kb, False)]
    return "\n".join([table([("DOCUMENT", "STATUS", "CHUNKS", ""), *rows]), "", *filter(None, state)])


def language_state(ingestor: Ingestor, kb: str) -> str:
    """The languages of a knowledge base's documents, a line; nothing without any."""
    if missing := ingestor.manifest.without_languages(kb):
        return f"languages: not known of {len(missing)} documents; run `paddock ingest` to find them"
    return f"languages: {', '.join(found)}" if (found := ingestor.manifest.languages(kb)) else ""


def index_cost(ingestor: Ingestor, kb: str, as_json: bool) -> str:
    """What a knowledge base's index costs, a line. Raises AppError for an unknown one."""
    require(ingestor, kb)
    total = sum(ingestor.manifest.chunks(each) for each in ingestor.manifest.kbs())
    keywords = keyword_folder_of(ingestor, kb)
    costs = ingestor.vectors.costs(keywords, kb, ingestor.manifest.chunks(kb), total)
    if as_json:
        return json.dumps({"kb": kb, **costs.to_json()}, ensure_ascii=False)
    said = [f"{costs.chunks} chunks"]
    for name, size in (("vectors", costs.vectors), ("text", costs.text), ("keyword index", costs.keyword)):
        said.append(f"{name} on the server" if size is None else f"{name} {in_bytes(size)}")
    if costs.memory is not None:
        said.append(f"about {in_bytes(costs.memory)} of memory while it is searched")
    return f"index: {', '.join(said)}"


def keyword_folder_of(ingestor: Ingestor, kb: str) -> Path:
    """Where a knowledge base's keyword index lies."""
    from vectorstore import keyword

    return keyword.folder_of(ingestor.keyword, kb)


def keyword_state(ingestor: Ingestor, kb: str) -> str:
    """What a knowledge base's keyword index holds and costs, or how to get one; a line."""
    from vectorstore import keyword

    wanted, folder = ingestor.manifest.doc_ids(kb), keyword_folder_of(ingestor, kb)
    found = keyword.read_id(folder)
    whole = found is not None and found == ingestor.manifest.keyword_index(kb)
    held = {doc_id for doc_id, done in ingestor.manifest.keywords(kb).items() if done} if whole else set()
    if not wanted <= held:
        return f"keyword index: {len(wanted & held)} of {len(wanted)} documents; run `paddock ingest` to complete it"
    return f"keyword index: all {len(wanted)} documents"


def delete(ingestor: Ingestor, kb: str, sources: Sequence[str]) -> str:
    """Deletes documents, or the whole knowledge base without any named."""
    require(ingestor, kb)
    if not sources:
        ingestor.delete_kb(kb)
        return f"deleted knowledge base '{kb}'"
    for source in sources:
        ingestor.delete_document(kb, source)
    return f"deleted {', '.join(sources)} from '{kb}'"


def require(ingestor: Ingestor, kb: str) -> None:
    """Raises AppError when there is no such knowledge base."""
    known = ingestor.kbs()
    if kb not in known:
        raise AppError(f"there is no knowledge base '{kb}'; known: {', '.join(known)}; see `paddock kb list`")


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned by display width (a Chinese character is two columns wide)."""
    widths = [max(_width(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell + " " * (w - _width(cell)) for cell, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _width(text: str) -> int:
    import unicodedata

    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)
