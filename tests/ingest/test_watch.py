"""The watcher notices what happens in the inbox by itself, and outlives faults."""

from __future__ import annotations

import queue
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from watchdog.observers.polling import PollingObserver

from ingest import watch
from ingest.report import Event, Report
from ingest.sync import Ingestor
from ingest.watch import Watcher

Write = Callable[[str, str], Path]
Reports = queue.Queue[Report]


@pytest.fixture
def reports(ingestor: Ingestor) -> Iterator[Reports]:
    """The reports of a running watcher."""
    found: Reports = queue.Queue()
    watcher = Watcher(ingestor, found.put, debounce_s=0.3)
    watcher.start()
    yield found
    watcher.stop()


def until(reports: Reports, wanted: Callable[[Report], bool]) -> Report:
    """The first report that is wanted; others before it (a slow machine may need two rounds) are passed over."""
    while True:
        report = reports.get(timeout=20)
        if wanted(report):
            return report


def test_new_changed_renamed_and_deleted(reports: Reports, write: Write) -> None:
    path = write("a.md", "first text")
    assert until(reports, lambda r: r.added > 0).kb == "default"
    path.write_text("another text, and longer", encoding="utf-8")
    until(reports, lambda r: r.changed == 1)
    path = path.rename(path.with_name("b.md"))
    until(reports, lambda r: r.renamed == 1)
    path.unlink()
    until(reports, lambda r: r.deleted == 1)


def test_a_new_folder_is_a_new_knowledge_base(reports: Reports, home: Path, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "deep").mkdir()
    (tmp_path / "made" / "deep" / "x.txt").write_text("text", encoding="utf-8")
    shutil.move(tmp_path / "made", home / "inbox" / "山 farm")
    assert until(reports, lambda r: r.added == 1).kb == "山 farm"


def test_a_file_that_grows_is_read_when_it_is_whole(reports: Reports, home: Path) -> None:
    with (home / "inbox" / "slow.txt").open("w", encoding="utf-8") as file:
        for n in range(8):
            file.write(f"line {n}\n")
            file.flush()
            with pytest.raises(queue.Empty):
                reports.get(timeout=0.1)
    assert until(reports, lambda r: r.added == 1).failed == []


def test_a_fault_does_not_end_it(
    reports: Reports, ingestor: Ingestor, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.watch.FIRST_RETRY", 0.2)
    whole, calls = ingestor.sync, []

    def faulty(kb: str) -> Report:
        calls.append(kb)
        if len(calls) == 1:
            raise OSError("the disk hiccups")
        return whole(kb)

    monkeypatch.setattr(ingestor, "sync", faulty)
    write("a.md", "text")
    until(reports, lambda r: r.added == 1)
    assert len(calls) > 1


def test_the_listener_hears_of_every_sync(ingestor: Ingestor, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[tuple[str, str]] = []

    def hear(kb: str, event: Event) -> None:
        heard.append((kb, event.kind))

    ingestor.listener = hear
    write("a.md", "text")
    ingestor.sync("default")
    assert {kb for kb, _ in heard} == {"default"}
    assert [kind for _, kind in heard][-1] == "done"
    heard.clear()
    monkeypatch.setattr("ingest.run.Run.execute", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ingestor.sync("default")
    assert heard[-1] == ("default", "done"), "a run that failed is over, too"


def test_a_rebuild_of_a_part_is_a_rebuild_of_all(ingestor: Ingestor, write: Write) -> None:
    """The collection is dropped whole; reading only a part again would lose the rest."""
    part = write("a.md", "first")
    write("b.md", "second")
    ingestor.sync("default")
    report = ingestor.sync("default", only=[part], rebuild=True)
    assert (report.added, report.chunks) == (2, 2)


def test_reading_and_temporary_files_trigger_nothing(reports: Reports, write: Write) -> None:
    """A sync reads the files; it must not call itself for ever."""
    path = write("a.md", "text")
    until(reports, lambda r: r.added == 1)
    time.sleep(0.6)
    while not reports.empty():
        reports.get()
    path.read_text(encoding="utf-8")
    for name in (".hidden.txt", "b.txt.part", "~$c.docx"):
        write(name, "x")
    with pytest.raises(queue.Empty):
        reports.get(timeout=1.0)


def test_only_the_knowledge_base_touched(reports: Reports, write: Write) -> None:
    write("farm/a.md", "text")
    write("top.md", "text")
    assert {until(reports, lambda r: r.added == 1).kb for _ in range(2)} == {"farm", "default"}
    write("farm/b.md", "text")
    assert until(reports, lambda r: True).kb == "farm"
    with pytest.raises(queue.Empty):
        reports.get(timeout=0.8)


def test_a_file_that_never_rests_does_not_block_the_others(
    reports: Reports, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "LONGEST_WAIT", 0.6)
    end = time.monotonic() + 15
    with (home / "inbox" / "log.txt").open("a") as file:
        while reports.empty() and time.monotonic() < end:
            file.write("x")
            file.flush()
            time.sleep(0.05)
    assert not reports.empty()


def test_polls_where_the_system_cannot_notify(
    ingestor: Ingestor, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusing(watch.Observer):  # type: ignore[misc, valid-type]
        def start(self) -> None:
            raise OSError(28, "inotify watch limit reached")

    monkeypatch.setattr(watch, "Observer", Refusing)
    found: Reports = queue.Queue()
    watcher = Watcher(ingestor, found.put, debounce_s=0.1)
    watcher.start()
    try:
        assert isinstance(watcher._observer, PollingObserver)
        write("a.md", "text")
        until(found, lambda r: r.added == 1)
    finally:
        watcher.stop()


def test_stops_and_starts_again(ingestor: Ingestor, write: Write) -> None:
    found: Reports = queue.Queue()
    watcher = Watcher(ingestor, found.put, debounce_s=0.1)
    watcher.start()
    watcher.stop()
    write("a.md", "text")
    with pytest.raises(queue.Empty):
        found.get(timeout=0.5)
    watcher.start()
    write("b.md", "text")
    until(found, lambda r: r.added == 2)
    watcher.stop()
    watcher.stop()


def test_a_removed_folder(reports: Reports, ingestor: Ingestor, home: Path, write: Write) -> None:
    write("farm/a.md", "text")
    until(reports, lambda r: r.added == 1)
    shutil.rmtree(home / "inbox" / "farm")
    until(reports, lambda r: r.deleted == 1)
    end = time.monotonic() + 10
    while "farm" in ingestor.kbs() and time.monotonic() < end:
        time.sleep(0.05)
    assert "farm" not in ingestor.kbs()
