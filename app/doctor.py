"""Checks the installation and says of every fault how to mend it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shutil
import socket
import sqlite3
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from app.catalogue import CATALOGUE, Default
from app.config import Settings
from app.errors import AppError
from app.model_info import kind_of
from app.models import is_complete
from app.units import in_bytes
from vectorstore.errors import StoreError
from vectorstore.place import place_of
from vectorstore.server import parts_of

Status = Literal["ok", "warn", "fail"]

LITTLE_DISK = 100 << 20  # bytes free: below this nothing can be indexed,
SCARCE_DISK = 2 << 30  # and below this a larger inbox may not fit


@dataclass(frozen=True)
class Row:
    """One finding; `mend` is empty where there is nothing to do."""

    check: str
    status: Status
    found: str
    mend: str = ""


def diagnose(settings: Settings) -> list[Row]:
    """Every check, in the order in which faults follow from each other. Nothing is changed; no check ends the rest."""
    checks: list[tuple[str, Callable[[Settings], Iterator[Row]]]] = [
        ("Python", _python),
        ("libraries", _libraries),
        ("torch", _torch),
        ("state folder", _state_folder),
        ("disk", _disk),
        ("models", _models),
        ("adapter", _adapter),
        ("refusals", _refusals),
        ("inbox", _inbox),
        ("index", _index),
        ("keyword index", _keywords),
        ("port", _port),
    ]
    rows: list[Row] = []
    for name, check in checks:
        try:
            rows.extend(check(settings))
        except Exception as error:  # what a check did not foresee is a finding too
            rows.append(
                Row(name, "fail", f"{type(error).__name__}: {error}", "please report this as a fault of Paddock")
            )
    return rows


def exit_code(rows: list[Row]) -> int:
    """1 when anything fails; a warning does not."""
    return int(any(row.status == "fail" for row in rows))


def render(rows: list[Row], width: int | None = None) -> str:
    """A table of status, check and finding, `width` columns wide (default: the terminal's); mends under their rows."""
    width = width or shutil.get_terminal_size((100, 24)).columns
    indent = 6 + max(len(row.check) for row in rows) + 2
    room = max(width - indent, 24)
    lines = []
    for row in rows:
        text = textwrap.wrap(row.found, room) or [""]
        if row.mend:
            text += textwrap.wrap(row.mend, room, initial_indent="-> ", subsequent_indent="   ")
        head = f"{row.status:<6}{row.check}".ljust(indent)
        lines += [head + text[0], *(" " * indent + line for line in text[1:])]
    return "\n".join(lines)


def _python(settings: Settings) -> Iterator[Row]:
    # Never too old: pip and the Makefile refuse what pyproject.toml does not allow.
    yield Row("Python", "ok", f"{platform.python_version()} at {sys.executable}")


def _libraries(settings: Settings) -> Iterator[Row]:
    """Everything that the package declares, by its metadata: importing it all takes ten seconds."""
    wanted = [Requirement(line) for line in importlib.metadata.requires("paddock") or []]
    wanted = [each for each in wanted if each.marker is None or each.marker.evaluate({"extra": ""})]
    faults = 0
    for each in wanted:
        try:
            version = importlib.metadata.version(each.name)
        except importlib.metadata.PackageNotFoundError:
            version = ""
        if not version or not each.specifier.contains(version, prereleases=True):
            faults += 1
            yield Row("libraries", "fail", f"{each} is wanted, {version or 'nothing'} is installed", "run `make setup`")
    if not faults:
        yield Row("libraries", "ok", f"all {len(wanted)} are installed")


def _torch(settings: Settings) -> Iterator[Row]:
    try:
        import torch

        from llama.engine import fast_bfloat16
    except (ImportError, OSError) as error:
        reason = str(error).splitlines()[0]
        yield Row("torch", "fail", f"cannot be imported ({reason})", "run `make clean setup`")
        return
    place = settings.device if settings.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    if place.startswith("cuda") and not torch.cuda.is_available():
        yield Row("torch", "fail", f"device is {place}, and torch {torch.__version__} sees no GPU", "set device to cpu")
        return
    precision = "bf16 is fast here" if fast_bfloat16(torch.device(place)) else "bf16 is slow here, products are in fp32"
    yield Row("torch", "ok", f"{torch.__version__} on {place}, {torch.get_num_threads()} threads; {precision}")


def _state_folder(settings: Settings) -> Iterator[Row]:
    home = settings.home
    mend = f"give yourself write permission on {home}, or set PADDOCK_HOME to a folder that you may write to"
    if home.exists() and not home.is_dir():
        yield Row("state folder", "fail", f"{home} is not a folder", "move it away, or set PADDOCK_HOME to a folder")
        return
    folders = [path for path in (home, settings.inbox, settings.index, settings.models) if path.is_dir()]
    for folder in folders or [_existing(home)]:
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            yield Row("state folder", "fail", f"{folder} cannot be written to ({error.strerror})", mend)
            return
    yield Row("state folder", "ok", str(home) if home.is_dir() else f"{home}, made when it is first needed")


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    return next(each for each in (path, *path.parents) if each.is_dir())


def _disk(settings: Settings) -> Iterator[Row]:
    free = shutil.disk_usage(_existing(settings.home)).free
    status: Status = "fail" if free < LITTLE_DISK else "warn" if free < SCARCE_DISK else "ok"
    mend = "" if status == "ok" else "make room, or set PADDOCK_HOME to a folder on a larger disk"
    yield Row("disk", status, f"{in_bytes(free)} free", mend)


KINDS = {"llama": "a LLaMA", "embedder": "a sentence-transformers folder", "reranker": "a cross-encoder's folder"}


def _models(settings: Settings) -> Iterator[Row]:
    """The models that the settings name; default ones against their hashes, others by their kind."""
    named = [("model", settings.model, "llama"), ("embedder", settings.embedder, "embedder")]
    if settings.cross_encoder is not None:
        named.append(("rerank", settings.rerank, "reranker"))
    for check, name, kind in named:
        default = next((each for each in CATALOGUE if each.name == name), None)
        path = settings.path_of_model(name)
        if default and path == settings.models / name:
            yield _default_model(check, settings, default)
        elif not path.exists():
            mend = f"put it there, or take `{check}` out of the settings to use the default one"
            yield Row(check, "fail", f"{path} does not exist", mend)
        elif kind_of(path) != kind:
            article = KINDS[kind]
            mend = f"set `{check}` to another; `paddock models list` shows what there is"
            yield Row(check, "fail", f"{path} is not {article}", mend)
        else:
            yield Row(check, "ok", str(path))


def _default_model(check: str, settings: Settings, model: Default) -> Row:
    if is_complete(settings.models, model, verify=True):
        return Row(check, "ok", f"{model.name}, {in_bytes(model.size)}, SHA-256 as expected")
    fault = "is damaged" if (settings.models / model.name).exists() else "is not there"
    return Row(check, "fail", f"{model.name} {fault}", "run `paddock models pull`")


def _adapter(settings: Settings) -> Iterator[Row]:
    if kind_of(settings.path_of_model(settings.model)) != "llama":
        return  # told as a fault of the model
    from app.adapters import Shelf
    from finetune.errors import FinetuneError

    try:
        yield Row("adapter", "ok", Shelf(settings).chosen(settings.adapter) or "none: the bare model answers")
    except (AppError, FinetuneError) as error:
        yield Row("adapter", "fail", str(error), "set `adapter` to one of `paddock finetune list`, to auto or to none")


def _refusals(settings: Settings) -> Iterator[Row]:
    """What P(answerable) is judged by."""
    path = settings.path_of_model(settings.embedder)
    if kind_of(path) != "embedder":
        return  # told as a fault of the embedder
    from app.confidence import Confidence, find, identity
    from ingest.embed import Embedder

    learn = "learn it with `paddock eval calibrate` on questions with answers"
    try:
        embedder = Embedder(path, hash_cache=settings.cache / "embedder.json")
        found, whose = find(settings.calibration, identity(embedder.identity))
    except AppError as error:
        yield Row("refusals", "fail", str(error), f"remove the file, then {learn}")
        return
    below = f"below a confidence of {Confidence(found, embedder.coverage, settings.threshold).threshold:.2f}"
    told = {"yours": "your own calibration", "shipped": "the calibration that comes with Paddock"}
    if whose in told:
        yield Row("refusals", "ok", f"{below}, by {told[whose]}")
    else:
        yield Row("refusals", "warn", f"{below}, by words alone: none was learned for {embedder.identity}", learn)


def _inbox(settings: Settings) -> Iterator[Row]:
    if not settings.inbox.is_dir():
        mend = f"make {settings.inbox} and put documents into it"
        yield Row("inbox", "warn", f"{settings.inbox} does not exist", mend)
        return
    files = sum(len(names) for _, _, names in os.walk(settings.inbox))
    mend = "" if files else f"put documents into {settings.inbox}"
    yield Row("inbox", "ok" if files else "warn", f"{files} files in {settings.inbox}", mend)


def _index(settings: Settings) -> Iterator[Row]:
    """Both databases are read, never written: a doctor must not disturb a running ingest."""
    if settings.store:
        yield _server(settings)
        return
    manifest, chroma = settings.index / "manifest.sqlite", settings.index / "chroma" / "chroma.sqlite3"
    if not manifest.exists() and not chroma.exists():
        yield Row("index", "warn", "nothing is indexed yet", "run `paddock ingest`")
        return
    rebuild = f"remove {settings.index} and run `paddock ingest`; the documents are not touched"
    try:
        with _opened(manifest) as database:
            rows = database.execute("SELECT status, count(*), sum(chunks) FROM files GROUP BY status ORDER BY status")
            files = rows.fetchall()
        if not chroma.exists() and not any(chunks for _, _, chunks in files):
            told = ", ".join(f"{count} {status}" for status, count, _ in files)
            yield Row("index", "warn", f"nothing is indexed yet{told and f' ({told})'}", "run `paddock ingest`")
            return
        with _opened(chroma) as database:
            (held,) = database.execute("SELECT count(*) FROM embeddings").fetchone()
    except (OSError, sqlite3.Error) as error:
        yield Row("index", "fail", f"cannot be read ({error})", rebuild)
        return
    told = ", ".join(f"{count} {status}" for status, count, _ in files) or "no files"
    noted = sum(chunks for _, _, chunks in files)
    if held == noted:
        yield Row("index", "ok", f"{told}; {held} chunks")
    else:
        mend = "run `paddock ingest` unless it is running; if that does not help, `paddock ingest --rebuild`"
        yield Row("index", "warn", f"{told}; Chroma holds {held} chunks where the manifest notes {noted}", mend)


def _server(settings: Settings) -> Row:
    """Whether the Chroma server answers and has the collections that the manifest speaks of."""
    place = place_of(settings.store, settings.index)
    held = {}
    try:
        place.check()
        if (settings.index / "manifest.sqlite").exists():
            with _opened(settings.index / "manifest.sqlite") as database:
                held = dict(database.execute("SELECT kb, collection_id FROM kbs").fetchall())
        missing = [kb for kb, collection in sorted(held.items()) if place.collection_id(kb) != collection]
    except StoreError as error:
        return Row("index", "fail", str(error), f"start it: `chroma run --port {parts_of(settings.store)[1]}`")
    except (OSError, sqlite3.Error) as error:
        return Row("index", "fail", f"cannot be read ({error})", f"remove {settings.index} and run `paddock ingest`")
    if missing:
        return Row("index", "warn", f"{settings.store} does not have: {', '.join(missing)}", "run `paddock ingest`")
    return Row("index", "ok", f"{settings.store} answers; knowledge bases: {len(held)}")


def _keywords(settings: Settings) -> Iterator[Row]:
    """Whether every document is found by its words; what that takes on the disk."""
    path = settings.index / "manifest.sqlite"
    if not path.exists():
        return
    from vectorstore import keyword

    mend = "run `paddock ingest`; until then these are found by their meaning only"
    try:
        with _opened(path) as database:
            wanted = database.execute("SELECT kb, count(*) FROM files WHERE doc_id <> '' GROUP BY kb").fetchall()
            new = database.execute("SELECT 1 FROM sqlite_master WHERE name = 'keyword_indexes'").fetchall()
            ids = dict(database.execute("SELECT kb, id FROM keyword_indexes").fetchall()) if new else {}
            notes = "SELECT kb, sum(done) FROM keywords GROUP BY kb"
            held = dict(database.execute(notes).fetchall()) if new else {}
    except (OSError, sqlite3.Error):
        return  # told as a fault of the index
    documents = sum(count for _, count in wanted)
    folders = {kb: keyword.folder_of(settings.index / "keyword", kb) for kb, _ in wanted}
    size = sum(map(keyword.size_of, folders.values()))
    whole = {kb for kb, folder in folders.items() if ids.get(kb) == keyword.read_id(folder)}
    missing = sum(count - (min(count, held.get(kb, 0)) if kb in whole else 0) for kb, count in wanted)
    if missing:
        yield Row("keyword index", "warn", f"{missing} of {documents} documents are not in it", mend)
        return
    for folder in folders.values():
        try:
            keyword.KeywordIndex(folder)
        except StoreError as error:
            yield Row("keyword index", "fail", str(error), f"remove {folder} and run `paddock ingest`")
            return
    yield Row("keyword index", "ok", f"{documents} documents, {in_bytes(size)}")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    """A database, read-only, whose pages have been checked. Raises OSError or sqlite3.Error."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5)) as database:
        try:
            (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)
            yield database
        except sqlite3.Error as error:
            raise sqlite3.DatabaseError(f"{path}: {error}") from error


def _port(settings: Settings) -> Iterator[Row]:
    address = f"{settings.host}:{settings.port}"
    try:
        family, _, _, _, place = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
            probe.bind(place)
    except OSError as error:
        mend = "unless that is Paddock itself, stop it or choose another with `paddock serve --port`"
        yield Row("port", "warn", f"{address} cannot be used ({error.strerror})", mend)
        return
    yield Row("port", "ok", f"{address} is free")
