"""The doctor finds what is wrong, says how to mend it, and never falls ill itself."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from app import adapters, doctor
from app.confidence import Calibration, identity, path_of, write
from app.config import Settings, load_settings
from app.doctor import Row, diagnose, exit_code, render
from ingest.embed import Embedder
from vectorstore.keyword import META, KeywordIndex, folder_of


@pytest.fixture
def settings(home_with_models: Path) -> Settings:
    """Settings with a port that is free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return load_settings({"PADDOCK_HOME": str(home_with_models)}, port=port)


def database(path: Path, *statements: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with sqlite3.connect(path) as opened:
        for statement in statements:
            opened.execute(statement)
    opened.close()


def keywords(settings: Settings) -> Path:
    """Where the keyword index lies."""
    return folder_of(settings.index / "keyword", "default")


@pytest.fixture
def indexed(settings: Settings) -> Settings:
    """The same, with a document, and an index of two files and three chunks that are found by their words."""
    (settings.inbox / "a.md").write_text("# A")
    database(
        settings.index / "manifest.sqlite",
        "CREATE TABLE files (kb TEXT, source TEXT, status TEXT, chunks INTEGER, doc_id TEXT)",
        "INSERT INTO files VALUES ('default', 'a.md', 'indexed', 3, 'a'), ('default', 'b.pdf', 'failed', 0, '')",
        "CREATE TABLE keywords (kb TEXT, doc_id TEXT, done INTEGER)",
        "INSERT INTO keywords VALUES ('default', 'a', 1)",
        "CREATE TABLE keyword_indexes (kb TEXT, id TEXT)",
        f"INSERT INTO keyword_indexes VALUES ('default', '{KeywordIndex(keywords(settings), create=True).id}')",
    )
    database(
        settings.index / "chroma" / "chroma.sqlite3",
        "CREATE TABLE embeddings (id INTEGER PRIMARY KEY)",
        "INSERT INTO embeddings VALUES (1), (2), (3)",
    )
    return settings


def row(settings: Settings, check: str) -> Row:
    """The one finding of a check; whatever it is, a fault has its mend."""
    rows = diagnose(settings)
    assert [each for each in rows if (each.status == "ok") == bool(each.mend)] == []
    (found,) = (each for each in rows if each.check == check)
    return found


def test_a_healthy_installation_has_nothing_to_mend(indexed: Settings) -> None:
    rows = diagnose(indexed)
    assert [each for each in rows if each.status != "ok"] == []
    assert exit_code(rows) == 0
    names = ["Python", "libraries", "torch", "state folder", "disk", "model", "embedder", "adapter", "refusals"]
    assert [each.check for each in rows] == [*names, "inbox", "index", "keyword index", "port"]
    assert "1 failed, 1 indexed; 3 chunks" in render(rows)


def test_a_new_installation_is_told_what_to_do_next(settings: Settings) -> None:
    assert row(settings, "index").mend == "run `paddock ingest`"
    assert str(settings.inbox) in row(settings, "inbox").mend
    assert exit_code(diagnose(settings)) == 0


def test_who_answers(settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(adapters, "SHIPPED", tmp_path / "shipped")
    assert "bare model" in row(settings, "adapter").found
    missing = row(settings.model_copy(update={"adapter": "contracts"}), "adapter")
    assert (missing.status, "no adapter 'contracts'" in missing.found) == ("fail", True)
    assert "paddock finetune list" in missing.mend


def test_what_refusals_are_judged_by(settings: Settings, embedder_path: Path, tmp_path: Path) -> None:
    assert "comes with Paddock" in row(settings, "refusals").found
    assert row(settings.model_copy(update={"retrieval": "dense"}), "refusals").status == "ok", "in every mode"
    other = tmp_path / "other"
    shutil.copytree(embedder_path, other)
    (other / "README.md").unlink()
    (other / "tokenizer.json").write_text((other / "tokenizer.json").read_text() + "\n")
    foreign = settings.model_copy(update={"embedder": str(other)})
    found = row(foreign, "refusals")
    assert (found.status, "words alone" in found.found) == ("warn", True)
    assert "paddock eval calibrate" in found.mend
    of = identity(Embedder(other).identity)
    write(path_of(settings.calibration, of), [Calibration(of, {"constant": 1.0}, 0.4321)])
    found = row(foreign, "refusals")
    assert (found.status, "0.43" in found.found, "your own" in found.found) == ("ok", True, True)
    path_of(settings.calibration, of).write_text("{")
    assert row(foreign, "refusals").status == "fail"


def test_missing_models_fail_with_the_command_that_fetches_them(home: Path) -> None:
    settings = load_settings({"PADDOCK_HOME": str(home)})
    for check in ("model", "embedder"):
        found = row(settings, check)
        assert (found.status, found.mend) == ("fail", "run `paddock models pull`")
    assert exit_code(diagnose(settings)) == 1


@pytest.mark.parametrize("damage", ["empty", "one bit"])
def test_a_damaged_model_fails(home: Path, gguf_path: Path, damage: str) -> None:
    data = bytearray(gguf_path.read_bytes() if damage == "one bit" else b"")
    if data:
        data[-1] ^= 1
    (home / "models").mkdir()
    (home / "models" / gguf_path.name).write_bytes(data)
    found = row(load_settings({"PADDOCK_HOME": str(home)}), "model")
    assert (found.status, found.mend) == ("fail", "run `paddock models pull`")
    assert "is damaged" in found.found


@pytest.mark.parametrize(("content", "fault"), [(None, "does not exist"), (b"", "is not a LLaMA")])
def test_a_configured_model_that_is_none_fails(
    home_with_models: Path, tmp_path: Path, content: bytes | None, fault: str
) -> None:
    path = tmp_path / "mine.gguf"
    if content is not None:
        path.write_bytes(content)
    found = row(load_settings({"PADDOCK_HOME": str(home_with_models)}, model=str(path)), "model")
    assert found.status == "fail"
    assert f"{path} {fault}" in found.found


def test_a_configured_model_elsewhere_is_good(home: Path, gguf_path: Path, embedder_path: Path) -> None:
    settings = load_settings({"PADDOCK_HOME": str(home)}, model=str(gguf_path), embedder=str(embedder_path))
    assert (row(settings, "model").status, row(settings, "embedder").status) == ("ok", "ok")


def test_a_cross_encoder_is_looked_for(home: Path, tmp_path: Path, embedder_path: Path) -> None:
    def told(rerank: str) -> list[str]:
        found = diagnose(load_settings({"PADDOCK_HOME": str(home)}, rerank=rerank))
        return [each.status for each in found if each.check == "rerank"]

    (tmp_path / "cross").mkdir()
    (tmp_path / "cross" / "config.json").write_text('{"architectures": ["BertForSequenceClassification"]}')
    assert told("off") == told("likelihood") == []
    assert (told(str(tmp_path / "cross")), told("nowhere"), told(str(embedder_path))) == (["ok"], ["fail"], ["fail"])


@pytest.mark.parametrize(
    "statements",
    [
        ["DROP TABLE keywords", "DROP TABLE keyword_indexes"],
        ["UPDATE keywords SET done = 0"],
        ["UPDATE keyword_indexes SET id = 'another'"],
    ],
)
def test_documents_that_are_not_found_by_words(indexed: Settings, statements: list[str]) -> None:
    database(indexed.index / "manifest.sqlite", *statements)
    found = row(indexed, "keyword index")
    assert (found.status, found.found) == ("warn", "1 of 1 documents are not in it")
    assert "run `paddock ingest`" in found.mend


def test_a_damaged_keyword_index(indexed: Settings) -> None:
    (keywords(indexed) / META).write_text("{")
    found = row(indexed, "keyword index")
    assert found.status == "fail"
    assert found.mend == f"remove {keywords(indexed)} and run `paddock ingest`"


@pytest.mark.parametrize("name", ["manifest.sqlite", "chroma/chroma.sqlite3"])
@pytest.mark.parametrize("damage", ["rubbish", "absent", "cut", "empty"])
def test_a_corrupt_index_fails_and_names_the_file(indexed: Settings, name: str, damage: str) -> None:
    path = indexed.index / name
    data = path.read_bytes()
    contents = {"rubbish": b"not a database" * 500, "cut": data[: len(data) // 2], "empty": b""}
    path.unlink()
    if damage in contents:
        path.write_bytes(contents[damage])
    found = row(indexed, "index")
    assert found.status == "fail"
    assert str(path) in found.found
    assert "paddock ingest" in found.mend


def test_a_damaged_page_that_no_count_touches_is_seen(indexed: Settings) -> None:
    path = indexed.index / "manifest.sqlite"
    database(path, "CREATE TABLE other (x)", "INSERT INTO other SELECT hex(randomblob(500)) FROM pragma_function_list")
    data = path.read_bytes()
    path.write_bytes(data[:-4096] + b"\xff" * 4096)
    assert str(path) in row(indexed, "index").found


def test_the_index_is_read_while_another_writes(indexed: Settings) -> None:
    with sqlite3.connect(indexed.index / "manifest.sqlite") as writer:
        writer.execute("PRAGMA journal_mode=WAL")
        writer.execute("INSERT INTO files VALUES ('default', 'c.md', 'indexed', 0, '')")
        assert row(indexed, "index").status == "ok"
    writer.close()


def test_an_index_that_disagrees_with_its_manifest_is_told(indexed: Settings) -> None:
    database(indexed.index / "chroma" / "chroma.sqlite3", "DELETE FROM embeddings WHERE id = 2")
    found = row(indexed, "index")
    assert found.status == "warn"
    assert "Chroma holds 2 chunks where the manifest notes 3" in found.found


def test_the_index_that_paddock_makes_is_understood(settings: Settings) -> None:
    """A real one, so that a change of its tables is noticed here."""
    (settings.inbox / "herd.md").write_text("# Herd\n\nThe herd has twelve llamas.\n")
    (settings.inbox / "broken.pdf").write_bytes(b"%PDF-1.4\n")
    command = [str(Path(sys.executable).with_name("paddock")), "ingest", "--json"]
    environ = {**os.environ, "PADDOCK_HOME": str(settings.home)}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    found = row(settings, "index")
    assert (found.status, found.found) == ("ok", "1 failed, 1 indexed; 1 chunks"), done.stderr


def test_a_port_in_use_is_named(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", settings.port)):
        found = row(settings, "port")
    assert found.status == "warn"
    assert str(settings.port) in found.found
    assert "--port" in found.mend


def test_a_missing_or_old_library_fails(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["no-such-library", "numpy>=9999", "click", 'no-such-extra; extra == "dev"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: wanted)
    rows = [each for each in diagnose(settings) if each.check == "libraries"]
    assert [(each.status, each.mend) for each in rows] == [("fail", "run `make setup`")] * 2
    assert "no-such-library is wanted, nothing is installed" in rows[0].found


def test_a_state_folder_that_cannot_be_written_fails(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(dir: Path) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    found = row(settings, "state folder")
    assert found.status == "fail"
    assert "PADDOCK_HOME" in found.mend


def test_a_state_folder_that_is_a_file_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert row(load_settings({"PADDOCK_HOME": str(tmp_path / "file")}), "state folder").status == "fail"


def test_a_state_folder_is_not_made(tmp_path: Path) -> None:
    settings = load_settings({"PADDOCK_HOME": str(tmp_path / "a" / "b")})
    assert row(settings, "state folder").status == "ok"
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(("free", "status"), [(50 << 20, "fail"), (1 << 30, "warn"), (50 << 30, "ok")])
def test_the_disk(settings: Settings, monkeypatch: pytest.MonkeyPatch, free: int, status: str) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: type("Usage", (), {"free": free}))
    assert row(settings, "disk").status == status


def test_a_device_that_is_not_there_fails(settings: Settings) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert row(settings.model_copy(update={"device": "cuda:0"}), "torch").status == "fail"


def test_a_check_that_breaks_is_a_finding_and_not_the_end(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(settings: Settings) -> Any:
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(doctor, "_inbox", broken)
    assert "RuntimeError: unforeseen" in row(settings, "inbox").found
    assert row(settings, "port").status == "ok"


def test_the_table_is_aligned_and_no_wider_than_the_terminal() -> None:
    rows = [Row("short", "ok", "fine"), Row("a longer name", "fail", "word " * 30, "do this " * 20)]
    lines = render(rows, 60).splitlines()
    assert max(map(len, lines)) <= 60
    assert lines[0].index("fine") == lines[1].index("word") == 21
    assert sum("-> " in line for line in lines) == 1
