"""The sample inbox and the questions on it: built from their sources, complete, and true to the documents."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ingest.loaders import load

ROOT = Path(__file__).resolve().parent.parent
INBOX = ROOT / "data" / "inbox"
SOURCES = ROOT / "data" / "inbox-src"
QUESTIONS = [
    json.loads(line) for line in (ROOT / "data" / "eval" / "sample.jsonl").read_text(encoding="utf-8").splitlines()
]
ANSWERABLE = [question for question in QUESTIONS if question["answerable"]]
# The questions name these. Only they are looked at, because a person's own documents may lie in the inbox beside them.
DOCUMENTS = sorted({question["source"] for question in ANSWERABLE})
CHINESE = re.compile(r"[\u4e00-\u9fff]")


@pytest.fixture(scope="module")
def builder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_samples", ROOT / "scripts" / "build_samples.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up by name while it runs
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
    return module


def plain(text: str) -> str:
    return " ".join(text.split()).casefold()


@cache
def pages(source: str) -> dict[int | None, str]:
    """The text of each page; formats without pages have one, under None."""
    text: dict[int | None, str] = {}
    for document in load(INBOX / source):
        page = document.metadata.get("page")
        text[page] = plain(f"{text.get(page, '')} {document.page_content}")
    return text


def missing_answers(question: dict[str, Any]) -> list[str]:
    text = pages(question["source"]).get(question["page"], "")
    return [answer for answer in question["answers"] if plain(answer) not in text]


def test_built_files_are_those_in_the_inbox(builder: ModuleType, tmp_path: Path) -> None:
    built = builder.build_all(tmp_path)
    assert {path.name for path in built} == {path.stem for path in SOURCES.glob("*.md")}
    for path in built:
        assert path.read_bytes() == (INBOX / path.name).read_bytes(), f"{path.name}: run scripts/build_samples.py"


def test_builder_refuses_a_source_without_head(builder: ModuleType, tmp_path: Path) -> None:
    source = tmp_path / "note.pdf.md"
    source.write_text("# Note\n", encoding="utf-8")
    with pytest.raises(ValueError, match="must begin with"):
        builder.read_source(source)


def test_every_format_is_there() -> None:
    assert len(DOCUMENTS) >= 14
    assert {Path(name).suffix for name in DOCUMENTS} == {".md", ".txt", ".html", ".pdf", ".docx"}
    assert max(len(pages(name)) for name in DOCUMENTS if name.endswith(".pdf")) >= 10
    assert sum(len(CHINESE.findall("".join(pages(name).values()))) > 500 for name in DOCUMENTS) >= 3


def test_rows_of_pdf_tables_stay_on_one_line() -> None:
    text = "\n".join(document.page_content for document in load(INBOX / "operations-handbook.pdf"))
    row = r"^\W*Sable Hut\W+2,340 m\W+14 beds\W+rain tank, boil it\W+Condor Ridge\W*$"
    assert re.search(row, text, re.MULTILINE)


def test_number_and_form_of_questions() -> None:
    assert len({question["id"] for question in QUESTIONS}) == len(QUESTIONS)
    assert len({question["question"] for question in QUESTIONS}) == len(QUESTIONS)
    assert len(ANSWERABLE) >= 64
    assert sum(question["lang"] == "zh" for question in ANSWERABLE) >= len(ANSWERABLE) / 5
    assert len(QUESTIONS) - len(ANSWERABLE) == 15
    for question in QUESTIONS:
        assert set(question) == {"id", "question", "answers", "source", "page", "answerable", "lang"}
        assert question["lang"] == ("zh" if CHINESE.search(question["question"]) else "en"), question["id"]
        if question["answerable"]:
            assert question["answers"], question["id"]
            assert (question["page"] is not None) == question["source"].endswith(".pdf"), question["id"]
        else:
            assert (question["answers"], question["source"], question["page"]) == ([], None, None), question["id"]


def test_gold_answers_stand_in_their_source() -> None:
    missing = {question["id"]: gone for question in ANSWERABLE if (gone := missing_answers(question))}
    assert not missing


def test_gold_answers_are_short() -> None:
    long = [question["id"] for question in ANSWERABLE for answer in question["answers"] if len(answer.split()) > 8]
    assert not long
