"""Filters: what they may say, and which documents of the manifest they let through."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ingest.errors import IngestError
from ingest.filter import Filter
from ingest.manifest import FileRow, Manifest, joined

DOCUMENTS = {  # source: (day of its modification, languages)
    "Handbook.PDF": ("2026-03-01", ["en"]),
    "2026/march/notes.md": ("2026-03-31", ["en", "zh"]),
    "2026/四月.txt": ("2026-04-01", ["zh"]),
    "old/Ünï [1].md": ("1969-12-30", ["de"]),
    "100%_sure.txt": ("2026-03-15", ["und"]),
}


def nanoseconds(day: str, hour: int = 12) -> int:
    return int(datetime.datetime.fromisoformat(f"{day}T{hour:02d}:00").timestamp()) * 10**9


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    made = Manifest(tmp_path / "manifest.sqlite")
    for number, (source, (day, languages)) in enumerate(DOCUMENTS.items()):
        made.put_file(row("farm", source, nanoseconds(day), f"doc{number}", languages))
    made.put_file(row("other", "Handbook.pdf", nanoseconds("2026-03-31"), "doc9", ["en", "zh"]))
    return made


def row(kb: str, source: str, mtime_ns: int, doc_id: str, languages: list[str]) -> FileRow:
    return FileRow(
        *(kb, source, 1, mtime_ns, 0, "s", doc_id, 10, None, "indexed", None, "", "", 0.0), joined(languages)
    )


def found(manifest: Manifest, **values: Any) -> set[str]:
    ids = manifest.doc_ids("farm", Filter.of(values))
    return {source for number, source in enumerate(DOCUMENTS) if f"doc{number}" in ids}


ALL = set(DOCUMENTS)


@pytest.mark.parametrize(
    ("values", "sources"),
    [
        ({}, ALL),
        ({"source": "handbook.pdf"}, {"Handbook.PDF"}),
        ({"source": "*.MD"}, {"2026/march/notes.md", "old/Ünï [1].md"}),
        ({"source": "2026/*"}, {"2026/march/notes.md", "2026/四月.txt"}),
        ({"source": "notes.md"}, {"2026/march/notes.md"}),
        ({"source": "四?.txt"}, {"2026/四月.txt"}),
        ({"source": ["notes.md", "hand*"]}, {"Handbook.PDF", "2026/march/notes.md"}),
        ({"source": "old/Ünï [[]1].md"}, {"old/Ünï [1].md"}),
        ({"source": "*[!d].md"}, {"2026/march/notes.md", "old/Ünï [1].md"}),
        ({"source": "[!h2o1四]*"}, {"2026/march/notes.md", "old/Ünï [1].md"}),
        ({"source": "100%_sure.txt"}, {"100%_sure.txt"}),
        ({"source": "100%"}, set()),
        ({"type": "pdf"}, {"Handbook.PDF"}),
        ({"type": [".md", "*.txt"]}, ALL - {"Handbook.PDF"}),
        ({"after": "2026-03-31"}, {"2026/march/notes.md", "2026/四月.txt"}),
        ({"before": "2026-03-31"}, {"Handbook.PDF", "old/Ünï [1].md", "100%_sure.txt"}),
        ({"after": "2026-03-01", "before": "2026-03-16"}, {"Handbook.PDF", "100%_sure.txt"}),
        ({"before": "1970-01-01"}, {"old/Ünï [1].md"}),
        ({"after": "0001-01-02"}, ALL),
        ({"before": "9999-12-31"}, ALL),
        ({"language": "zh"}, {"2026/march/notes.md", "2026/四月.txt"}),
        ({"language": "zh-TW"}, {"2026/march/notes.md", "2026/四月.txt"}),
        ({"language": ["EN", "de"]}, {"Handbook.PDF", "2026/march/notes.md", "old/Ünï [1].md"}),
        ({"language": "en", "type": "md", "source": "2026/*"}, {"2026/march/notes.md"}),
        ({"language": "en", "type": "txt"}, set()),
        ({"source": "ÜNÏ*"}, {"old/Ünï [1].md"}),
        ({"source": "U\u0308NI\u0308 *"}, {"old/Ünï [1].md"}),  # as macOS writes it
        ({"source": "[xü]NÏ*"}, {"old/Ünï [1].md"}),
        ({"source": "ünï [1].md"}, {"old/Ünï [1].md"}),
        ({"source": "*[1].md"}, {"old/Ünï [1].md"}),
        ({"source": "./2026/*"}, {"2026/march/notes.md", "2026/四月.txt"}),
        ({"source": "/2026/*"}, {"2026/march/notes.md", "2026/四月.txt"}),
        ({"source": ".\\2026\\March\\*"}, {"2026/march/notes.md"}),
        ({"source": "march/"}, {"2026/march/notes.md"}),
        ({"source": "/march/"}, set()),
        ({"source": "./notes.md"}, set()),
        ({"source": "./"}, ALL),
        ({"source": ["**/notes.md", "/**/handbook.pdf"]}, {"2026/march/notes.md", "Handbook.PDF"}),
        ({"source": "' OR 1=1 --"}, set()),
        ({"source": '{"$ne": ""}'}, set()),
    ],
)
def test_what_is_let_through(manifest: Manifest, values: dict[str, Any], sources: set[str]) -> None:
    assert found(manifest, **values) == sources
    only = Filter.of(values)
    assert manifest.amount("farm", only) == (len(sources), 10 * len(sources))
    ids = [f"doc{number}" for number in range(len(DOCUMENTS))]
    assert manifest.known_docs("farm", ids, manifest.version(), only) == manifest.doc_ids("farm", only)


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"colour": "red"}, "a filter has no 'colour'; it has: source, type, after, before, language"),
        ({"type": "exe"}, "there are no documents of type 'exe'; the types are: docx, htm, html, md, pdf, txt"),
        ({"type": "pdf' OR '1'='1"}, "there are no documents of type"),
        ({"after": "yesterday"}, "the filter's after is 'yesterday' and not a day; write it as 2026-12-31"),
        ({"before": "2026-02-30"}, "not a day"),
        ({"before": 20260230}, "not a day"),
        ({"after": "2026-05-01", "before": "2026-05-01"}, "no day is after 2026-05-01 and before 2026-05-01"),
        ({"language": "klingon"}, "'klingon' is no code of a language; write en for English, zh for Chinese"),
        ({"language": "en' --"}, "no code of a language"),
        ({"language": {"$ne": "en"}}, "the filter's language is neither text nor a list of texts"),
        ({"source": ["a", 7]}, "neither text nor a list"),
        ({"source": "*a" * 9}, "no pattern of a file name"),
        ({"source": "x" * 501}, "no pattern of a file name"),
        ({"source": "a\x00b"}, "no pattern of a file name"),
    ],
)
def test_what_cannot_be_meant(values: dict[str, Any], error: str) -> None:
    with pytest.raises(IngestError) as raised:
        Filter.of(values)
    assert error in str(raised.value)
    assert "\n" not in str(raised.value)


def test_in_words_and_as_nothing() -> None:
    assert not Filter.of({"source": " ", "type": [], "after": "", "before": None, "language": None})
    made = Filter.of({"source": ["a", "b"], "after": datetime.date(2026, 1, 2), "language": "EN"})
    assert made
    assert str(made) == "source a or b, after 2026-01-02, language en"


class TestLanguages:
    """The manifest's notes of languages, made at ingest and for documents from before."""

    def test_of_documents(self, ingestor: Any, write: Callable[[str, str], Path]) -> None:
        write("farm/en.md", "The llamas are led back to the paddock in the evening, and the gate is closed.\n")
        write("farm/zh.md", "晚上把羊驼带回围场，然后关上大门。\n")
        ingestor.sync("farm")
        assert ingestor.manifest.languages("farm") == ["en", "zh"]
        (zh,) = ingestor.manifest.doc_ids("farm", Filter(language=("zh",)))
        assert ingestor.manifest.source_of("farm", zh) == "zh.md"

    def test_are_found_later_without_embedding_anew(
        self, ingestor: Any, embedder: Any, write: Callable[[str, str], Path]
    ) -> None:
        write("farm/zh.md", "晚上把羊驼带回围场，然后关上大门。\n")
        ingestor.sync("farm")
        manifest = ingestor.manifest
        manifest._do("UPDATE files SET languages = ''")
        assert len(manifest.without_languages("farm")) == 1
        before = len(embedder.embedded)
        assert ingestor.sync("farm").unchanged == 1
        assert manifest.languages("farm") == ["zh"]
        assert len(embedder.embedded) == before

    def test_are_kept_when_a_file_is_touched_or_renamed(self, ingestor: Any, write: Callable[[str, str], Path]) -> None:
        path = write("farm/zh.md", "晚上把羊驼带回围场，然后关上大门。\n")
        ingestor.sync("farm")
        path.rename(path.with_name("new.md"))
        ingestor.sync("farm")
        assert found_sources(ingestor, language="zh") == {"new.md"}
        path = path.with_name("new.md")
        path.write_text(path.read_text("utf-8"), "utf-8")
        os.utime(path, (1e9, 1e9))
        ingestor.sync("farm")
        assert found_sources(ingestor, language="zh", before="2002-01-01") == {"new.md"}


def found_sources(ingestor: Any, **values: Any) -> set[str]:
    ids = ingestor.manifest.doc_ids("farm", Filter.of(values))
    return {ingestor.manifest.source_of("farm", each) for each in ids}
