"""A paddock in a temporary folder, with embeddings that need no model; the real embedder where a test asks for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ingest.sync import Ingestor
from tests.ingest.fakes import FakeEmbedder, open_ingestor


@pytest.fixture
def embedder() -> FakeEmbedder:
    return FakeEmbedder()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A state folder with an empty inbox."""
    folder = tmp_path / "home"
    (folder / "inbox").mkdir(parents=True)
    return folder


@pytest.fixture
def ingestor(home: Path, embedder: FakeEmbedder) -> Ingestor:
    return open_ingestor(home, embedder)


@pytest.fixture
def write(home: Path) -> Callable[[str, str], Path]:
    """Writes a text file into the inbox."""

    def put(name: str, text: str) -> Path:
        path = home / "inbox" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return put


@pytest.fixture(scope="session")
def embedder_folder(models_dir: Path) -> Path:
    """The default embedding model."""
    return models_dir / "all-MiniLM-L6-v2"
