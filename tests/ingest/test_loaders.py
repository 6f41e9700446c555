"""Every format read well, and every kind of broken file told in one line."""

from __future__ import annotations

import logging
import os
import random
import re
import subprocess
import sys
import threading
import time
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from ingest.errors import IngestError
from ingest.loaders import LOADERS, load
from ingest.loaders import pdf as pdf_loader
from ingest.loaders.guard import TimeUp, run_limited
from tests.ingest.fakes import make_docx, make_pdf, make_scan

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT / ".." / "shared" / "data" / "docs"


def text_of(path: Path) -> str:
    (document,) = load(path)
    return document.page_content


@pytest.fixture
def put(tmp_path: Path) -> Any:
    def write(name: str, data: bytes | str) -> Path:
        path = tmp_path / name
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return path

    return write


def refused(path: Path) -> str:
    with pytest.raises(IngestError) as error:
        load(path)
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 250
    return message


class TestEncodings:
    CHINESE = "羊驼营地欢迎您。请不要给羊驼喂面包,它们每天吃干草和苜蓿。\n夜间温度可能低于零度,请携带睡袋。\n"

    @pytest.mark.parametrize(
        "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "gb18030", "gbk"]
    )
    def test_chinese(self, put: Any, encoding: str) -> None:
        text = self.CHINESE if encoding not in ("utf-16-le", "utf-16-be") else "Camp rules\nNo bread for the llamas.\n"
        assert text_of(put("a.txt", text.encode(encoding))) == text

    @pytest.mark.parametrize(
        "text", ["羊驼", "羊驼吃什么?", "价格:每人 280 元,儿童半价。", "Llama 羊驼 is 大羊驼 too."]
    )
    def test_short_gb18030(self, put: Any, text: str) -> None:
        assert text_of(put("a.txt", text.encode("gb18030"))) == text

    @pytest.mark.parametrize(
        "text",
        [
            "können äöüß",
            "Die Alpakas möchten früh gefüttert werden.",
            "Señor Muñoz paid 15 € – “cash”",
            "L'été était très chaud",
            "Ärger, Öl, Übung",
        ],
    )
    def test_cp1252(self, put: Any, text: str) -> None:
        assert text_of(put("a.md", text.encode("cp1252"))) == text

    @pytest.mark.parametrize(
        ("encoding", "text"),
        [
            ("big5", "羊駝營地歡迎您。請不要給羊駝餵麵包,牠們每天吃乾草和苜蓿。夜間溫度可能低於零度,請攜帶睡袋。" * 3),
            ("cp1251", "Ламы едят сено и траву. Каждое утро мы кормим их в шесть часов, а потом идём в горы." * 3),
            ("cp932", "リャマは毎日干し草を食べます。夜は気温が氷点下になることがあります。" * 3),
        ],
    )
    def test_other_scripts(self, put: Any, encoding: str, text: str) -> None:
        assert text_of(put("a.txt", text.encode(encoding))) == text

    def test_declared_charset_of_html_wins(self, put: Any) -> None:
        page = '<html><head><meta charset="{}"></head><body><p>Привет, лама</p></body></html>'
        for charset in ("koi8-r", "windows-1251", "utf-8"):
            assert text_of(put("a.html", page.format(charset).encode(charset))).strip() == "Привет, лама"

    def test_newlines_and_control_characters(self, put: Any) -> None:
        assert (
            text_of(put("a.txt", b"one\r\ntwo\rthree\x0cfour \x1b[0m\xc2\xa0end")) == "one\ntwo\nthree\nfour [0m\xa0end"
        )

    def test_some_bad_bytes_in_utf8_do_not_turn_it_all_to_rubbish(self, put: Any) -> None:
        text = text_of(put("a.txt", ("羊驼吃干草。" * 200).encode() + b"\xff\xfe" + ("冬天。" * 50).encode()))
        assert text.startswith("羊驼吃干草。")
        assert text.endswith("冬天。")


class TestText:
    def test_underlined_headings(self, put: Any) -> None:
        source = "Title\n=====\n\ntext\n\nPart\n----\nmore\n\n```\nno title\n========\n```\n\nlist\nof lines\n---\n"
        expected = "# Title\n\ntext\n\n## Part\nmore\n\n```\nno title\n========\n```\n\nlist\nof lines\n---\n"
        assert text_of(put("a.md", source)) == expected
        assert text_of(put("a.txt", source)) == source

    def test_suffix_in_any_case(self, put: Any) -> None:
        assert text_of(put("A.TXT", "x")) == "x"


class TestHtml:
    def test_what_a_reader_sees(self, put: Any) -> None:
        page = """<!DOCTYPE html><html><head><title>Prices</title><style>p{}</style><script>var a=1</script></head>
        <body><nav><a href=/>Home</a></nav><h2>Day <em>treks</em></h2><p>From <b>40</b>&nbsp;€<br>a head.</p>
        <p hidden>secret one</p><div style="display: none">secret two</div><p aria-hidden="true">secret three</p>
        <ul><li>Bring water<ul><li>two litres</li></ul></li><li>and a hat</li></ul>
        <ol><li>first</li><li>second</li></ol>
        <table><tr><th>Trek</th><th>Price</th></tr><tr><td>Half | day</td><td>40 €</td></tr></table>
        <!-- a comment --><pre>code
  here</pre><template>secret four</template><noscript>secret five</noscript>
        <img src="http://127.0.0.1:9/x.png"><iframe src="http://127.0.0.1:9/"></iframe>loose text</body></html>"""
        assert text_of(put("a.html", page)) == (
            "# Prices\n\n## Day treks\n\nFrom 40 €\na head.\n\n"
            "- Bring water\n  - two litres\n- and a hat\n\n1. first\n2. second\n\n"
            "| Trek | Price |\n| --- | --- |\n| Half \\| day | 40 € |\n\n"
            "```\ncode\n  here\n```\n\nloose text\n"
        )

    def test_title_only_where_there_is_no_h1(self, put: Any) -> None:
        assert text_of(put("a.html", "<title>T</title><h1>H</h1><p>x</p>")) == "# H\n\nx\n"

    def test_spanning_cells_stand_in_each_column(self, put: Any) -> None:
        page = "<table><tr><th colspan=2>Both</th></tr><tr><td>a</td><td>b</td></tr></table>"
        assert text_of(put("a.html", page)) == "| Both | Both |\n| --- | --- |\n| a | b |\n"

    def test_layout_tables_are_read_as_text(self, put: Any) -> None:
        page = (
            "<table><tr><td><h1>A</h1><p>one</p></td><td><table><tr><td>x</td><td>y</td></tr></table></td></tr></table>"
        )
        assert text_of(put("a.html", page)) == "# A\n\none\n\n| x | y |\n| --- | --- |\n"

    def test_deep_nesting_ends(self, put: Any) -> None:
        for tag in ("div", "span", "ul><li", "table><tr><td"):
            page = f"<{tag}>" * 20000 + "deep"
            assert "deep" in text_of(put("a.html", page)) or tag != "div"

    def test_nothing_to_see(self, put: Any) -> None:
        assert "no text" in refused(put("a.html", "<html><body><script>x</script></body></html>"))


class TestPdf:
    def test_a_document_a_page(self, put: Any) -> None:
        pages = load(put("a.pdf", make_pdf(["First page", "", "Third page"])))
        assert [(page.page_content.strip(), page.metadata) for page in pages] == [
            ("First page", {"page": 1}),
            ("Third page", {"page": 3}),
        ]

    def test_encrypted(self, put: Any) -> None:
        assert "password" in refused(put("a.pdf", make_pdf(["secret"], password="pass")))

    def test_encrypted_with_an_empty_password_is_open(self, put: Any) -> None:
        assert text_of(put("a.pdf", make_pdf(["not secret"], password=""))).strip() == "not secret"

    @pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
    def test_truncated(self, put: Any, share: float) -> None:
        data = make_pdf([f"Page {number}\n" + "Llamas eat hay.\n" * 30 for number in range(30)])
        assert "damaged or cut short" in refused(put("a.pdf", data[: int(len(data) * share)]))

    def test_rubbish(self, put: Any) -> None:
        assert "damaged" in refused(put("a.pdf", b"%PDF-1.4\n" + b"\x00" * 64))
        assert "not a PDF" in refused(put("b.pdf", b"hello"))

    def test_scan(self, put: Any) -> None:
        assert refused(put("a.pdf", make_scan())) == "has no text layer (a scan?); run OCR on it first"

    def test_one_bad_page_does_not_lose_the_others(self, put: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        from pypdf import PageObject

        extract = PageObject.extract_text

        def fails_once(self: PageObject, *args: Any, **kwargs: Any) -> str:
            text = extract(self, *args, **kwargs)
            if "Two" in text:
                raise KeyError("/Font")
            return text

        monkeypatch.setattr(PageObject, "extract_text", fails_once)
        pages = load(put("a.pdf", make_pdf(["One", "Two", "Three"])))
        assert [page.metadata["page"] for page in pages] == [1, 2, 3]
        assert [page.page_content.strip() for page in pages] == ["One", "", "Three"]
        assert "/Font" in pages[1].metadata["error"]

    def test_endless_page_is_given_up(self, put: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        from pypdf import PageObject

        def endless(self: PageObject) -> str:
            while True:
                try:
                    time.sleep(0.001)
                except Exception:
                    pass

        monkeypatch.setattr(PageObject, "extract_text", endless)
        monkeypatch.setattr(pdf_loader, "PAGE_SECONDS", 0.2)
        assert "longer than" in refused(put("a.pdf", make_pdf(["x"])))

    def test_too_many_pages(self, put: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pdf_loader, "MAX_PAGES", 2)
        assert "split it" in refused(put("a.pdf", make_pdf(["a", "b", "c"])))

    def test_nothing_on_standard_error(self, put: Any) -> None:
        odd = put("a.pdf", re.sub(rb"startxref\n\d+", b"startxref\n3", make_pdf(["Text"])))
        code = "import sys\nfrom pathlib import Path\nfrom ingest.loaders import load\n"
        code += "print(load(Path(sys.argv[1]))[0].page_content)"
        done = subprocess.run(
            [sys.executable, "-c", code, str(odd)], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert (done.stdout.strip(), done.stderr) == ("Text", "")
        assert logging.getLogger("pypdf").level == logging.NOTSET


class TestDocx:
    def test_headings_lists_and_tables_in_order(self, put: Any) -> None:
        def build(word: Any) -> None:
            word.add_heading("Handbook", 0)
            word.add_paragraph("Welcome to the camp.")
            word.add_heading("Feeding", 2)
            word.add_paragraph("Hay", style="List Bullet")
            word.add_paragraph("Salt", style="List Number")
            table = word.add_table(2, 2)
            for cell, text in zip(table._cells, ["Animal", "Hay", "Llama", "2 | 3 kg"], strict=True):
                cell.text = text
            word.add_paragraph("The end.\tReally.")

        assert text_of(put("a.docx", make_docx(build))) == (
            "# Handbook\n\nWelcome to the camp.\n\n## Feeding\n\n- Hay\n- Salt\n\n"
            "| Animal | Hay |\n| --- | --- |\n| Llama | 2 \\| 3 kg |\n\nThe end.\tReally.\n"
        )

    def test_merged_cells_and_nested_tables(self, put: Any) -> None:
        def build(word: Any) -> None:
            table = word.add_table(3, 2)
            for cell, text in zip(table._cells, "abcdef", strict=True):
                cell.text = text
            table.cell(0, 0).merge(table.cell(0, 1))
            table.cell(1, 0).merge(table.cell(2, 0))
            table.cell(2, 1).add_table(1, 1).cell(0, 0).text = "inner"

        assert text_of(put("a.docx", make_docx(build))) == (
            "| a b | a b |\n| --- | --- |\n| c e | d |\n| c e | f inner |\n"
        )

    def test_tracked_changes_and_content_controls(self, put: Any) -> None:
        def build(word: Any) -> None:
            from docx.oxml import parse_xml
            from docx.oxml.ns import nsdecls

            word.element.body.insert(
                0,
                parse_xml(
                    f"<w:sdt {nsdecls('w')}><w:sdtContent><w:p><w:ins><w:r><w:t>kept</w:t></w:r></w:ins>"
                    "<w:del><w:r><w:delText>gone</w:delText></w:r></w:del></w:p></w:sdtContent></w:sdt>"
                ),
            )

        assert text_of(put("a.docx", make_docx(build))) == "kept\n"

    def test_not_a_word_file(self, put: Any) -> None:
        other = BytesIO()
        with zipfile.ZipFile(other, "w") as archive:
            archive.writestr("hello.txt", "hello")
        assert "not a Word document" in refused(put("a.docx", b"hello"))
        assert "not a Word document" in refused(put("b.docx", other.getvalue()))
        assert "encrypted" in refused(put("c.docx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\x00" * 600))
        whole = make_docx(lambda word: word.add_paragraph("x" * 100))
        assert "damaged" in refused(put("d.docx", whole[: len(whole) // 2]))

    def test_zip_bomb_is_not_unpacked(self, put: Any) -> None:
        bomb = BytesIO()
        with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("[Content_Types].xml", "<Types/>")
            archive.writestr("word/document.xml", b"\x00" * (100 << 20))
        started = time.perf_counter()
        assert "zip bomb" in refused(put("a.docx", bomb.getvalue()))
        assert time.perf_counter() - started < 0.5

    def test_entities_are_not_expanded(self, put: Any, tmp_path: Path) -> None:
        secret = put("secret.txt", "the secret")
        whole = BytesIO(make_docx(lambda word: word.add_paragraph("MARK")))
        out = BytesIO()
        with zipfile.ZipFile(whole) as old, zipfile.ZipFile(out, "w") as new:
            for name in old.namelist():
                data = old.read(name)
                if name == "word/document.xml":
                    doctype = f'<!DOCTYPE x [<!ENTITY e SYSTEM "file://{secret}">]>'.encode()
                    head, body = data.split(b"?>", 1)
                    data = head + b"?>" + doctype + body.replace(b"MARK", b"start &e; end")
                new.writestr(name, data)
        try:
            assert "the secret" not in text_of(put("a.docx", out.getvalue()))
        except IngestError:
            pass  # refusing it is as good


class TestBadFiles:
    @pytest.mark.parametrize("suffix", sorted(LOADERS))
    def test_empty(self, put: Any, suffix: str) -> None:
        assert refused(put(f"a{suffix}", b"")) == "is empty"

    def test_white_space_only(self, put: Any) -> None:
        assert "empty" in refused(put("a.txt", " \n\t\n"))

    @pytest.mark.parametrize("suffix", sorted(LOADERS))
    def test_random_bytes(self, put: Any, suffix: str) -> None:
        refused(put(f"a{suffix}", random.Random(1).randbytes(20000)))

    def test_binary_named_txt(self, put: Any) -> None:
        assert "not text" in refused(put("a.txt", b"\x7fELF\x02\x01\x01" + b"\x00" * 500 + bytes(range(256)) * 20))
        assert "not text" in refused(put("b.txt", make_pdf(["x"] * 5)[9:] + bytes(range(256)) * 50))

    def test_unknown_type(self, put: Any) -> None:
        assert ".docx, .htm" in refused(put("a.exe", b"x"))

    def test_gone(self, tmp_path: Path) -> None:
        assert "cannot be read: No such file" in refused(tmp_path / "a.txt")

    @pytest.mark.skipif(os.geteuid() != 0, reason="as root only, which can become someone else")
    def test_without_permission(self, tmp_path_factory: pytest.TempPathFactory, put: Any) -> None:
        """Root may read anything, so another user must try."""
        path = put("a.txt", "x")
        path.chmod(0)
        for parent in path.parents:
            if parent.is_relative_to(tmp_path_factory.getbasetemp().parent):
                parent.chmod(0o755)
        code = "import os, sys\nfrom pathlib import Path\nfrom ingest.loaders import load\nos.setuid(65534)\n"
        code += "try:\n    load(Path(sys.argv[1]))\nexcept Exception as e:\n    print(e)"
        command = [sys.executable, "-c", code, str(path)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.stdout.strip() == "cannot be read: Permission denied"


class TestTimeLimit:
    def test_ends_a_loop_that_swallows_exceptions(self) -> None:
        started = time.perf_counter()
        with pytest.raises(TimeUp):
            run_limited(0.2, stubborn)
        assert time.perf_counter() - started < 5

    def test_leaves_nothing_behind(self) -> None:
        """A limit that runs out just as the work ends must not strike later."""
        for number in range(200):
            try:
                assert run_limited(0.001, lambda: 7) == 7
                run_limited(0.001, lambda: sum(range(50 * number)))  # noqa: B023
            except TimeUp:
                pass
        time.sleep(1.2)
        assert not [thread for thread in threading.enumerate() if thread.name == "time-limit"]

    def test_does_not_slow_the_interpreter(self) -> None:
        """PyThreadState_SetAsyncExc(None) does, in CPython 3.11; under a profiler it even hangs."""
        code = "import cProfile\nfrom ingest.loaders.guard import run_limited\nrun_limited(5, int)\n"
        code += "cProfile.run('[abs(i) for i in range(10)]')"
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=30, check=True)

    def test_works_beside_the_main_thread(self) -> None:
        seen: list[bool] = []

        def loop() -> None:
            try:
                run_limited(0.1, stubborn)
            except TimeUp:
                seen.append(True)

        thread = threading.Thread(target=loop)
        thread.start()
        thread.join(5)
        assert seen == [True]


def stubborn() -> None:
    while True:
        try:
            sum(range(1000))
        except Exception:
            pass


@pytest.mark.skipif(not REAL.is_dir(), reason="the collection of real documents is not beside the repository")
def test_real_documents() -> None:
    """Each is read, or refused for the reason that it was made for."""
    expected = {
        "empty.txt": "is empty",
        "loremipsum-flat.pdf": "no text layer",
        "password.pdf": "password",
    }
    found = sorted(path for path in REAL.rglob("*") if path.suffix.lower() in LOADERS)
    assert found
    for path in found:
        if path.name in expected:
            assert expected[path.name] in refused(path)
        else:
            assert sum(len(document.page_content) for document in load(path)) > 20, path
