"""The keyword index: what is found, what others see of a writer, and what a kill leaves."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vectorstore import analyze, keyword
from vectorstore.errors import StoreError
from vectorstore.keyword import KeywordIndex

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return keyword.folder_of(tmp_path / "keyword", "农场")


@pytest.fixture
def index(folder: Path) -> KeywordIndex:
    made = KeywordIndex(folder, create=True)
    made.put("a", [("a-0", "Llamas eat hay and the hay is dry."), ("a-1", "The gate has the code RS-232C.")])
    made.put("b", [("b-0", "臺灣的電腦軟體"), ("b-1", "The vet comes on Mondays.")])
    made.commit()
    return made


def ids(index: KeywordIndex, question: str, k: int = 10) -> list[str]:
    return [hit.chunk_id for hit in index.search(index.analyse(question), k)]


def test_finds(index: KeywordIndex) -> None:
    assert ids(index, "what do llamas eat?")[0] == "a-0"
    assert ids(index, "rs232c") == ["a-1"]
    assert ids(index, "台湾软体") == ["b-0"]
    assert ids(index, "the", k=1) == ids(index, "the")[:1]
    assert {hit.doc_id for hit in index.search(index.analyse("hay"), 5)} == {"a"}


@pytest.mark.parametrize(
    "question", ["", "?!", "zebra", "'); DROP TABLE x", "terms:hay AND", "doc_id:a", '"hay', "*", "["]
)
def test_odd_questions(index: KeywordIndex, question: str) -> None:
    """Nothing of a question is an instruction: it finds its words or nothing."""
    assert set(ids(index, question)) <= ({"a-0"} if "hay" in question else {"a-0", "a-1"})


def test_a_question_of_stop_words_finds_something(index: KeywordIndex) -> None:
    assert set(ids(index, "the and is")) == {"a-0", "a-1", "b-1"}


def test_a_long_question(index: KeywordIndex) -> None:
    words = " ".join(f"{chr(97 + i % 26)}q{chr(97 + i // 26 % 26)}" for i in range(50_000))
    assert ids(index, f"{words} hay") == ["a-0"]


def test_scores_are_shares_and_agree_with_the_search(index: KeywordIndex) -> None:
    terms = index.analyse("the code of the gate and the hay")
    hits = index.search(terms, 10)
    assert all(0 < hit.score <= 1 for hit in hits)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    found = index.scores(terms, ["a-0", "a-1", "b-0", "nobody"])
    assert found == pytest.approx(
        {**{hit.chunk_id: hit.score for hit in hits if hit.doc_id == "a"}, "b-0": 0, "nobody": 0}
    )


def test_of_a_long_question_the_rarest_terms_are_taken(index: KeywordIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyword, "MOST_TERMS", 2)
    taken = index.analyse("the vet comes to the gate and the hay")
    assert len(taken.names) == 2
    assert "the" not in taken.names, "it stands in most chunks"


def test_what_is_known_of_a_question(index: KeywordIndex) -> None:
    assert index.analyse("hay").known == 1.0
    assert index.analyse("zebra").known == 0.0
    assert 0.0 < index.analyse("zebra hay").known < 1.0
    assert index.analyse("?").known == 0.0


def test_put_replaces_and_delete_removes(index: KeywordIndex) -> None:
    index.put("a", [("a-0", "Now they eat grass.")])
    index.delete("b")
    index.commit()
    assert index.count() == 1
    assert ids(index, "hay") == []
    assert ids(index, "grass") == ["a-0"]


def test_readers_see_commits_and_nothing_else(index: KeywordIndex, folder: Path) -> None:
    reader = KeywordIndex(folder)
    index.put("c", [("c-0", "A new fence.")])
    assert reader.count() == 4
    index.commit()
    assert ids(reader, "fence") == ["c-0"]
    index.put("d", [("d-0", "Never committed fence.")])
    index.close()
    assert ids(reader, "fence") == ["c-0"]
    assert ids(KeywordIndex(folder), "fence") == ["c-0"]


def test_a_reader_follows_an_index_that_is_made_anew(index: KeywordIndex, folder: Path) -> None:
    reader = KeywordIndex(folder)
    before = index.id
    index.close()
    again = KeywordIndex(folder, create=True)
    again.put("n", [("n-0", "hay again")])
    again.commit()
    assert again.id != before
    assert ids(reader, "hay") == ["n-0"]


def test_dropped(index: KeywordIndex, folder: Path) -> None:
    index.close()
    assert keyword.size_of(folder) > 0
    keyword.drop(folder)
    keyword.drop(folder)
    assert keyword.size_of(folder) == 0
    assert keyword.read_id(folder) is None
    with pytest.raises(StoreError, match="there is no keyword index"):
        KeywordIndex(folder)


def test_terms_of_another_version_are_no_index(
    index: KeywordIndex, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(analyze, "VERSION", analyze.VERSION + 1)
    assert keyword.read_id(folder) is None


def test_damaged(index: KeywordIndex, folder: Path) -> None:
    index.close()
    (folder / keyword.META).write_bytes(random.Random(0).randbytes(300))
    with pytest.raises(StoreError, match=r"cannot be used .*remove this folder and run `paddock ingest`"):
        KeywordIndex(folder)


def test_one_writer(index: KeywordIndex, folder: Path) -> None:
    with pytest.raises(StoreError, match="cannot be used"):
        KeywordIndex(folder).put("z", [])


WRITE = """
import sys
from pathlib import Path
from vectorstore.keyword import KeywordIndex
index = KeywordIndex(Path(sys.argv[1]))
for i in range(100000):
    index.put("w", [(f"w-{j}", f"turn{i} llama") for j in range(50)])
    index.commit()
    print(i, flush=True)
"""


def test_killed_while_writing(index: KeywordIndex, folder: Path) -> None:
    """A reader in another process sees whole commits all the time, and the next writer goes on."""
    index.close()
    reader = KeywordIndex(folder)
    with subprocess.Popen([sys.executable, "-c", WRITE, str(folder)], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for _ in range(20):
            process.stdout.readline()
            found = reader.search(reader.analyse("llama"), 100)
            assert sum(hit.doc_id == "w" for hit in found) == 50
        process.send_signal(signal.SIGKILL)
    again = KeywordIndex(folder)
    assert again.count() == 54
    again.put("w", [("w-0", "after the kill")])
    again.commit()
    assert ids(reader, "kill") == ["w-0"]
