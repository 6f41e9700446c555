"""Throw-away knowledge bases: a data set's own documents through the normal ingest path, kept by content hash."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from langchain_core.documents import Document

from app.adapters import AUTO, Shelf
from app.config import Settings
from app.errors import AppError
from app.evaluate.metrics import holds
from app.evaluate.questions import Article, Gold
from app.services import Services
from ingest.inbox import Scan, walk
from ingest.report import Event, Failure, Report

HALF = 0.5


@dataclass
class Corpus:
    """Where questions are asked: the services to ask and, for a data set's own documents, their articles."""

    services: Services
    articles: Mapping[str, Article]
    report: Report | None = None  # of the ingest, for a throw-away knowledge base

    def paragraphs_of(self, chunk: Document) -> list[str]:
        """Ids of the paragraphs that a chunk stands for: those it holds half of, or that it lies in for its half.

        In the order of their shares, the largest first. Empty for documents that came without paragraphs.
        """
        source = chunk.metadata["source"]
        if source not in self.articles:
            return []
        spans, text = self._places[source]
        size = len(chunk.page_content)
        shares: dict[str, int] = {}
        at = text.find(chunk.page_content)
        while at >= 0:
            for id_, start, end in spans:
                shared = min(end, at + size) - max(start, at)
                if shared >= HALF * min(end - start, size):
                    shares[id_] = max(shared, shares.get(id_, 0))
            at = text.find(chunk.page_content, at + 1)
        return sorted(shares, key=lambda id_: -shares[id_])

    @cached_property
    def _places(self) -> dict[str, tuple[list[tuple[str, int, int]], str]]:
        """For each article its paragraphs' (id, start, end) and its text."""
        found = {}
        for name, article in self.articles.items():
            spans, at = [], 0
            for id_, text in article.paragraphs:
                spans.append((id_, at, at + len(text)))
                at += len(text) + 2
            found[name] = (spans, article.text)
        return found

    @cached_property
    def paragraphs(self) -> dict[str, tuple[str, str]]:
        """Paragraph id -> (its document, its text)."""
        return {id_: (name, text) for name, article in self.articles.items() for id_, text in article.paragraphs}


def unfindable(questions: Sequence[Gold], corpus: Corpus) -> Iterator[tuple[Gold, str]]:
    """What is wrong with questions where they are asked: their knowledge base is unknown, their source is not indexed,
    or their gold answers stand in no passage of it (without a source: of any document). With what becomes of them.
    """
    texts: dict[str, dict[str, list[str]]] = {}
    known = corpus.services.ingestor.kbs()
    for gold in questions:
        kb = gold.kb or corpus.services.settings.kb
        if gold.kb is not None and kb not in known:
            yield gold, f"there is no knowledge base '{kb}' for question '{gold.id}'; it is left out"
        if not gold.answers or kb not in known:
            continue
        if kb not in texts:
            texts[kb] = _texts(corpus.services, kb)
        if (what := _not_in(gold, texts[kb], kb)) is not None:
            yield gold, f"{what}; it is scored all the same"


def _not_in(gold: Gold, texts: Mapping[str, list[str]], kb: str) -> str | None:
    """What of a question cannot be found among the passages of a knowledge base, if anything."""
    if gold.source is not None and gold.source not in texts:
        return f"the source '{gold.source}' of question '{gold.id}' is not in knowledge base '{kb}'"
    of = texts.values() if gold.source is None else [texts[gold.source]]
    if any(holds(text, answer) for each in of for text in each for answer in gold.answers):
        return None
    where = "any document" if gold.source is None else gold.source
    return f"no gold answer of question '{gold.id}' ('{gold.answers[0][:60]}') stands in a passage of {where}"


def _texts(services: Services, kb: str) -> dict[str, list[str]]:
    """The passages of every document of a knowledge base."""
    rows = services.ingestor.manifest.files(kb)
    if not any(row.doc_id for row in rows.values()):
        return {}
    store = services.store(kb)
    return {
        source: [chunk.page_content for chunk in store.chunks_of(row.doc_id)]
        for source, row in rows.items()
        if row.doc_id
    }


def of_articles(articles: Sequence[Article], settings: Settings, progress: Callable[[Event], None]) -> Corpus:
    """A knowledge base of a data set's articles, one file each. Built once for the same content and settings."""
    files = {article.name: article.text.encode() for article in articles}

    def write(folder: Path) -> None:
        for name, data in files.items():
            (folder / name).write_bytes(data)

    made = _built(files.items(), write, settings)
    report = _ingested(made, "default", progress)
    return Corpus(made, {article.name: article for article in articles}, report)


def of_folder(folder: Path, settings: Settings, progress: Callable[[Event], None]) -> Corpus:
    """A knowledge base of the documents in a folder (without its sub-folders' names becoming knowledge bases).

    They are those that ingest would read there: nothing hidden, and no link is followed.
    """
    if not folder.is_dir():
        raise AppError(f"there is no folder {folder}; give one with documents")
    scan = Scan()
    walk(folder, "", scan)
    files = {source: file.path for source, file in scan.files.items()}

    def write(target: Path) -> None:
        for name, path in files.items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / name)

    # A named knowledge base: sub-folders of the inbox's own top level would become others.
    made = _built(((name, path.read_bytes()) for name, path in files.items()), write, settings, kb="docs")
    report = _ingested(made, "docs", progress)
    report.failed += [Failure(source, what) for source, what in scan.trouble.items()]
    return Corpus(made, {}, report)


@dataclass(frozen=True)
class Alone:
    """Documents that are each the only one of a knowledge base. kbs: source -> the knowledge base's name."""

    services: Services
    kbs: Mapping[str, str]


def each_alone(
    place: Corpus, kb: str, sources: Sequence[str], settings: Settings, progress: Callable[[Event], None]
) -> Alone:
    """A knowledge base for each of these documents of `place`, in a state folder of their own; what fails is absent."""
    paths = {source: place.services.ingestor.inbox.path_of(kb, source) for source in sources}
    files = {source: path.read_bytes() for source, path in paths.items() if path.is_file()}
    kbs = {source: f"alone-{n}" for n, source in enumerate(files)}

    def write(folder: Path) -> None:
        for source, data in files.items():
            path = folder / kbs[source] / source
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    made = _built([("one each", b""), *files.items()], write, settings)
    reports = {source: _ingested(made, name, progress) for source, name in kbs.items()}
    return Alone(made, {source: name for source, name in kbs.items() if not reports[source].failed})


def _ingested(made: Services, kb: str, progress: Callable[[Event], None]) -> Report:
    """Brings a throw-away knowledge base up to date; one of another embedder is nobody's loss, and made anew."""
    row, now = made.ingestor.manifest.kb(kb), made.embedder.identity
    return made.ingestor.sync(kb, progress=progress, rebuild=row is not None and row.embedder != now)


def _adapter(settings: Settings) -> str:
    """The setting as it means the same for another state folder."""
    found = Shelf(settings).chosen(settings.adapter)
    if settings.adapter == AUTO or found is None:
        return settings.adapter
    return str(Shelf(settings).folder_of(found).absolute())


def _built(
    files: Iterable[tuple[str, bytes]], write: Callable[[Path], None], settings: Settings, kb: str = "default"
) -> Services:
    """Services on a state folder of its own under cache/eval, its inbox filled once."""
    digest = hashlib.sha256()
    for name, data in files:
        digest.update(f"{name}\0{len(data)}\0".encode() + data)
    home = settings.cache / "eval" / digest.hexdigest()[:16]
    inbox = home / "inbox" if kb == "default" else home / "inbox" / kb
    if not inbox.exists():
        part = home.with_name(home.name + ".part")
        try:
            shutil.rmtree(part, ignore_errors=True)
            (part / inbox.relative_to(home)).mkdir(parents=True)
            write(part / inbox.relative_to(home))
            part.rename(home)
        except OSError as error:
            raise AppError(
                f"{home} cannot be written ({error.strerror}); make room or set another PADDOCK_HOME"
            ) from error
    return Services(
        settings.model_copy(
            update={
                "home": home,
                "kb": kb,
                "model": str(settings.path_of_model(settings.model).absolute()),
                "embedder": str(settings.path_of_model(settings.embedder).absolute()),
                "adapter": _adapter(settings),
                "rerank": settings.rerank if settings.cross_encoder is None else str(settings.cross_encoder.absolute()),
            }
        ),
        settings.calibration,
    )
