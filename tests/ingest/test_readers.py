"""Readers in another process than the writer's: they see whole documents, one version of each, in every mode."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingest.filter import Filter
from tests.ingest.fakes import FakeEmbedder, open_ingestor, store_of
from tests.vectorstore.chroma_server import free_port, running_server
from vectorstore.keyword import KeywordIndex, folder_of
from vectorstore.retriever import Retriever
from vectorstore.scope import Scope

ROOT = Path(__file__).resolve().parents[2]
CHUNKS, DOCUMENTS = 6, 3

# Chunks of a document are written in several batches, so that a reader can come between them.
WRITER = """
import sys
from pathlib import Path
from ingest import run
from tests.ingest.fakes import FakeEmbedder, open_ingestor
from tests.ingest.test_readers import DOCUMENTS, text
run.BATCH = 2
home = Path(sys.argv[1])
ingestor = open_ingestor(home, FakeEmbedder(), sys.argv[2])
for turn in range(1, 13):
    for i in range(DOCUMENTS):
        (home / "inbox" / "farm" / f"{i}.md").write_text(text(i, turn))
    ingestor.sync("farm")
    print(turn, flush=True)
"""


def text(document: int, turn: int) -> str:
    """A document of CHUNKS sections, each of which says whose it is."""
    return "\n\n".join(f"# Part {part}\n\nllama d{document} turn{turn} part{part}" for part in range(CHUNKS))


@pytest.fixture
def url(where: str, tmp_path: Path) -> Iterator[str]:
    """Where the vectors are: nowhere but in the state folder, or on a Chroma server."""
    if where == "folder":
        yield ""
        return
    (tmp_path / "server").mkdir()
    with running_server(tmp_path / "server", free_port()) as address:
        yield address


@pytest.mark.parametrize(
    ("where", "mode", "limited"),
    [
        ("folder", "dense", False),
        ("folder", "keyword", False),
        ("folder", "hybrid", False),
        ("folder", "hybrid", True),
        ("server", "hybrid", False),
        ("server", "hybrid", True),
    ],
)
def test_whole_documents_only(home: Path, url: str, mode: str, limited: bool) -> None:
    (home / "inbox" / "farm").mkdir()
    for i in range(DOCUMENTS):
        (home / "inbox" / "farm" / f"{i}.md").write_text(text(i, 0))
    ingestor = open_ingestor(home, FakeEmbedder(), url)
    assert ingestor.sync("farm").chunks == CHUNKS * DOCUMENTS
    manifest = ingestor.manifest
    only = Filter.of({"source": "[!1].md"}) if limited else None  # all documents but one
    retriever = Retriever(
        store=store_of(ingestor, "farm"),
        keyword=KeywordIndex(folder_of(ingestor.keyword, "farm")),
        mode=mode,
        k=50,
        min_score=-1.0,
        visible=lambda doc_ids, version: manifest.known_docs("farm", doc_ids, version, only),
        version=manifest.version,
        scope=(lambda: Scope(1, 0.01, lambda: manifest.doc_ids("farm", only))) if only else None,
    )
    wanted = {f"d{i}" for i in range(DOCUMENTS) if not (limited and i == 1)}
    seen: set[str] = set()
    with subprocess.Popen([sys.executable, "-c", WRITER, str(home), url], cwd=ROOT) as process:
        while process.poll() is None:
            found = Counter(tuple(each.page_content.split()[-3:-1]) for each in retriever.invoke("llama"))
            seen |= {turn for _, turn in found}
            assert set(found.values()) <= {CHUNKS}, f"part of a document: {found}"
            assert {document for document, _ in found} <= wanted
            assert len(found) == len({document for document, _ in found}), f"two versions of one: {found}"
    assert process.returncode == 0
    assert len(seen) > 2, "the reader must have met the writer at work"
    assert {turn for _, turn in (tuple(each.page_content.split()[-3:-1]) for each in retriever.invoke("llama"))} == {
        "turn12"
    }
