"""Throw-away knowledge bases: what goes into them, and what they are kept by."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from app.config import Settings
from app.evaluate.corpus import of_articles, of_folder
from app.evaluate.questions import Article
from app.services import Services
from ingest.report import Report


@pytest.fixture(autouse=True)
def nothing_is_ingested(monkeypatch: pytest.MonkeyPatch) -> None:
    sync = lambda kb, progress, rebuild: Report(kb)  # noqa: E731
    manifest = SimpleNamespace(kb=lambda kb: None)
    monkeypatch.setattr(Services, "ingestor", property(lambda self: SimpleNamespace(sync=sync, manifest=manifest)))
    monkeypatch.setattr(Services, "embedder", SimpleNamespace(identity="e"))


def test_the_content_decides(settings: Settings) -> None:
    def home_of(text: str, chunk_tokens: int = 200) -> Path:
        changed = settings.model_copy(update={"chunk_tokens": chunk_tokens})
        return of_articles([Article("a.txt", (("a#0", text),))], changed, lambda event: None).services.settings.home

    first = home_of("Llamas eat hay.")
    assert home_of("Llamas eat hay.") == first
    other = home_of("Alpaca like it!")
    assert other != first, "the same name and size, another content"
    assert (other / "inbox" / "a.txt").read_text() == "Alpaca like it!"


def test_documents_are_those_that_ingest_reads(settings: Settings, tmp_path: Path) -> None:
    docs, secret = tmp_path / "docs", tmp_path / "secret.txt"
    secret.write_text("secret")
    for name in ("a.txt", "sub/b.md", ".hidden/c.txt", ".d.txt", "photo.jpg"):
        path = docs / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (docs / "link.txt").symlink_to(secret)
    (docs / "folder").symlink_to(tmp_path)
    home = of_folder(docs, settings, lambda event: None).services.settings.home
    assert {path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()} == {
        "inbox/docs/a.txt",
        "inbox/docs/sub/b.md",
    }
