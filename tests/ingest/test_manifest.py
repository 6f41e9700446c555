"""The manifest: what goes in comes out, all or nothing, from several threads; damage is told in one line."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ingest import manifest as module
from ingest.errors import IngestError
from ingest.manifest import FileRow, ImportRow, KbRow, Manifest

ROW = FileRow("kb", "a.txt", 1, 2, 3, "sha", "doc", 4, None, "indexed", None, "settings", "embedder", 5.0)


@pytest.fixture
def manifest(tmp_path: Path) -> Iterator[Manifest]:
    made = Manifest(tmp_path / "manifest.sqlite")
    yield made
    made.close()


def test_rows_come_back(manifest: Manifest) -> None:
    failed = replace(ROW, source="文.pdf", doc_id="", pages=3, status="failed", error="is empty")
    manifest.put_file(ROW)
    manifest.put_file(failed)
    manifest.put_kb(KbRow("kb", "id", "e"))
    manifest.put_import(ImportRow("kb", "a.txt", "/root", "a.txt", "sha"))
    for each in (manifest, Manifest(manifest.path)):
        assert each.files("kb") == {"a.txt": ROW, "文.pdf": failed}
        assert each.kb("kb") == KbRow("kb", "id", "e")
        assert each.imports("/root") == {("kb", "a.txt"): ImportRow("kb", "a.txt", "/root", "a.txt", "sha")}
        assert each.chunks("kb") == 8
        assert (each.has_doc("kb", "doc"), each.has_doc("other", "doc"), each.source_of("kb", "doc")) == (
            True,
            False,
            "a.txt",
        )
    assert manifest.files("other") == {}
    assert manifest.kb("other") is None


def test_transactions_are_all_or_nothing(manifest: Manifest) -> None:
    with pytest.raises(RuntimeError), manifest.transaction():
        fill_and_fail(manifest)
    assert (manifest.files("kb"), manifest.garbage("kb")) == ({}, [])
    with manifest.transaction():
        manifest.put_file(ROW)
        manifest.drop_garbage("kb", ["x"])
    assert manifest.files("kb")


def fill_and_fail(manifest: Manifest) -> None:
    manifest.put_file(ROW)
    with manifest.transaction():
        manifest.add_garbage("kb", "g")
    raise RuntimeError


def test_forget_keeps_other_knowledge_bases(manifest: Manifest) -> None:
    for kb in ("kb", "other"):
        manifest.put_file(replace(ROW, kb=kb))
        manifest.put_kb(KbRow(kb, "id", "e"))
        manifest.add_garbage(kb, "g")
        manifest.add_move(kb, "m")
        manifest.put_import(ImportRow(kb, "a", f"/{kb}", "a", "s"))
    manifest.forget("kb")
    assert (manifest.files("kb"), manifest.kb("kb"), manifest.garbage("kb"), manifest.moves("kb")) == ({}, None, [], [])
    assert manifest.imports("/kb")
    manifest.forget("kb", imports=True)
    assert not manifest.imports("/kb")
    assert manifest.kbs() == ["other"]
    assert (manifest.garbage("other"), manifest.moves("other")) == (["g"], ["m"])


def test_many_threads(manifest: Manifest) -> None:
    def work(number: int) -> None:
        for i in range(20):
            with manifest.transaction():
                manifest.put_file(replace(ROW, source=f"{number}-{i}"))
                manifest.add_garbage("kb", f"{number}-{i}")
                manifest.drop_garbage("kb", [f"{number}-{i}"])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(manifest.files("kb")) == 120
    assert manifest.garbage("kb") == []


@pytest.mark.parametrize("content", [b"rubbish " * 2000, b"SQLite format 3\x00" + b"\xff" * 5000])
def test_damage_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "manifest.sqlite"
    path.write_bytes(content)
    with pytest.raises(IngestError, match="move it away and run `paddock ingest` again") as error:
        Manifest(path)
    assert "\n" not in str(error.value)


def test_a_folder_in_its_place(tmp_path: Path) -> None:
    with pytest.raises(IngestError, match="cannot be used"):
        Manifest(tmp_path)


def test_migrations_run_once_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "manifest.sqlite"
    Manifest(path).put_file(ROW)
    monkeypatch.setattr(module, "MIGRATIONS", [*module.MIGRATIONS, "CREATE TABLE later (x);"])
    for _ in range(2):
        assert Manifest(path).files("kb") == {"a.txt": ROW}
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (len(module.MIGRATIONS),)
    monkeypatch.undo()
    with pytest.raises(IngestError, match="newer version"):
        Manifest(path)


def test_a_migration_that_fails_leaves_the_old_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "manifest.sqlite"
    Manifest(path).put_file(ROW)
    monkeypatch.setattr(module, "MIGRATIONS", [*module.MIGRATIONS, "DROP TABLE files; nonsense;"])
    with pytest.raises(IngestError):
        Manifest(path)
    monkeypatch.undo()
    assert Manifest(path).files("kb") == {"a.txt": ROW}


def test_write_ahead_log(manifest: Manifest) -> None:
    with sqlite3.connect(manifest.path) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_document_that_became_whole_later_is_not_known_at_an_earlier_version(tmp_path: Path) -> None:
    manifest = Manifest(tmp_path / "manifest.sqlite")
    manifest.put_file(replace(ROW, source="first.txt", doc_id="first"))
    manifest.put_file(replace(ROW, source="last.txt", doc_id="last"))
    before = manifest.version()
    asked = ["first", "last", "last-2", "none"]
    assert manifest.known_docs("kb", asked, before) == {"first", "last"}
    manifest.put_file(replace(ROW, source="last.txt", doc_id="last-2"))  # takes the place of the newest row
    assert manifest.version() > before
    assert manifest.known_docs("kb", asked, before) == {"first"}
    assert manifest.known_docs("kb", asked, manifest.version()) == {"first", "last-2"}
    assert manifest.known_docs("another", asked, manifest.version()) == set()
