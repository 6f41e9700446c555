"""Killed at any moment and run again: the same chunks as an uninterrupted run, and no others."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ingest.manifest import Manifest
from ingest.sync import Ingestor
from tests.ingest.fakes import FakeEmbedder, open_ingestor, store_of
from tests.ingest.test_sync import LONG, check_consistent, counts
from vectorstore.keyword import KeywordIndex
from vectorstore.store import ChromaStore

ROOT = Path(__file__).resolve().parents[2]
Write = Callable[[str, str], Path]

RUN = """
import sys
from pathlib import Path
from tests.ingest.fakes import FakeEmbedder, open_ingestor
ingestor = open_ingestor(Path(sys.argv[1]), FakeEmbedder())
ingestor.manifest.kbs()
open_store = ingestor.open_store
open_store("warm", True)  # Chroma is loaded before the race begins
print("ready", flush=True)
ingestor.sync("farm")
print("done", flush=True)
"""


def contents(ingestor: Ingestor) -> dict[str, tuple[str, str]]:
    """Chunk id -> source and text."""
    store = store_of(ingestor, "farm")
    return {str(each.id): (each.metadata["source"], each.page_content) for each in store.get_by_ids(store.ids())}


def fill(home: Path) -> None:
    """What the index holds before the run that is killed: some documents that then change, move and go."""
    farm = home / "inbox" / "farm"
    farm.mkdir(parents=True)
    for i in range(6):
        (farm / f"old-{i}.txt").write_text(f"Old document {i}.\n\n{LONG}")


def disturb(home: Path) -> None:
    farm = home / "inbox" / "farm"
    for i in range(6):
        path = farm / f"old-{i}.txt"
        if i < 2:
            path.write_text(f"Changed document {i}.\n\n{LONG}")
        elif i < 4:
            path.rename(farm / f"moved-{i}.txt")
        else:
            path.unlink()
    for i in range(6):
        (farm / f"new-{i}.txt").write_text(f"New document {i}.\n\n{LONG}")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder, indexed and then disturbed."""
    home = tmp_path_factory.mktemp("template")
    fill(home)
    open_ingestor(home, FakeEmbedder()).sync("farm")
    disturb(home)
    return home


@pytest.fixture(scope="module")
def expected(template: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    """What an uninterrupted run makes of it."""
    home = tmp_path_factory.mktemp("whole") / "home"
    shutil.copytree(template, home)
    ingestor = open_ingestor(home, FakeEmbedder())
    assert counts(ingestor.sync("farm")) == {"added": 6, "changed": 2, "renamed": 2, "deleted": 2}
    return contents(ingestor)


def run_and_kill(home: Path, after: float) -> bool:
    """Runs a sync and kills it some seconds after it began; says whether it was still at work."""
    command = [sys.executable, "-c", RUN, str(home)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(after)
        process.send_signal(signal.SIGKILL)
        return process.stdout.read() == ""


def test_kill_nine(template: Path, expected: dict[str, tuple[str, str]], tmp_path: Path) -> None:
    """Several times in a row on the same folder, then a run to the end; with delays from the start to past the end."""
    random_delay = random.Random(4)
    at_work = 0
    for attempt in range(3):
        home = tmp_path / str(attempt)
        shutil.copytree(template, home)
        for _ in range(2):
            at_work += run_and_kill(home, random_delay.uniform(0.0, 0.5))
        ingestor = open_ingestor(home, FakeEmbedder())
        ingestor.sync("farm")
        assert contents(ingestor) == expected
        check_consistent(ingestor, "farm")
    assert at_work >= 2, "most kills must hit a run at work, or the test tests nothing"


class Killed(BaseException):
    """Stands for the end of the process at this very place."""


STEPS = [
    *((Manifest, name) for name in ("add_garbage", "put_file", "drop_garbage", "delete_file", "add_move", "drop_move")),
    *((ChromaStore, name) for name in ("add_documents", "delete_documents", "update_source")),
    *((KeywordIndex, name) for name in ("put", "delete", "commit", "_create")),
    *((Manifest, name) for name in ("put_keyword", "drop_keywords", "put_keyword_index")),
    *((Manifest, "put_kb"), (FakeEmbedder, "embed_documents")),
]
ONCE = {"put_kb", "put_keyword_index", "_create"}  # taken once only, when the index is made


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("owner", "name"), STEPS, ids=[f"{owner.__name__}.{name}" for owner, name in STEPS])
def test_end_at_every_step(
    template: Path,
    expected: dict[str, tuple[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    name: str,
    when: str,
) -> None:
    """At the first, second and fourth time that each step is taken, before and after it."""
    for number in (1, 2, 4):
        home = tmp_path / str(number)
        shutil.copytree(template, home)
        if name in ONCE:
            shutil.rmtree(home / "index")
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, dying(getattr(owner, name), number, when))
            try:
                open_ingestor(home, FakeEmbedder()).sync("farm")
            except Killed:
                pass
            else:
                continue  # the step is not taken so often
        ingestor = open_ingestor(home, FakeEmbedder())
        ingestor.sync("farm")
        if name in ONCE:
            assert {text for _, text in contents(ingestor).values()} == {text for _, text in expected.values()}
        else:
            assert contents(ingestor) == expected
        check_consistent(ingestor, "farm")


def dying(step: Callable[..., Any], number: int, when: str) -> Callable[..., Any]:
    """The step, which ends the process at its n-th time."""
    calls = 0

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number and when == "before":
            raise Killed
        result = step(*args, **kwargs)
        if calls == number:
            raise Killed
        return result

    return call


def test_renamed_back_after_a_kill(home: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the two halves of a renaming, and the file has its old name again before the next run."""
    path = write("farm/a.txt", "text")
    open_ingestor(home, FakeEmbedder()).sync("farm")
    path.rename(path.with_name("b.txt"))
    for name in ("drop_move", "add_move"):
        with monkeypatch.context() as patch:
            patch.setattr(Manifest, name, dying(getattr(Manifest, name), 1, "before"))
            with pytest.raises(Killed):
                open_ingestor(home, FakeEmbedder()).sync("farm")
        path.with_name("b.txt").rename(path)
        ingestor = open_ingestor(home, FakeEmbedder())
        ingestor.sync("farm")
        check_consistent(ingestor, "farm")
        path.rename(path.with_name("b.txt"))


@pytest.mark.parametrize("then", ["changed", "gone"])
@pytest.mark.parametrize(("owner", "name"), [(ChromaStore, "add_documents"), (Manifest, "put_file")])
def test_other_files_after_a_kill(
    home: Path, write: Write, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, then: str
) -> None:
    """The next run does not see the content whose chunks are half written; they must go all the same."""
    path = write("farm/a.txt", f"First version.\n\n{LONG}")
    write("farm/b.txt", "stays")
    when = "after" if owner is ChromaStore else "before"
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, dying(getattr(owner, name), 1, when))
        with pytest.raises(Killed):
            open_ingestor(home, FakeEmbedder()).sync("farm")
    if then == "gone":
        path.unlink()
    else:
        path.write_text("Second version.")
    ingestor = open_ingestor(home, FakeEmbedder())
    ingestor.sync("farm")
    assert not any("First" in text or "llama" in text for _, text in contents(ingestor).values())
    check_consistent(ingestor, "farm")


def test_torn_vectors_are_made_again(home: Path, write: Write) -> None:
    """Chroma writes its vectors in place; a kill in that moment leaves files that may even crash a reader."""
    for i in range(30):
        write(f"farm/{i}.txt", f"Document {i}.\n\n{LONG}")
    ingestor = open_ingestor(home, FakeEmbedder(), chunk_tokens=16)
    chunks = ingestor.sync("farm").chunks
    assert chunks > 1000, "or Chroma has not written its vectors yet"
    before = set(contents(ingestor))
    (vectors,) = (home / "index" / "chroma").glob("*/data_level0.bin")
    vectors.write_bytes(random.Random(1).randbytes(vectors.stat().st_size))
    ingestor.manifest.add_garbage("farm", "what a killed run leaves")
    # Another process: this one has the good vectors in memory.
    code = RUN.replace("FakeEmbedder())", "FakeEmbedder(), chunk_tokens=16)")
    subprocess.run([sys.executable, "-c", code, str(home)], cwd=ROOT, check=True, timeout=120)
    assert set(contents(ingestor)) == before
    assert len(store_of(ingestor, "farm").similarity_search("llama", k=chunks)) == chunks
    check_consistent(ingestor, "farm")


def test_a_damaged_database_is_not_unchanged(home: Path, write: Write) -> None:
    """Another process finds random bytes in its place, and nothing to do."""
    write("farm/1.txt", "Llamas eat hay.")
    assert open_ingestor(home, FakeEmbedder()).sync("farm").added == 1
    database = home / "index" / "chroma" / "chroma.sqlite3"
    command = [sys.executable, "-c", RUN.replace('open_store("warm", True)', ""), str(home)]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, timeout=120, check=False).returncode == 0
    database.write_bytes(random.Random(1).randbytes(database.stat().st_size))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert f"the index in {database.parent} cannot be used (file is not a database)" in done.stderr
