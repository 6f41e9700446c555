"""How files get into the inbox: uploads and imports, safely."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from ingest.errors import IngestError
from ingest.inbox import check_kb_name, is_document
from ingest.sync import Ingestor
from tests.ingest.test_sync import counts, sources

Write = Callable[[str, str], Path]

NASTY = [
    *("../a", "..", ".", "", " ", "a/b", "/abs", "a\\b", "..\\a", "C:\\a", "a\x00b", "a\nb", "%2e%2e%2fa", "..%2fa"),
    *("%2e%2e", "CON", "nul", "com1.x", "LPT9", ".hidden", "~$a", " a", "a ", "a.", "x" * 300, "a:b", "a*b", "\udce9"),
]


class TestNames:
    @pytest.mark.parametrize("name", NASTY)
    def test_nasty_names_are_refused(self, ingestor: Ingestor, home: Path, name: str) -> None:
        with pytest.raises(IngestError) as error:
            check_kb_name(name)
        assert "\n" not in str(error.value)
        assert "\x00" not in str(error.value)
        with pytest.raises(IngestError):
            ingestor.save_upload(name, "a.txt", b"x")
        with pytest.raises(IngestError):
            ingestor.save_upload(
                "farm", name + "/../.txt" if name == "" else f"{name}.txt\x00" if name == " " else name, b"x"
            )
        assert [path for path in home.rglob("*") if path.is_file() and path.suffix in ("", ".txt")] == []

    @pytest.mark.parametrize("name", ["farm", "游客 指南", "v1.2", "50% off", "console", "a-b_c"])
    def test_good_names(self, name: str) -> None:
        assert check_kb_name(name) == name

    @pytest.mark.parametrize(
        "name",
        [
            "../a.txt",
            "..\\a.txt",
            "/a.txt",
            "%2e%2e%2fa.txt",
            "a\x00.txt",
            "con.txt",
            ".a.txt",
            "~$a.docx",
            "a.exe",
            "a",
        ],
    )
    def test_uploads(self, ingestor: Ingestor, home: Path, name: str) -> None:
        with pytest.raises(IngestError):
            ingestor.save_upload("farm", name, b"x")
        assert not list((home / "inbox").rglob("*a*"))

    def test_documents(self) -> None:
        assert [
            name
            for name in ("a.txt", "B.PDF", ".a.txt", "~$a.docx", "a.tmp", "a.txt.part", "a.jpg")
            if is_document(name)
        ] == [
            "a.txt",
            "B.PDF",
        ]


class TestUpload:
    def test_saved_and_indexed(self, ingestor: Ingestor, home: Path) -> None:
        assert ingestor.save_upload("farm", "羊驼.txt", "吃干草".encode()) == "羊驼.txt"
        assert ingestor.save_upload("default", "top.txt", b"top") == "top.txt"
        assert (home / "inbox/farm/羊驼.txt").read_text() == "吃干草"
        assert (home / "inbox/top.txt").read_text() == "top"
        assert counts(ingestor.sync("farm")) == {"added": 1}
        assert sources(ingestor, "farm") == {"羊驼.txt"}

    def test_same_again_is_fine_and_another_is_refused(self, ingestor: Ingestor, home: Path) -> None:
        for _ in range(2):
            ingestor.save_upload("farm", "a.txt", b"one")
        with pytest.raises(IngestError, match=r"already has another 'a\.txt'"):
            ingestor.save_upload("farm", "a.txt", b"two")
        assert (home / "inbox/farm/a.txt").read_bytes() == b"one"
        assert [path.name for path in (home / "inbox/farm").iterdir()] == ["a.txt"], "no temporary files stay"

    def test_too_large(self, ingestor: Ingestor) -> None:
        with pytest.raises(IngestError, match="larger than 1 MB"):
            ingestor.save_upload("farm", "a.txt", b"x" * ((1 << 20) + 1))

    def test_same_name_at_once(self, ingestor: Ingestor, home: Path) -> None:
        outcomes: list[bytes | None] = []
        barrier = threading.Barrier(8)

        def upload(data: bytes) -> None:
            barrier.wait()
            try:
                ingestor.save_upload("farm", "a.txt", data)
                outcomes.append(data)
            except IngestError:
                outcomes.append(None)

        threads = [threading.Thread(target=upload, args=(bytes([65 + i]) * 100_000,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (winner,) = [data for data in outcomes if data is not None]
        assert (home / "inbox/farm/a.txt").read_bytes() == winner

    def test_without_hard_links(self, ingestor: Ingestor, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*args: object) -> None:
            raise PermissionError

        monkeypatch.setattr(os, "link", refuse)
        ingestor.save_upload("farm", "a.txt", b"one")
        with pytest.raises(IngestError):
            ingestor.save_upload("farm", "a.txt", b"two")
        assert (home / "inbox/farm/a.txt").read_bytes() == b"one"

    def test_folder_that_is_a_link(self, ingestor: Ingestor, home: Path, tmp_path: Path) -> None:
        outside = tmp_path / "outside"
        outside.mkdir()
        (home / "inbox" / "farm").symlink_to(outside)
        with pytest.raises(IngestError, match="link out of the inbox"):
            ingestor.save_upload("farm", "a.txt", b"x")
        assert list(outside.iterdir()) == []

    def test_file_that_is_a_link(self, ingestor: Ingestor, home: Path, tmp_path: Path) -> None:
        secret = tmp_path / "secret.txt"
        secret.write_text("secret")
        (home / "inbox" / "a.txt").symlink_to(secret)
        with pytest.raises(IngestError):
            ingestor.save_upload("default", "a.txt", b"secret")
        assert secret.read_text() == "secret"


class TestImport:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        """A folder outside the inbox, laid out as one."""
        root = tmp_path / "docs"
        for name in ("top.txt", "farm/a.txt", "farm/sub/b.md", "default/c.txt", "photo.jpg", ".hidden/x.txt"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(f"original {name}")
        return root

    def test_layout_of_the_inbox(self, ingestor: Ingestor, home: Path, root: Path) -> None:
        assert ingestor.import_paths([root]) == ({"default", "farm"}, [])
        found = {path.relative_to(home / "inbox").as_posix() for path in (home / "inbox").rglob("*") if path.is_file()}
        assert found == {"top.txt", "farm/a.txt", "farm/sub/b.md", "default/c.txt"}
        assert counts(ingestor.sync("farm")) == {"added": 2}

    def test_into_one_knowledge_base(self, ingestor: Ingestor, home: Path, root: Path) -> None:
        assert ingestor.import_paths([root], "all") == ({"all"}, [])
        ingestor.sync("all")
        assert sources(ingestor, "all") == {"top.txt", "farm/a.txt", "farm/sub/b.md", "default/c.txt"}
        assert ingestor.import_paths([root / "farm"], "default") == ({"default"}, [])
        ingestor.sync("default")
        assert sources(ingestor, "default") == {"default/a.txt", "default/sub/b.md"}
        assert ingestor.kbs() == ["all", "default"]

    def test_single_files(self, ingestor: Ingestor, home: Path, root: Path) -> None:
        assert ingestor.import_paths([root / "farm/a.txt"]) == ({"default"}, [])
        assert ingestor.import_paths([root / "farm/a.txt"], "k") == ({"k"}, [])
        assert (home / "inbox/a.txt").exists()
        assert (home / "inbox/k/a.txt").exists()
        touched, failures = ingestor.import_paths([root / "photo.jpg", root / "nowhere.txt"])
        assert touched == set()
        assert [failure.source for failure in failures] == [str(root / "photo.jpg"), str(root / "nowhere.txt")]

    def test_again_brings_the_copies_up_to_date(self, ingestor: Ingestor, home: Path, root: Path) -> None:
        ingestor.import_paths([root])
        copy = home / "inbox/farm/a.txt"
        before = copy.stat().st_mtime_ns
        ingestor.import_paths([root])
        assert copy.stat().st_mtime_ns == before == (root / "farm/a.txt").stat().st_mtime_ns
        (root / "farm/a.txt").write_text("new version")
        (root / "farm/sub/b.md").unlink()
        (root / "farm/d.txt").write_text("one more")
        assert ingestor.import_paths([root]) == ({"default", "farm"}, [])
        assert copy.read_text() == "new version"
        assert not (home / "inbox/farm/sub/b.md").exists()
        assert (home / "inbox/farm/d.txt").exists()
        assert (home / "inbox/top.txt").exists()

    def test_nothing_of_the_users_is_overwritten(
        self, ingestor: Ingestor, home: Path, root: Path, write: Write
    ) -> None:
        mine = write("farm/a.txt", "my own")
        _, failures = ingestor.import_paths([root])
        assert mine.read_text() == "my own"
        assert [failure.source for failure in failures] == [str(root / "farm/a.txt")]
        assert "nothing overwritten" in failures[0].error
        (root / "farm/a.txt").unlink()
        ingestor.import_paths([root])
        assert mine.read_text() == "my own", "it did not come from there, so it does not go with the original"

    def test_the_same_file_of_the_users_stays_theirs(self, ingestor: Ingestor, root: Path, write: Write) -> None:
        mine = write("farm/a.txt", "original farm/a.txt")
        assert ingestor.import_paths([root])[1] == []
        (root / "farm/a.txt").unlink()
        ingestor.import_paths([root])
        assert mine.exists()

    def test_edited_copies(self, ingestor: Ingestor, home: Path, root: Path) -> None:
        ingestor.import_paths([root])
        edited, both, gone = (home / "inbox" / name for name in ("farm/a.txt", "top.txt", "farm/sub/b.md"))
        for path in (edited, both, gone):
            path.write_text("edited here")
        (root / "top.txt").write_text("changed there")
        (root / "farm/sub/b.md").unlink()
        _, failures = ingestor.import_paths([root])
        assert [failure.source for failure in failures] == [str(root / "top.txt")]
        assert {path.read_text() for path in (edited, both, gone)} == {"edited here"}

    def test_a_root_that_is_gone_deletes_nothing(self, ingestor: Ingestor, home: Path, root: Path) -> None:
        ingestor.import_paths([root])
        root.rename(root.with_name("unmounted"))
        _, failures = ingestor.import_paths([root])
        assert [failure.error for failure in failures] == ["no such file or folder"]
        assert (home / "inbox/farm/a.txt").exists()

    def test_a_copy_deleted_in_the_inbox_comes_back(self, ingestor: Ingestor, home: Path, root: Path) -> None:
        ingestor.import_paths([root])
        (home / "inbox/farm/a.txt").unlink()
        ingestor.import_paths([root])
        assert (home / "inbox/farm/a.txt").exists()

    def test_deleting_a_knowledge_base_forgets_where_it_came_from(
        self, ingestor: Ingestor, home: Path, root: Path
    ) -> None:
        ingestor.import_paths([root], "farm")
        ingestor.delete_kb("farm")
        assert ingestor.manifest.imports(str(root)) == {}

    def test_links_and_large_files(self, ingestor: Ingestor, home: Path, root: Path, tmp_path: Path) -> None:
        (tmp_path / "secret.txt").write_text("secret")
        (root / "link.txt").symlink_to(tmp_path / "secret.txt")
        (root / "loop").symlink_to(root)
        (root / "big.txt").write_bytes(b"x" * (2 << 20))
        _, failures = ingestor.import_paths([root])
        assert [failure.source for failure in failures] == [str(root / "big.txt")]
        assert not (home / "inbox/link.txt").exists()
        assert not (home / "inbox/loop").exists()

    def test_paths_inside_the_inbox_are_there_already(self, ingestor: Ingestor, home: Path, write: Write) -> None:
        path = write("farm/a.txt", "x")
        write("b.txt", "x")
        assert ingestor.import_paths([path]) == ({"farm"}, [])
        assert ingestor.import_paths([path.parent]) == ({"farm"}, [])
        assert ingestor.import_paths([home / "inbox" / "b.txt"]) == ({"default"}, [])
        assert ingestor.import_paths([home / "inbox"]) == ({"default", "farm"}, [])

    def test_a_folder_that_holds_the_inbox(self, ingestor: Ingestor, home: Path, write: Write) -> None:
        write("a.txt", "x")
        _, failures = ingestor.import_paths([home])
        assert "holds the inbox itself" in failures[0].error

    def test_nasty_subfolders_and_kb_names(self, ingestor: Ingestor, root: Path) -> None:
        (root / "con").mkdir()
        (root / "con" / "a.txt").write_text("x")
        _, failures = ingestor.import_paths([root])
        assert [failure.source for failure in failures] == [str(root / "con" / "a.txt")]
        with pytest.raises(IngestError):
            ingestor.import_paths([root], "../x")
