"""Sync: the index follows the files, whatever happens to them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ingest import chunk
from ingest.errors import IngestError
from ingest.loaders import LOADERS, Loader
from ingest.sync import Event, Ingestor, Report
from tests.ingest.fakes import FakeEmbedder, make_pdf, make_scan, open_ingestor, store_of
from vectorstore.errors import StoreError
from vectorstore.keyword import folder_of, read_id

ROOT = Path(__file__).resolve().parents[2]
Write = Callable[[str, str], Path]

LONG = "\n\n".join(f"Paragraph {i} tells how llama number {i} is fed and watered every day." for i in range(40))


def counts(report: Report) -> dict[str, int]:
    """What a report counts, without zeros."""
    found = {name: getattr(report, name) for name in ("added", "changed", "renamed", "deleted", "unchanged")}
    return {name: number for name, number in {**found, "failed": len(report.failed)}.items() if number}


def sources(ingestor: Ingestor, kb: str) -> set[str]:
    """The sources that the index holds chunks of."""
    store = store_of(ingestor, kb)
    return {str(each.metadata["source"]) for each in store.get_by_ids(store.ids())}


def check_consistent(ingestor: Ingestor, kb: str) -> None:
    """The index holds exactly the chunks that the manifest tells of."""
    rows = ingestor.manifest.files(kb).values()
    expected = {f"{row.doc_id}-{i:05d}": row.source for row in rows for i in range(row.chunks)}
    store = store_of(ingestor, kb)
    found = {str(each.id): each.metadata["source"] for each in store.get_by_ids(store.ids())}
    assert found == expected
    assert ingestor.manifest.garbage(kb) == []
    assert ingestor.manifest.moves(kb) == []
    assert keyworded(ingestor, kb) == expected.keys()
    assert ingestor.manifest.keywords(kb) == dict.fromkeys((row.doc_id for row in rows if row.doc_id), True)


def keyworded(ingestor: Ingestor, kb: str) -> set[str]:
    """Ids of all chunks in the keyword index."""
    import tantivy

    folder = folder_of(ingestor.keyword, kb)
    if read_id(folder) is None:
        return set()
    searcher = tantivy.Index.open(str(folder)).searcher()
    hits = searcher.search(tantivy.Query.all_query(), 100_000).hits
    found = [searcher.doc(address).get_first("chunk_id") for _, address in hits]
    assert len(found) == len(set(found)), "a chunk is there twice"
    return set(found)


class TestFollowing:
    def test_new_then_unchanged(self, ingestor: Ingestor, embedder: FakeEmbedder, write: Write) -> None:
        write("farm/a.md", "# Hay\n\nLlamas eat hay.")
        write("farm/deep/er/b.txt", LONG)
        first = ingestor.sync("farm")
        assert counts(first) == {"added": 2}
        assert first.chunks == store_of(ingestor, "farm").count() > 5
        assert sources(ingestor, "farm") == {"a.md", "deep/er/b.txt"}
        embedded = len(embedder.embedded)
        second = ingestor.sync("farm")
        assert counts(second) == {"unchanged": 2}
        assert second.chunks == first.chunks
        assert len(embedder.embedded) == embedded
        check_consistent(ingestor, "farm")

    def test_chunk_metadata(self, ingestor: Ingestor, home: Path, write: Write) -> None:
        write("farm/a.md", "# Hay\n\n## Winter\n\nTwo bales.")
        (home / "inbox/farm/b.pdf").write_bytes(make_pdf(["one", "two"]))
        ingestor.sync("farm")
        store = store_of(ingestor, "farm")
        found = {
            each.metadata["source"]: each for each in store.get_by_ids(store.ids()) if each.metadata.get("page", 2) == 2
        }
        doc_id = found["a.md"].metadata["doc_id"]
        assert found["a.md"].id == f"{doc_id}-00000"
        assert found["a.md"].page_content == "# Hay\n\n## Winter\n\nTwo bales."
        assert found["a.md"].metadata == {
            "chunk_id": f"{doc_id}-00000",
            "doc_id": doc_id,
            "source": "a.md",
            "ordinal": 0,
            "kb": "farm",
            "headings": "Hay > Winter",
        }
        assert found["b.pdf"].metadata["page"] == 2
        assert found["b.pdf"].metadata["ordinal"] == 1

    def test_headings_are_embedded_with_the_text(
        self, ingestor: Ingestor, embedder: FakeEmbedder, write: Write
    ) -> None:
        write("a.md", "# Hay\n\nTwo bales.")
        ingestor.sync("default")
        assert embedder.embedded == ["Hay\nTwo bales."]

    def test_change(self, ingestor: Ingestor, write: Write) -> None:
        write("farm/a.txt", "The herd is sheared in May.")
        write("farm/b.txt", "Salt is changed on Mondays.")
        ingestor.sync("farm")
        write("farm/a.txt", "The herd is sheared in June.")
        assert counts(ingestor.sync("farm")) == {"changed": 1, "unchanged": 1}
        found = store_of(ingestor, "farm").similarity_search("sheared", k=9)
        assert {each.page_content for each in found} == {"The herd is sheared in June.", "Salt is changed on Mondays."}
        check_consistent(ingestor, "farm")

    def test_change_of_the_same_size_within_a_tick(self, ingestor: Ingestor, write: Write) -> None:
        """A file system's clock may not tick between two writes: neither size nor time tells of the second."""
        path = write("a.txt", "May")
        soon = time.time_ns() + 2_000_000_000
        os.utime(path, ns=(soon, soon))
        ingestor.sync("default")
        path.write_text("Jun")
        os.utime(path, ns=(soon, soon))
        assert counts(ingestor.sync("default")) == {"changed": 1}

    def test_touched_only(self, ingestor: Ingestor, embedder: FakeEmbedder, write: Write) -> None:
        path = write("a.txt", "text")
        ingestor.sync("default")
        os.utime(path, (1, 1))
        assert counts(ingestor.sync("default")) == {"unchanged": 1}
        assert len(embedder.embedded) == 1
        assert ingestor.documents("default")[0].status == "indexed"

    def test_unchanged_files_are_not_read(
        self, ingestor: Ingestor, write: Write, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = write("a.txt", "text")
        os.utime(path, (1, 1))
        ingestor.sync("default")
        monkeypatch.setattr("hashlib.file_digest", lambda *args: pytest.fail("read again"))
        assert counts(ingestor.sync("default")) == {"unchanged": 1}

    def test_rename_is_not_embedded_again(self, ingestor: Ingestor, embedder: FakeEmbedder, write: Write) -> None:
        path = write("farm/a.txt", LONG)
        ingestor.sync("farm")
        before, embedded = store_of(ingestor, "farm").ids(), len(embedder.embedded)
        (path.parent / "sub").mkdir()
        path.rename(path.parent / "sub" / "文.txt")
        assert counts(ingestor.sync("farm")) == {"renamed": 1}
        assert store_of(ingestor, "farm").ids() == before
        assert len(embedder.embedded) == embedded
        assert sources(ingestor, "farm") == {"sub/文.txt"}
        check_consistent(ingestor, "farm")

    def test_a_new_file_under_a_renamed_ones_name(self, ingestor: Ingestor, write: Write) -> None:
        """Its id would be the one that the renamed document still has."""
        path = write("a.txt", "same")
        ingestor.sync("default")
        path.rename(path.with_name("b.txt"))
        ingestor.sync("default")
        write("a.txt", "same")
        assert counts(ingestor.sync("default")) == {"added": 1, "unchanged": 1}
        assert sources(ingestor, "default") == {"a.txt", "b.txt"}
        check_consistent(ingestor, "default")
        path.unlink()
        assert counts(ingestor.sync("default")) == {"deleted": 1, "unchanged": 1}
        assert sources(ingestor, "default") == {"b.txt"}

    def test_swap_of_two_files(self, ingestor: Ingestor, write: Write) -> None:
        one, two = write("a.txt", "first text"), write("b.txt", "second longer text")
        ingestor.sync("default")
        one.rename(one.with_name("c"))
        two.rename(one)
        one.with_name("c").rename(two)
        ingestor.sync("default")
        store = store_of(ingestor, "default")
        found = {each.metadata["source"]: each.page_content for each in store.get_by_ids(store.ids())}
        assert found == {"a.txt": "second longer text", "b.txt": "first text"}
        check_consistent(ingestor, "default")

    def test_another_type_of_the_same_content_is_no_rename(self, ingestor: Ingestor, write: Write) -> None:
        path = write("a.txt", "Title\n=====\n\ntext")
        ingestor.sync("default")
        path.rename(path.with_suffix(".md"))
        assert counts(ingestor.sync("default")) == {"added": 1, "deleted": 1}
        assert store_of(ingestor, "default").similarity_search("text")[0].metadata["headings"] == "Title"

    def test_delete(self, ingestor: Ingestor, write: Write) -> None:
        path = write("farm/a.txt", LONG)
        write("farm/b.txt", "stays")
        ingestor.sync("farm")
        path.unlink()
        assert counts(ingestor.sync("farm")) == {"deleted": 1, "unchanged": 1}
        assert sources(ingestor, "farm") == {"b.txt"}
        check_consistent(ingestor, "farm")

    def test_deleting_the_last_document(self, ingestor: Ingestor, write: Write) -> None:
        path = write("farm/a.txt", "text")
        ingestor.sync("farm")
        path.unlink()
        report = ingestor.sync("farm")
        assert (counts(report), report.chunks) == ({"deleted": 1}, 0)
        assert store_of(ingestor, "farm").similarity_search("text") == []
        assert "farm" in ingestor.kbs()
        path.parent.rmdir()
        ingestor.sync("farm")
        assert "farm" not in ingestor.kbs()

    def test_duplicates_are_two_documents(self, ingestor: Ingestor, write: Write) -> None:
        write("a.txt", "same")
        write("default/b.txt", "same")
        assert counts(ingestor.sync("default")) == {"added": 2}
        assert sources(ingestor, "default") == {"a.txt", "default/b.txt"}

    def test_only(self, ingestor: Ingestor, write: Write) -> None:
        one, two = write("farm/a.txt", "one"), write("farm/sub/b.txt", "two")
        assert counts(ingestor.sync("farm", only=[two.parent])) == {"added": 1}
        assert sources(ingestor, "farm") == {"sub/b.txt"}
        two.unlink()
        assert counts(ingestor.sync("farm", only=[one])) == {"added": 1}
        assert counts(ingestor.sync("farm", only=[two])) == {"deleted": 1}

    def test_knowledge_bases(self, ingestor: Ingestor, home: Path, write: Write) -> None:
        for name in ("top.txt", "default/x.txt", "farm/y.txt", "游客/z.txt", ".hidden/h.txt"):
            write(name, name)
        assert ingestor.kbs() == ["default", "farm", "游客"]
        for kb, expected in (("default", {"top.txt", "default/x.txt"}), ("farm", {"y.txt"}), ("游客", {"z.txt"})):
            assert ingestor.sync(kb).kb == kb
            assert sources(ingestor, kb) == expected
            assert all((ingestor.folder(kb) / source).is_file() for source in expected)
        with pytest.raises(IngestError, match="no knowledge base 'nowhere'; there are: default, farm, 游客"):
            ingestor.sync("nowhere")

    def test_what_is_no_document(self, ingestor: Ingestor, home: Path, write: Write) -> None:
        for name in (".a.txt", "~$a.docx", "a.tmp", "a.txt.part", "a.txt.crdownload", "a.jpg", "b", ".git/c.txt"):
            write(f"farm/{name}", "x")
        assert counts(ingestor.sync("farm")) == {}

    def test_symbolic_links_are_not_followed(
        self, ingestor: Ingestor, home: Path, write: Write, tmp_path: Path
    ) -> None:
        write("farm/real.txt", "real")
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "secret.txt").write_text("secret")
        farm = home / "inbox" / "farm"
        (farm / "link.txt").symlink_to(outside / "secret.txt")
        (farm / "folder").symlink_to(outside)
        (farm / "loop").symlink_to(farm)
        (home / "inbox" / "linked").symlink_to(outside)
        (home / "inbox" / "default").symlink_to(outside)
        assert ingestor.kbs() == ["default", "farm"]
        assert counts(ingestor.sync("farm")) == {"added": 1}
        assert counts(ingestor.sync("default")) == {}


class TestFailures:
    def test_bad_files_do_not_stop_the_run(self, ingestor: Ingestor, home: Path, write: Write) -> None:
        write("farm/a.txt", "good")
        write("farm/empty.md", "")
        (home / "inbox/farm/broken.pdf").write_bytes(b"%PDF-1.4\n" + b"\x00" * 64)
        (home / "inbox/farm/scan.pdf").write_bytes(make_scan())
        (home / "inbox/farm/locked.pdf").write_bytes(make_pdf(["x"], password="p"))
        (home / "inbox/farm/big.txt").write_bytes(b"x" * (1 << 20) + b"x")
        write("farm/z.txt", "good too")
        report = ingestor.sync("farm")
        assert counts(report) == {"added": 2, "failed": 5}
        assert [failure.source for failure in report.failed] == [
            *("big.txt", "broken.pdf", "empty.md", "locked.pdf", "scan.pdf")
        ]
        assert all(failure.error and "\n" not in failure.error for failure in report.failed)
        assert "max_file_mb" in report.failed[0].error
        check_consistent(ingestor, "farm")

    def test_remembered_without_reading_and_told_again(
        self, ingestor: Ingestor, home: Path, write: Write, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = home / "inbox" / "scan.pdf"
        path.write_bytes(make_scan())
        os.utime(path, (1, 1))
        first = ingestor.sync("default")
        monkeypatch.setattr("ingest.run.load", lambda path: pytest.fail("read again"))
        second = ingestor.sync("default")
        assert second.failed == first.failed
        assert counts(second) == {"failed": 1}

    def test_mended_file(self, ingestor: Ingestor, write: Write) -> None:
        write("a.txt", "")
        assert counts(ingestor.sync("default")) == {"failed": 1}
        write("a.txt", "now with text")
        assert counts(ingestor.sync("default")) == {"changed": 1}
        assert counts(ingestor.sync("default")) == {"unchanged": 1}

    def test_good_file_gone_bad_leaves_the_index(self, ingestor: Ingestor, write: Write) -> None:
        write("a.txt", "good")
        ingestor.sync("default")
        write("a.txt", "")
        assert counts(ingestor.sync("default")) == {"failed": 1}
        assert store_of(ingestor, "default").count() == 0
        check_consistent(ingestor, "default")

    def test_renamed_bad_file(self, ingestor: Ingestor, home: Path) -> None:
        path = home / "inbox" / "scan.pdf"
        path.write_bytes(make_scan())
        ingestor.sync("default")
        path.rename(path.with_name("other.pdf"))
        report = ingestor.sync("default")
        assert counts(report) == {"failed": 1}
        assert report.failed[0].source == "other.pdf"
        assert list(ingestor.manifest.files("default")) == ["other.pdf"]

    def test_deleted_bad_file(self, ingestor: Ingestor, write: Write) -> None:
        path = write("a.txt", "")
        ingestor.sync("default")
        path.unlink()
        assert counts(ingestor.sync("default")) == {"deleted": 1}

    def test_unforeseen_errors_of_a_loader(
        self, ingestor: Ingestor, write: Write, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def explode(path: Path) -> Any:
            raise ZeroDivisionError("deep\nin a library")

        monkeypatch.setitem(LOADERS, ".htm", Loader(explode))
        write("a.htm", "x")
        write("b.txt", "good")
        report = ingestor.sync("default")
        assert counts(report) == {"added": 1, "failed": 1}
        assert report.failed[0].error == "cannot be read (deep in a library)"

    def test_unreadable_pages_are_told_and_the_rest_indexed(
        self, ingestor: Ingestor, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from pypdf import PageObject

        extract = PageObject.extract_text
        monkeypatch.setattr(PageObject, "extract_text", lambda self: fail_on_two(extract(self)))
        path = home / "inbox" / "a.pdf"
        path.write_bytes(make_pdf(["One", "Two", "Three"]))
        os.utime(path, (1, 1))
        for expected in ({"added": 1, "failed": 1}, {"unchanged": 1, "failed": 1}):
            report = ingestor.sync("default")
            assert counts(report) == expected
            assert report.failed[0].error == "not all pages can be read (2: broken); the rest is indexed"
        store = store_of(ingestor, "default")
        assert sorted(each.metadata["page"] for each in store.get_by_ids(store.ids())) == [1, 3]
        assert ingestor.documents("default")[0].status == "indexed"

    def test_a_missing_embedder_is_no_fault_of_the_files(
        self, ingestor: Ingestor, embedder: FakeEmbedder, write: Write, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def missing(texts: list[str]) -> Any:
            raise IngestError("run `paddock models pull`")

        write("a.txt", "text")
        with monkeypatch.context() as patch:
            patch.setattr(embedder, "embed_documents", missing)
            with pytest.raises(IngestError, match="models pull"):
                ingestor.sync("default")
        assert counts(ingestor.sync("default")) == {"added": 1}
        check_consistent(ingestor, "default")

    def test_names_that_are_not_utf8(self, ingestor: Ingestor, home: Path) -> None:
        (Path(os.fsdecode(os.fsencode(home) + b"/inbox/caf\xe9.txt"))).write_text("x")
        report = ingestor.sync("default")
        assert counts(report) == {"failed": 1}
        json.dumps(report.to_json()).encode()

    def test_inbox_that_is_gone_deletes_nothing(self, ingestor: Ingestor, home: Path, write: Write) -> None:
        write("a.txt", "text")
        ingestor.sync("default")
        (home / "inbox").rename(home / "unmounted")
        with pytest.raises(IngestError, match=r"inbox .* is gone"):
            ingestor.sync("default")
        (home / "unmounted").rename(home / "inbox")
        assert counts(ingestor.sync("default")) == {"unchanged": 1}

    @pytest.mark.skipif(os.geteuid() != 0, reason="as root only, which can become someone else")
    def test_folders_without_permission(
        self, home: Path, write: Write, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        path = write("farm/sub/a.txt", "text")
        write("farm/b.txt", "other")
        for folder in (home, home / "inbox", home / "inbox" / "farm"):
            folder.chmod(0o755)
        (home / "index").mkdir()
        for step, expected in (("chown", ""), ("hide", "sub/: folder cannot be read"), ("lock", "not writable")):
            if step == "chown":
                shutil.chown(home / "index", 65534)
            elif step == "hide":
                path.parent.chmod(0)
            else:
                (home / "index").chmod(0o555)
                for file in (home / "index").iterdir():
                    if file.name == ".lock":
                        file.unlink()
            said = as_nobody(home, tmp_path_factory.getbasetemp().parent)
            assert expected in said if expected else said == ""

    def test_index_folder_that_is_a_file(self, home: Path, ingestor: Ingestor, write: Write) -> None:
        write("a.txt", "text")
        (home / "index").write_text("x")
        with pytest.raises(IngestError, match="cannot be made"):
            ingestor.sync("default")


def fail_on_two(text: str) -> str:
    if "Two" in text:
        raise ValueError("broken")
    return text


AS_NOBODY = """
import os, sys, tempfile
from pathlib import Path
from tests.ingest.fakes import FakeEmbedder, open_ingestor
from ingest.errors import IngestError
with tempfile.TemporaryDirectory() as warm:  # loads what is imported late, which the other user may not read
    (Path(warm) / "inbox").mkdir()
    (Path(warm) / "inbox" / "a.txt").write_text("x")
    open_ingestor(Path(warm), FakeEmbedder()).sync("default")
os.setuid(65534)
try:
    report = open_ingestor(Path(sys.argv[1]), FakeEmbedder()).sync("farm")
    assert report.deleted == 0
    print("; ".join(f"{failure.source}: {failure.error}" for failure in report.failed))
except IngestError as error:
    print(error)
"""


def as_nobody(home: Path, base: Path) -> str:
    """What a sync of `farm` says when another user runs it: failures, or the error."""
    for parent in [home, *home.parents]:
        # In a run of several processes, each has a folder of its own below the run's.
        if parent.is_relative_to(base.parent) and parent.stat().st_mode & 0o005 != 0o005:
            parent.chmod(0o755)
    command = [sys.executable, "-c", AS_NOBODY, str(home)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


class TestSettings:
    def test_other_chunk_sizes_are_a_change(
        self, ingestor: Ingestor, home: Path, embedder: FakeEmbedder, write: Write
    ) -> None:
        write("a.txt", LONG)
        before = ingestor.sync("default").chunks
        again = open_ingestor(home, embedder, chunk_tokens=20)
        report = again.sync("default")
        assert counts(report) == {"changed": 1}
        assert report.chunks > before
        check_consistent(again, "default")

    def test_another_version_of_a_loader_or_the_splitter(
        self, ingestor: Ingestor, write: Write, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write("a.txt", "text")
        write("b.md", "text")
        ingestor.sync("default")
        monkeypatch.setitem(LOADERS, ".md", Loader(LOADERS[".md"].read, version=99))
        assert counts(ingestor.sync("default")) == {"changed": 1, "unchanged": 1}
        monkeypatch.setattr(chunk, "VERSION", 99)
        assert counts(ingestor.sync("default")) == {"changed": 2}
        check_consistent(ingestor, "default")

    def test_chunks_fit_the_embedder(self, home: Path, write: Write) -> None:
        small = FakeEmbedder(max_tokens=25)
        write("a.txt", LONG)
        open_ingestor(home, small, chunk_tokens=500).sync("default")
        assert max(small.count_tokens(text) for text in small.embedded) <= 25

    def test_another_embedder_needs_a_rebuild(self, ingestor: Ingestor, home: Path, write: Write) -> None:
        write("farm/a.txt", "text")
        ingestor.sync("farm")
        other = open_ingestor(home, FakeEmbedder("words@2"))
        with pytest.raises(StoreError) as error:
            other.sync("farm")
        assert str(error.value) == (
            "knowledge base 'farm' was indexed with words@1 but the embedder is now words@2; "
            "run `paddock ingest --rebuild --kb farm`"
        )
        assert counts(other.sync("farm", rebuild=True)) == {"added": 1}
        assert counts(other.sync("farm")) == {"unchanged": 1}
        check_consistent(other, "farm")


class TestLostIndex:
    @pytest.mark.parametrize("lost", ["index/chroma", "index/chroma/chroma.sqlite3", "index"])
    def test_all_is_added_again(
        self, ingestor: Ingestor, home: Path, embedder: FakeEmbedder, write: Write, lost: str
    ) -> None:
        write("farm/a.txt", LONG)
        chunks = ingestor.sync("farm").chunks
        path = home / lost
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        for each in (ingestor, open_ingestor(home, embedder)):
            report = each.sync("farm")
            assert counts(report) == ({"added": 1} if each is ingestor else {"unchanged": 1})
            assert report.chunks == chunks
            check_consistent(each, "farm")

    def test_collection_dropped(self, ingestor: Ingestor, write: Write) -> None:
        write("farm/a.txt", "text")
        ingestor.sync("farm")
        ingestor.drop_collection("farm")
        assert counts(ingestor.sync("farm")) == {"added": 1}

    def test_manifest_lost_leaves_no_stray_chunks(
        self, ingestor: Ingestor, home: Path, embedder: FakeEmbedder, write: Write
    ) -> None:
        gone = write("farm/a.txt", "text that goes")
        write("farm/b.txt", "text that stays")
        ingestor.sync("farm")
        ingestor.manifest.close()
        for path in (home / "index").glob("manifest.sqlite*"):
            path.unlink()
        gone.unlink()
        again = open_ingestor(home, embedder)
        assert counts(again.sync("farm")) == {"added": 1}
        check_consistent(again, "farm")

    def test_corrupt_index_is_one_line(self, ingestor: Ingestor, home: Path, write: Write) -> None:
        write("farm/a.txt", "text")
        chroma = home / "index" / "chroma"
        chroma.mkdir(parents=True)
        (chroma / "chroma.sqlite3").write_bytes(b"rubbish " * 4000)
        with pytest.raises(StoreError, match="move this folder away and run `paddock ingest` again"):
            ingestor.sync("farm")
        shutil.rmtree(chroma)
        assert counts(ingestor.sync("farm")) == {"added": 1}

    def test_corrupt_manifest_is_one_line(self, home: Path, embedder: FakeEmbedder) -> None:
        (home / "index").mkdir()
        (home / "index" / "manifest.sqlite").write_bytes(b"rubbish " * 4000)
        with pytest.raises(IngestError, match="manifest"):
            open_ingestor(home, embedder).kbs()


class TestReporting:
    def test_report_is_the_contracts_object(self, ingestor: Ingestor, write: Write) -> None:
        write("a.txt", "text")
        write("b.txt", "")
        found = ingestor.sync("default").to_json()
        assert list(found) == [
            *("kb", "added", "changed", "renamed", "deleted", "unchanged", "failed", "chunks", "seconds")
        ]
        assert found["failed"] == [{"source": "b.txt", "error": "is empty"}]
        assert isinstance(found["seconds"], float)
        assert (found["kb"], found["added"], found["chunks"]) == ("default", 1, 1)

    def test_progress(self, ingestor: Ingestor, write: Write) -> None:
        write("a.txt", LONG * 10)
        write("b.txt", LONG)
        events: list[Event] = []
        ingestor.sync("default", progress=events.append)
        total = len(LONG.encode()) * 11
        assert events[0].kind == "scan"
        assert {event.kind for event in events} == {"scan", "file", "chunks", "done"}
        bytes_done = [event.done_bytes for event in events]
        assert bytes_done == sorted(bytes_done)
        assert bytes_done[-1] == total
        assert {event.total_bytes for event in events[1:]} == {total}
        assert len({event.done_bytes for event in events if event.source == "a.txt"}) > 2, "large files in steps"
        assert (events[-1].kind, events[-1].done_files, events[-1].total_files) == ("done", 2, 2)

    def test_documents(self, ingestor: Ingestor, home: Path, write: Write) -> None:
        write("farm/changed.txt", "one")
        write("farm/failed.txt", "")
        (home / "inbox/farm/good.pdf").write_bytes(make_pdf(["a", "b"]))
        ingestor.sync("farm")
        write("farm/changed.txt", "other")
        write("farm/new.txt", "four")
        found = {each.source: each for each in ingestor.documents("farm")}
        assert {name: each.status for name, each in found.items()} == {
            "changed.txt": "changed",
            "failed.txt": "failed",
            "good.pdf": "indexed",
            "new.txt": "new",
        }
        assert (found["good.pdf"].pages, found["good.pdf"].chunks, found["new.txt"].size) == (2, 2, 4)
        assert found["failed.txt"].error == "is empty"
        assert abs((found["good.pdf"].ingested_at or 0) - time.time()) < 60
        with pytest.raises(IngestError, match="no knowledge base"):
            ingestor.documents("nowhere")


class TestDeleting:
    def test_document(self, ingestor: Ingestor, write: Write) -> None:
        path = write("farm/sub/a.txt", "text")
        write("farm/b.txt", "other")
        ingestor.sync("farm")
        ingestor.delete_document("farm", "sub/a.txt")
        assert not path.exists()
        assert sources(ingestor, "farm") == {"b.txt"}

    @pytest.mark.parametrize(
        "source",
        [
            "nope.txt",
            "../secret.txt",
            "/etc/passwd",
            "sub/../../secret.txt",
            "",
            ".",
            "a\x00",
            "..\\secret.txt",
            "x.jpg",
        ],
    )
    def test_nothing_else_is_deleted(self, ingestor: Ingestor, home: Path, write: Write, source: str) -> None:
        write("farm/x.jpg", "no document")
        write("farm/a.txt", "text")
        secret = write("secret.txt", "of another knowledge base")
        with pytest.raises(IngestError, match="has no document"):
            ingestor.delete_document("farm", source)
        assert secret.exists()
        assert (home / "inbox/farm/x.jpg").exists()

    def test_a_folder_that_only_begins_alike(self, ingestor: Ingestor, write: Write) -> None:
        write("farm/a.txt", "x")
        other = write("farm_evil/a.txt", "x")
        with pytest.raises(IngestError):
            ingestor.delete_document("farm", "../farm_evil/a.txt")
        assert other.exists()

    def test_knowledge_base(self, ingestor: Ingestor, home: Path, write: Write) -> None:
        write("farm/sub/a.txt", "text")
        write("farm/b.txt", "text")
        write("other/c.txt", "text")
        for kb in ("farm", "other"):
            ingestor.sync(kb)
        ingestor.delete_kb("farm")
        assert not (home / "inbox" / "farm").exists()
        assert ingestor.kbs() == ["default", "other"]
        with pytest.raises(StoreError, match="not indexed"):
            store_of(ingestor, "farm")
        assert sources(ingestor, "other") == {"c.txt"}

    def test_files_that_are_no_documents_stay(self, ingestor: Ingestor, home: Path, write: Write) -> None:
        write("farm/a.txt", "text")
        photo = write("farm/photo.jpg", "x")
        ingestor.delete_kb("farm")
        assert photo.exists()
        assert not (home / "inbox/farm/a.txt").exists()

    def test_default(self, ingestor: Ingestor, home: Path, write: Write) -> None:
        write("a.txt", "text")
        write("default/sub/b.txt", "text")
        other = write("farm/c.txt", "text")
        ingestor.sync("default")
        ingestor.delete_kb("default")
        assert sorted(path.name for path in (home / "inbox").iterdir()) == ["farm"]
        assert other.exists()
        assert ingestor.documents("default") == []
        assert counts(ingestor.sync("default")) == {}


class TestLocking:
    def test_writers_wait_in_turn_and_say_so(
        self, ingestor: Ingestor, home: Path, embedder: FakeEmbedder, write: Write
    ) -> None:
        write("a.txt", "text")
        events: list[Event] = []
        waiting = threading.Event()

        def tell(event: Event) -> None:
            events.append(event)
            waiting.set()

        other = open_ingestor(home, embedder)
        with ingestor.locked():
            thread = threading.Thread(target=lambda: other.sync("default", progress=tell))
            thread.start()
            assert waiting.wait(10)
            time.sleep(0.3)
            assert [event.kind for event in events] == ["wait"]
        thread.join(20)
        assert events[-1].kind == "done"

    def test_same_kb_from_many_threads(self, ingestor: Ingestor, write: Write) -> None:
        for i in range(8):
            write(f"{i}.txt", f"text number {i}")
        reports: list[Report] = []
        threads = [threading.Thread(target=lambda: reports.append(ingestor.sync("default"))) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert sorted(report.added for report in reports) == [0, 0, 0, 0, 8]
        check_consistent(ingestor, "default")


class TestNothingToDo:
    CODE = """
import sys, time
from pathlib import Path
from ingest.sync import Ingestor
from ingest.embed import Embedder
embedder = Embedder(Path({folder!r}), Path({home!r}) / "cache" / "embedder.json")
def open_store(kb, create):
    from vectorstore.store import ChromaStore, open_client
    return ChromaStore(open_client(Path({home!r}) / "index" / "chroma"), kb, embedder, embedder.identity, create)
started = time.perf_counter()
report = Ingestor(Path({home!r}) / "inbox", Path({home!r}) / "index", embedder, open_store).sync("default")
heavy = {{"torch", "transformers", "sentence_transformers", "chromadb", "numpy", "pypdf", "docx", "bs4", "tokenizers"}}
print(report.added, report.unchanged, sorted(heavy & set(sys.modules)), time.perf_counter() - started)
"""

    def test_costs_nothing(self, home: Path, write: Write, embedder_folder: Path) -> None:
        """With the real embedder: the second run loads no heavy library and takes no time."""
        for i in range(20):
            write(f"{i}.md", f"# Number {i}\n\nA llama.")
        code = self.CODE.format(folder=str(embedder_folder), home=str(home))
        said = [
            subprocess.run(
                [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
            ).stdout.split(maxsplit=2)
            for _ in range(2)
        ]
        assert said[0][:2] == ["20", "0"]
        assert said[1][:2] == ["0", "20"]
        modules, seconds = said[1][2].rsplit(maxsplit=1)
        assert modules == "[]"
        assert float(seconds) < 1.0
