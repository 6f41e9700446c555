"""The keyword index follows the documents, whatever state it is found in."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from app.ingestion import keyword_state, render
from ingest import keywords
from ingest.manifest import Manifest
from ingest.sync import Ingestor
from tests.ingest.fakes import FakeEmbedder, open_ingestor
from tests.ingest.test_sync import LONG, check_consistent
from vectorstore import analyze
from vectorstore.keyword import META, PARTS, KeywordIndex, folder_of, is_whole, read_id, size_of

Write = Callable[[str, str], Path]


def search(ingestor: Ingestor, question: str) -> list[str]:
    """Ids of the documents found, best first, each once."""
    index = KeywordIndex(folder_of(ingestor.keyword, "farm"))
    return list(dict.fromkeys(hit.doc_id for hit in index.search(index.analyse(question), 50)))


def doc_id(ingestor: Ingestor, source: str) -> str:
    return ingestor.manifest.files("farm")[source].doc_id


def test_follows_every_change(ingestor: Ingestor, write: Write) -> None:
    write("farm/a.md", "# Feeding\n\nLlamas eat hay.")
    path = write("farm/b.txt", "The gate has the code RS-232C.")
    ingestor.sync("farm")
    assert search(ingestor, "hay") == search(ingestor, "feed") == [doc_id(ingestor, "a.md")]
    before = search(ingestor, "rs232c")
    assert before == [doc_id(ingestor, "b.txt")]
    path.rename(path.with_name("c.txt"))
    assert ingestor.sync("farm").renamed == 1
    assert search(ingestor, "rs232c") == before == [doc_id(ingestor, "c.txt")]
    write("farm/c.txt", "The gate has no code.")
    ingestor.sync("farm")
    assert search(ingestor, "rs232c") == []
    assert search(ingestor, "gate") == [doc_id(ingestor, "c.txt")]
    ingestor.delete_document("farm", "c.txt")
    assert search(ingestor, "gate") == []
    check_consistent(ingestor, "farm")
    ingestor.delete_kb("farm")
    assert not folder_of(ingestor.keyword, "farm").exists()
    assert ingestor.manifest.keyword_index("farm") is None


def test_a_run_with_nothing_to_do_opens_nothing(
    ingestor: Ingestor, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("farm/a.txt", "text")
    ingestor.sync("farm")
    monkeypatch.setattr(keywords, "KeywordIndex", None)
    assert ingestor.sync("farm").unchanged == 1


def lost(folder: Path) -> None:
    shutil.rmtree(folder)


def damaged(folder: Path) -> None:
    (folder / META).write_bytes(random.Random(0).randbytes(200))


def another(folder: Path) -> None:
    KeywordIndex(folder, create=True)


@pytest.mark.parametrize("harm", [lost, another])
def test_made_again_from_the_store(home: Path, write: Write, harm: Callable[[Path], None]) -> None:
    """Without reading or embedding a document again."""
    for i in range(3):
        write(f"farm/{i}.md", f"# Part {i}\n\n{LONG}")
    open_ingestor(home, FakeEmbedder()).sync("farm")
    embedder = FakeEmbedder()
    ingestor = open_ingestor(home, embedder)
    harm(folder_of(ingestor.keyword, "farm"))
    report = ingestor.sync("farm")
    assert (report.unchanged, report.keyworded, embedder.embedded) == (3, 3, [])
    assert "3 documents that were indexed before are now found by their words" in render(report)
    check_consistent(ingestor, "farm")
    assert search(ingestor, "part 2")[0] == doc_id(ingestor, "2.md")  # headings, too


@pytest.mark.parametrize("part", [META, *PARTS])
@pytest.mark.parametrize("how", ["cut", "emptied", "overwritten", "removed"])
def test_a_run_with_nothing_to_do_mends_damage(ingestor: Ingestor, write: Write, part: str, how: str) -> None:
    write("farm/a.md", "# Feeding\n\nLlamas eat hay.")
    ingestor.sync("farm")
    folder = folder_of(ingestor.keyword, "farm")
    assert is_whole(folder)
    (path,) = [folder / META] if part == META else folder.glob(f"*.{part}")
    data = path.read_bytes()
    if how == "removed":
        path.unlink()
    else:
        cut = data[: -9 if part == META else -1]
        path.write_bytes({"cut": cut, "emptied": b"", "overwritten": random.Random(0).randbytes(len(data))}[how])
    assert not is_whole(folder)
    assert ingestor.sync("farm").unchanged == 1
    assert is_whole(folder)
    assert search(ingestor, "hay") == [doc_id(ingestor, "a.md")]


def test_a_damaged_one_is_made_again_when_it_is_written(home: Path, write: Write) -> None:
    for i in range(3):
        write(f"farm/{i}.txt", f"Document {i}.\n\n{LONG}")
    ingestor = open_ingestor(home, FakeEmbedder())
    ingestor.sync("farm")
    damaged(folder_of(ingestor.keyword, "farm"))
    write("farm/3.txt", "the new one")
    assert ingestor.sync("farm").keyworded == 3
    check_consistent(ingestor, "farm")


def test_a_knowledge_base_from_before(home: Path, write: Write) -> None:
    """Its manifest knows nothing of keyword indexes."""
    write("farm/a.txt", LONG)
    ingestor = open_ingestor(home, FakeEmbedder())
    ingestor.sync("farm")
    shutil.rmtree(ingestor.keyword)
    ingestor.manifest.forget_keywords("farm")
    assert ingestor.sync("farm").keyworded == 1
    check_consistent(ingestor, "farm")


def test_other_terms_make_it_again(ingestor: Ingestor, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write("farm/a.txt", LONG)
    ingestor.sync("farm")
    before = read_id(folder_of(ingestor.keyword, "farm"))
    monkeypatch.setattr(analyze, "VERSION", analyze.VERSION + 1)
    assert ingestor.sync("farm").keyworded == 1
    assert read_id(folder_of(ingestor.keyword, "farm")) != before
    check_consistent(ingestor, "farm")


def test_commits_now_and_then(ingestor: Ingestor, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long run does not keep words back until its end."""
    seen: list[int] = []
    put_file = Manifest.put_file

    def spy(self: Manifest, row: object) -> None:
        folder = folder_of(ingestor.keyword, "farm")
        seen.append(KeywordIndex(folder).count() if read_id(folder) else 0)
        put_file(self, row)  # type: ignore[arg-type]

    monkeypatch.setattr(Manifest, "put_file", spy)
    monkeypatch.setattr(keywords, "COMMIT_CHUNKS", 2)
    for i in range(4):
        write(f"farm/{i}.txt", f"text {i}")
    ingestor.sync("farm")
    assert seen == [0, 0, 2, 2]
    check_consistent(ingestor, "farm")


def test_status_tells_of_it(ingestor: Ingestor, write: Write) -> None:
    assert keyword_state(ingestor, "farm") == "keyword index: all 0 documents"
    write("farm/a.txt", LONG)
    ingestor.sync("farm")
    assert size_of(folder_of(ingestor.keyword, "farm")) > 500
    assert keyword_state(ingestor, "farm") == "keyword index: all 1 documents"
    lost(folder_of(ingestor.keyword, "farm"))
    assert keyword_state(ingestor, "farm") == ("keyword index: 0 of 1 documents; run `paddock ingest` to complete it")
