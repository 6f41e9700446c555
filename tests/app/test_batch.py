"""Batch: a line for every line, bad ones told, an interrupted run resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from app.answer import Answerer
from app.batch import read_questions, run
from app.errors import AppError
from app.evaluate.batch_scores import score_batch
from app.prompt import REFUSAL
from llama.errors import LlamaError
from llama.sampling import SamplingParams

from .fakes import Backend, chunk

HAY = chunk("Each adult llama eats 2.3 kilograms of hay a day.", "feed.txt")


@pytest.fixture
def backend() -> Backend:
    return Backend([HAY], "2.3 kilograms of hay")


def answerer(backend: Backend) -> Answerer:
    return Answerer(backend, 2000, SamplingParams(max_tokens=50))


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


BAD_LINES = [
    "not json",
    "[1, 2]",
    '"text"',
    "{}",
    '{"question": ""}',
    '{"question": 7}',
    '{"id": [1], "question": "q"}',
    '{"id": "kb", "question": "q", "kb": 3}',
    '{"id": "adapter", "question": "q", "adapter": ["a"]}',
    '{"id": "nowhere", "question": "q", "kb": "nowhere"}',
    '{"id": "long", "question": "' + "x" * 50_000 + '"}',
    "[" * 100_000,
]


def test_every_line_gets_a_line(tmp_path: Path, backend: Backend) -> None:
    good = '{"id": "a", "question": "How much hay?", "answers": ["2.3 kg"]}'
    data = "\ufeff" + "\n".join([good, *BAD_LINES, "", '{"question": "Salt?"}']) + "\n"
    (tmp_path / "in.jsonl").write_bytes(data.encode() + b'{"question": "caf\xe9"}\n')
    items = read_questions(tmp_path / "in.jsonl")
    counts = run(items, tmp_path / "out.jsonl", answerer(backend), "default", 4)
    out = rows(tmp_path / "out.jsonl")
    assert counts == (2, len(BAD_LINES) + 1)
    assert len(out) == len(BAD_LINES) + 3
    assert [set(row) for row in out if "error" in row] == [{"id", "question", "error"}] * (len(BAD_LINES) + 1)
    assert all("\n" not in row["error"] and row["error"] for row in out if "error" in row)
    assert (out[0]["id"], out[0]["answers"], out[0]["answer"]) == ("a", ["2.3 kg"], "2.3 kilograms of hay")
    assert [row["id"] for row in out[1:4]] == [2, 3, 4], "a line without an id has its number"
    assert (out[-2]["id"], out[-2]["question"]) == (len(BAD_LINES) + 3, "Salt?"), "empty lines count, and are skipped"
    assert "UTF-8" in out[-1]["error"]


def test_a_line_says_who_answers_it(tmp_path: Path, backend: Backend) -> None:
    backend.default = "reader"
    lines = [
        {"question": "Hay?", "adapter": "contracts"},
        {"question": "Hay?", "adapter": "none"},
        {"question": "Hay?"},
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, lines)))
    run(read_questions(tmp_path / "in.jsonl"), tmp_path / "out.jsonl", answerer(backend), "default", 4)
    assert [row["adapter"] for row in rows(tmp_path / "out.jsonl")] == ["contracts", None, "reader"]


def test_an_id_that_is_none(tmp_path: Path) -> None:
    lines = ['{"id": null, "question": "Hay?"}', '{"id": 1.5, "question": "float"}', '{"id": true, "question": 7}']
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    items = read_questions(tmp_path / "in.jsonl")
    assert [(item.id, item.question, item.error is None) for item in items] == [
        (1, "Hay?", True),
        (2, "float", False),
        (3, "", False),
    ]


def test_csv_and_txt(tmp_path: Path, backend: Backend) -> None:
    (tmp_path / "q.csv").write_text(
        'id,question,answers,kb\nx,"How much, exactly?",2.3 kg,\n,Salt?,"[""a"", ""b""]",empty\n,,,\n', "utf-8-sig"
    )
    items = read_questions(tmp_path / "q.csv")
    assert [(i.id, i.question, i.kb, i.extra) for i in items] == [
        ("x", "How much, exactly?", None, {"answers": ["2.3 kg"]}),
        (3, "Salt?", "empty", {"answers": ["a", "b"]}),
    ]
    (tmp_path / "q.txt").write_text("Hay?\n\n盐？\n", encoding="utf-8")
    assert [(i.id, i.question) for i in read_questions(tmp_path / "q.txt")] == [(1, "Hay?"), (3, "盐？")]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("absent.jsonl", None, "no file"),
        ("q.xlsx", b"x", "not a .jsonl"),
        ("q.jsonl", b"", "no questions"),
        ("q.csv", b"frage\nx\n", "no column 'question'"),
    ],
)
def test_files_that_hold_no_questions(tmp_path: Path, name: str, content: bytes | None, says: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(AppError, match=says):
        read_questions(tmp_path / name)


def test_resume_asks_only_what_is_missing(tmp_path: Path, backend: Backend) -> None:
    """Two answers kept, a failed line and one cut in the middle asked again; nothing twice."""
    source, out = tmp_path / "in.txt", tmp_path / "out.jsonl"
    source.write_text("one\ntwo\nthree\nfour\n")
    items = read_questions(source)
    run(items, out, answerer(backend), "default", 4)
    whole = rows(out)
    lines = out.read_text().splitlines()
    failed = json.dumps({"id": 2, "question": "two", "error": "no"})
    out.write_text("\n".join([lines[0], failed, lines[2], lines[3][: len(lines[3]) // 2]]))
    backend.asked = 0
    assert run(items, out, answerer(backend), "default", 4, resume=True) == (2, 0)
    assert backend.asked == 2
    assert sorted(row["id"] for row in rows(out)) == [1, 2, 3, 4]
    assert all("answer" in row for row in rows(out))
    assert {row["answer"] for row in rows(out)} == {row["answer"] for row in whole}
    assert run(items, out, answerer(backend), "default", 4, resume=True) == (0, 0)


def test_scores_of_a_resumed_batch(tmp_path: Path, backend: Backend) -> None:
    """Scored are the answers to the present lines, by the present gold answers; a line that lacks fields is anew."""
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"

    def answered(*lines: dict[str, Any]) -> dict[str, Any] | None:
        source.write_text("\n".join(map(json.dumps, lines)))
        items = read_questions(source)
        run(items, out, answerer(backend), "default", 4, resume=True)
        return score_batch(items, out)

    hay, salt = (
        {"id": n, "question": q, "answers": ["2.3 kilograms"]} for n, q in ((1, "How much hay?"), (2, "Salt?"))
    )
    out.write_text('{"id": 1, "question": "How much hay?", "answer": "y", "answers": ["y"]}\n[1]\n')
    first = answered(hay, salt)
    assert first is not None
    assert (first["scored"], first["figures"]["contains"]["value"]) == (2, 1.0)
    backend.asked = 0
    changed = answered({**hay, "answers": ["4 kilograms"]})
    assert backend.asked == 0
    assert changed is not None
    assert (changed["scored"], changed["figures"]["contains"]["value"]) == (1, 0.0)
    assert answered({"id": 1, "question": "How much hay?"}) is None


def test_scores_of_refusals_and_citations(tmp_path: Path) -> None:
    def scores_of(says: str) -> dict[str, Any]:
        source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
        source.write_text(json.dumps({"question": "How much hay?", "answers": ["2.3 kilograms"]}))
        items = read_questions(source)
        chunks = [chunk("Llamas eat 2.3 kilograms. Hay lies dry.", "f"), chunk("The bridge swings.", "b")]
        run(items, out, answerer(Backend(chunks, says)), "default", 4)
        found = score_batch(items, out)
        assert found is not None
        return {name: figure["value"] for name, figure in found["figures"].items()}

    refused = scores_of(REFUSAL["en"])
    assert (refused["refused"], refused["contains"], refused["exact match"]) == (1.0, 0.0, 0.0)
    said = scores_of("Llamas eat 2.3 kilograms. Hay lies dry. The bridge swings.")
    assert (said["refused"], said["citation precision"]) == (0.0, 0.5), "one chunk of two, not two quotes of three"


def test_resume_does_not_take_the_answer_of_another_question(tmp_path: Path, backend: Backend) -> None:
    source, out = tmp_path / "in.txt", tmp_path / "out.jsonl"
    source.write_text("one\n")
    run(read_questions(source), out, answerer(backend), "default", 4)
    source.write_text("quite another\n")
    assert run(read_questions(source), out, answerer(backend), "default", 4, resume=True) == (1, 0)


def test_a_fault_of_the_model_is_a_line(tmp_path: Path, backend: Backend) -> None:
    backend.fault = LlamaError("the model is gone")
    (tmp_path / "in.txt").write_text("one\ntwo\n")
    assert run(read_questions(tmp_path / "in.txt"), tmp_path / "o.jsonl", answerer(backend), "default", 4) == (0, 2)
    assert rows(tmp_path / "o.jsonl")[1]["error"] == "the model is gone"


def test_a_fault_that_nobody_foresaw_is_one_line_too(tmp_path: Path, backend: Backend) -> None:
    found = backend.retriever

    def retriever(kb: str, k: int, **rest: Any) -> Any:
        if kb == "broken":
            raise ZeroDivisionError("division by zero")
        return found(kb, k, **rest)

    backend.retriever = retriever  # type: ignore[method-assign]
    (tmp_path / "in.jsonl").write_text('{"question": "one", "kb": "broken"}\n{"question": "two"}\n')
    counts = run(read_questions(tmp_path / "in.jsonl"), tmp_path / "o.jsonl", answerer(backend), "default", 4)
    assert counts == (1, 1)
    assert rows(tmp_path / "o.jsonl")[0]["error"] == "unexpected ZeroDivisionError: division by zero"


def test_a_fault_of_one_request_is_one_line(tmp_path: Path, backend: Backend) -> None:
    backend.faults = {0: LlamaError("it needs 9 MB"), 2: ZeroDivisionError("division\nby zero")}
    (tmp_path / "in.txt").write_text("one\ntwo\nthree\nfour\n")
    counts = run(read_questions(tmp_path / "in.txt"), tmp_path / "o.jsonl", answerer(backend), "default", 4)
    first, second, third, fourth = rows(tmp_path / "o.jsonl")
    assert counts == (2, 2)
    assert first == {"id": 1, "question": "one", "error": "it needs 9 MB"}
    assert third == {"id": 3, "question": "three", "error": "unexpected ZeroDivisionError: division by zero"}
    assert second["answer"] == fourth["answer"] == "2.3 kilograms of hay"


def test_an_output_that_cannot_be_written(tmp_path: Path, backend: Backend) -> None:
    (tmp_path / "in.txt").write_text("one\n")
    (tmp_path / "file").write_text("")
    for out in (tmp_path, tmp_path / "file" / "o.jsonl"):
        with pytest.raises(AppError, match="-o"):
            run(read_questions(tmp_path / "in.txt"), out, answerer(backend), "default", 4)
