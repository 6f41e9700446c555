"""Questions out of a knowledge base: what each filter drops, and a line for what is kept."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document

from app import make_data
from app.answer import Question
from app.errors import AppError
from app.result import Answer, Timings

PASSAGE = "The key box of Sable Hut is opened with the code 4471. It hangs behind the door of the hut."


class Row:
    doc_id = "d"


class Fakes:
    """Services whose model says what a test wants: `given` with the passage at hand, `found` after retrieval."""

    def __init__(self, given: Answer | Exception, found: Answer | Exception, passage: str = PASSAGE) -> None:
        self.answers, self.passage = (given, found), passage
        self.settings = type("S", (), {"k": 4})()
        self.answerer = self.ingestor = self.manifest = self

    def retriever(self, kb: str, k: int) -> Any:
        return None if kb == "empty" else self

    def store(self, kb: str) -> Any:
        return self

    def files(self, kb: str) -> dict[str, Row]:
        return {"hut.md": Row()}

    def chunks_of(self, doc_id: str) -> list[Document]:
        return [Document(self.passage, metadata={"chunk_id": "c1", "source": "hut.md", "page": 2})]

    def answer_batch(self, questions: list[Question]) -> Any:
        assert [q.passages is None for q in questions] == [False, True]
        return list(enumerate(self.answers))


def answer(text: str, refused: bool = False, retrieved: tuple[str, ...] = ("c0", "c1")) -> Answer:
    return Answer("q", text, refused, None, [], list(retrieved), "m", Timings())


GOOD = answer("4471")


@pytest.mark.parametrize(
    ("given", "found", "likely", "why"),
    [
        (GOOD, answer("The code 4471"), 0.9, "kept"),
        (answer("x", refused=True), GOOD, 0.9, "not answered"),
        (AppError("no"), GOOD, 0.9, "not answered"),
        (answer("5582"), GOOD, 0.9, "answer not in the passage"),
        (GOOD, answer("4471", retrieved=("c0",)), 0.9, "passage not found again"),
        (GOOD, answer("behind the old stable"), 0.9, "answers differ"),
        (GOOD, answer("4471", refused=True), 0.9, "answers differ"),
        (GOOD, GOOD, 0.1, "unlikely"),
    ],
)
def test_filters(
    given: Any, found: Any, likely: float, why: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(make_data, "_questions", lambda services, chunks: ["What is the code of the key box?"])
    monkeypatch.setattr(make_data, "_likelihood", lambda services, question, chunk, text: likely)
    out = tmp_path / "out.jsonl"
    services: Any = Fakes(given, found)
    if why != "kept":
        with pytest.raises(AppError, match=rf"no question of 1 passages could be kept \(1 {why}\)"):
            make_data.write(services, "default", out, None, 0.2)
        assert not out.exists()  # it would stand in the way of the next run
        return
    assert make_data.write(services, "default", out, None, 0.2) == {why: 1}
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows == [
        {"question": "What is the code of the key box?", "answers": ["4471"], "source": "hut.md", "page": 2,
         "passage": PASSAGE, "likelihood": 0.9}
    ]  # fmt: skip


def test_what_has_nothing_to_ask_about(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(make_data, "_questions", lambda services, chunks: [""])
    services: Any = Fakes(GOOD, GOOD)
    with pytest.raises(AppError, match="1 no question"):
        make_data.write(services, "default", tmp_path / "o", None, 0.2)
    services.passage = "Too short."
    with pytest.raises(AppError, match=r"of 0 passages could be kept \(all are too short\)"):
        make_data.write(services, "default", tmp_path / "o", None, 0.2)
    with pytest.raises(AppError, match="holds no documents"):
        make_data.write(services, "empty", tmp_path / "e", None, 0.2)
    with pytest.raises(AppError, match="cannot be written"):
        make_data.write(services, "default", tmp_path / "none" / "o", None, 0.2)


def test_the_same_question_is_kept_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(make_data, "_questions", lambda services, chunks: ["What is the code?"] * len(chunks))
    monkeypatch.setattr(make_data, "_likelihood", lambda *_: 0.9)
    services: Any = Fakes(GOOD, replace(GOOD))
    services.chunks_of = lambda doc_id: Fakes.chunks_of(services, doc_id) * 2
    assert make_data.write(services, "default", tmp_path / "o", None, 0.2) == {"kept": 1, "asked before": 1}


def test_a_question_that_was_dropped_may_come_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ends = iter(
        [(None, "not answered"), (make_data.Made("What is the code?", "4471", "hut.md", 2, PASSAGE, 0.9), "kept")]
    )
    monkeypatch.setattr(make_data, "_questions", lambda services, chunks: ["What is the code?"] * len(chunks))
    monkeypatch.setattr(make_data, "_kept", lambda *_: next(ends))
    services: Any = Fakes(GOOD, replace(GOOD))
    services.chunks_of = lambda doc_id: Fakes.chunks_of(services, doc_id) * 2
    assert make_data.write(services, "default", tmp_path / "o", None, 0.2) == {"not answered": 1, "kept": 1}


@pytest.mark.parametrize(("before", "lines"), [(0, None), (1, 1)])
def test_an_interrupted_run_leaves_what_it_kept(
    before: int, lines: int | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def kept(services: Any, kb: str, chunk: Document, question: str, least: float) -> Any:
        if chunk.metadata["n"] == before:
            raise KeyboardInterrupt
        return make_data.Made(question, "4471", "hut.md", 2, PASSAGE, 0.9), "kept"

    monkeypatch.setattr(make_data, "_questions", lambda services, chunks: ["What is the code?"] * len(chunks))
    monkeypatch.setattr(make_data, "_kept", kept)
    services: Any = Fakes(GOOD, GOOD)
    services.chunks_of = lambda doc_id: [Document(PASSAGE, metadata={"n": n}) for n in range(2)]
    with pytest.raises(KeyboardInterrupt):
        make_data.write(services, "default", tmp_path / "o", None, 0.2)
    found = tmp_path / "o"
    assert (len(found.read_text().splitlines()) if found.exists() else None) == lines


def test_a_file_that_is_there_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Somebody may have reviewed it; and a knowledge base that is not there leaves none behind."""
    (tmp_path / "mine").write_text("reviewed")
    services: Any = Fakes(GOOD, GOOD)
    with pytest.raises(AppError, match="is there already"):
        make_data.write(services, "default", tmp_path / "mine", None, 0.2)
    assert (tmp_path / "mine").read_text() == "reviewed"

    def unknown(kb: str, k: int) -> None:
        raise AppError(f"there is no knowledge base '{kb}'")

    services.retriever = unknown
    with pytest.raises(AppError, match="no knowledge base"):
        make_data.write(services, "nosuch", tmp_path / "new", None, 0.2)
    assert not (tmp_path / "new").exists()


class Asked:
    """An engine that keeps what it is asked, and says `said` (text and error) of each prompt, the last one first."""

    named_adapter = None

    def __init__(self, *said: tuple[str, str | None]) -> None:
        self.said, self.prompts, self.engine = said, list[str](), self

    def encode_chat(self, messages: list[dict[str, str]]) -> str:
        return messages[-1]["content"]

    def generate_batch(self, prompts: list[str], params: Any, adapters: Any) -> Any:
        self.prompts = prompts
        for place, (text, error) in reversed(list(enumerate(self.said))):
            yield place, type("R", (), {"text": text, "error": error})()


@pytest.mark.parametrize(
    ("said", "question"),
    [
        ("What is the code?", "What is the code?"),
        (' Question: What is the code? "', "What is the code?"),
        ("What is the code", ""),
        ("The code is 4471.", ""),
        ("What is?", ""),
        ("Who pays?", "Who pays?"),
        ("羊驼吃什么？", "羊驼吃什么？"),
        ("营业时间是几点？", "营业时间是几点？"),
        ("问题：羊驼吃什么?", "羊驼吃什么?"),
        ("谁付款？", "谁付款？"),
        ("什么？", ""),
        ("羊驼吃胡萝卜，不吃面包。", ""),
        ("", ""),
    ],
)
def test_what_is_a_question(said: str, question: str) -> None:
    services: Any = Asked((said, None))
    assert make_data._questions(services, [Document(PASSAGE)]) == [question]


def test_each_passage_is_asked_about_in_its_language() -> None:
    """And has its own question, whichever is written first; one that failed has none."""
    services: Any = Asked(("What is the code?", None), ("羊驼吃什么？", None), ("Who pays the guide?", "no memory"))
    chunks = [Document(f" {PASSAGE}\n"), Document("我们只给羊驼喂胡萝卜片。"), Document(PASSAGE)]
    assert make_data._questions(services, chunks) == ["What is the code?", "羊驼吃什么？", ""]
    assert services.prompts[0] == make_data.ASK["en"].format(passage=PASSAGE)
    assert services.prompts[1] == make_data.ASK["zh"].format(passage="我们只给羊驼喂胡萝卜片。")


@pytest.mark.parametrize(
    ("there", "limit", "taken"),
    [
        (18, 10, [0, 1, 3, 5, 7, 9, 10, 12, 14, 16]),
        (100, 4, [0, 25, 50, 75]),
        (3, 3, [0, 1, 2]),
        (3, 5, [0, 1, 2]),
        (3, None, [0, 1, 2]),
    ],
)
def test_a_limit_is_spread_over_the_documents(
    there: int, limit: int | None, taken: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    met: list[int] = []

    def questions(services: Any, chunks: list[Document]) -> list[str]:
        met.extend(chunk.metadata["n"] for chunk in chunks)
        return [""] * len(chunks)

    monkeypatch.setattr(make_data, "_questions", questions)
    services: Any = Fakes(GOOD, GOOD)
    services.chunks_of = lambda doc_id: [Document(PASSAGE, metadata={"n": n}) for n in range(there)]
    assert list(make_data.make(services, "default", limit, 0.2, lambda why: None)) == []
    assert met == taken


@pytest.mark.slow
def test_the_model_makes_questions(home_with_models: Path) -> None:
    """The whole way once: most of what a small model writes is dropped, but every passage meets an end."""
    from app.config import load_settings
    from app.services import Services

    (home_with_models / "inbox" / "hut.md").write_text(f"# Sable Hut\n\n{PASSAGE}\n")
    services = Services(load_settings({"PADDOCK_HOME": str(home_with_models)}))
    services.ingestor.sync("default")
    ends: list[str] = []
    made = list(make_data.make(services, "default", None, 0.01, ends.append))
    assert len(ends) == 1
    assert len(made) == ends.count("kept")
    chunk = Document(PASSAGE, metadata={"source": "hut.md", "chunk_id": "c"})
    right = make_data._likelihood(services, "What is the code of the key box?", chunk, "4471")
    assert right > 10 * make_data._likelihood(services, "What is the code of the key box?", chunk, "9038")


def test_an_answer_is_as_likely_as_the_likelier_way_to_begin_it() -> None:
    asked: list[str] = []

    class Engine:
        likely = ""
        tokenizer = type("T", (), {"encode": staticmethod(lambda text, first: [text])})

        def encode_chat(self, messages: Any) -> list[int]:
            return [0]

        def log_likelihoods(self, pairs: Any, adapter: str | None) -> list[list[float]]:
            asked[:] = [said[0] for _, said in pairs]
            return [[math.log(0.5 if each == self.likely else 0.1)] for each in asked]

    engine = Engine()
    services: Any = type("S", (), {"engine": engine, "adapter": lambda self: "reader"})()
    chunk = Document("It stands in Somerset House.", metadata={"source": "a.md"})
    for engine.likely in (" Somerset House", "Somerset House"):
        found = make_data._likelihood(services, "Where?", chunk, "Somerset House")
        assert found == pytest.approx(0.5)
        assert asked == ["Somerset House", " Somerset House"]
