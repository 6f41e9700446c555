"""Question files: what is good is taken, what is not is told with file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from app.errors import AppError
from app.evaluate.beir import read_beir
from app.evaluate.questions import read_jsonl, read_squad, read_squads


def squad(path: Path, *articles: Any, indent: int | None = 1) -> Path:
    path.write_text(json.dumps({"version": "x", "data": list(articles)}, indent=indent, ensure_ascii=False))
    return path


def qa(id_: str, question: str, *answers: str, **more: Any) -> dict[str, Any]:
    return {"id": id_, "question": question, "answers": [{"text": a, "answer_start": 0} for a in answers], **more}


def article(title: str | None, *paragraphs: tuple[str, list[Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {"paragraphs": [{"context": context, "qas": qas} for context, qas in paragraphs]}
    return found if title is None else {"title": title, **found}


def test_squad(tmp_path: Path) -> None:
    path = squad(
        tmp_path / "s.json",
        article(
            "Llama/../care", ("Llamas eat hay.", [qa("a", "What do llamas eat?", "hay", "hay", "Hay")]), ("Two.", [])
        ),
        article(None, ("羊驼吃草。", [qa("b", "羊驼吃什么？", "草"), qa("c", "Who?", is_impossible=True)])),
    )
    found = read_squad(path)
    assert found.faults == []
    assert [each.name for each in found.articles] == ["Llama----care-0001.txt", "article-0002.txt"]
    assert found.articles[0].text == "Llamas eat hay.\n\nTwo."
    a, b, c = found.questions
    assert (a.id, a.answers, a.answerable, a.source) == ("a", ("hay", "Hay"), True, "Llama----care-0001.txt")
    assert a.relevant == {"document": {a.source: 1}, "paragraph": {f"{a.source}#0": 1}}
    assert b.answers == ("草",)
    other = {"id": "d", "question": "Which?", "answers": {"text": ["hay", "hay"], "answer_start": [0, 0]}}
    assert read_squad(squad(tmp_path / "d.json", article("T", ("hay", [other])))).questions[0].answers == ("hay",)
    assert (c.answers, c.answerable, c.relevant, c.paragraph) == ((), False, {}, "article-0002.txt#0")


def test_squad_faults_name_the_line(tmp_path: Path) -> None:
    path = squad(
        tmp_path / "s.json",
        article(
            "T",
            (
                "Llamas eat hay.",
                [qa("a", "What?", "hay"), qa("none", "Why?"), qa("a", "Twice?", "hay"), qa("e", " ", "x")],
            ),
            ("", []),
            ("Other.", [qa("away", "Where?", "the moon"), "not an object"]),
        ),
        "not an object",
    )
    found = read_squad(path)
    assert [gold.id for gold in found.questions] == ["a", "away"]
    lines = path.read_text().splitlines()
    for fault, id_, says in zip(
        found.faults[:3], ["none", "a", "e"], ["no gold answers", "already", "has no text"], strict=True
    ):
        where, _, message = fault.removeprefix(f"{path}:").partition(": ")
        assert f'"id": "{id_}"' in lines[int(where) - 1]
        assert says in message
    rest = " ".join(found.faults[3:])
    for says in ("no 'context'", "no gold answer of question 'away'", "has no text", "article 2"):
        assert says in rest
    assert len(found.faults) == 7


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"  \n", "is empty"),
        (b'{"data": [\n{"a": }]}', r"s\.json:2: not JSON"),
        (b"[1]", "SQuAD's form"),
        (b'{"data": 3}', "SQuAD's form"),
        (b'{"data": []}', "no question"),
        (b'{"data": [{"paragraphs": [{"context": "x", "qas": []}]}]}', "no question"),
    ],
)
def test_squad_files_that_cannot_be_used(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "s.json").write_bytes(content)
    with pytest.raises(AppError, match=says):
        read_squad(tmp_path / "s.json")
    with pytest.raises(AppError, match="no file"):
        read_squad(tmp_path / "absent.json")


def test_mixed_encodings(tmp_path: Path) -> None:
    good = json.dumps(article("T", ("Hay.", [qa("a", "What?", "Hay")])), ensure_ascii=False).encode()
    bad = json.dumps(article("U", ("Café.", [qa("b", "Où?", "Café")])), ensure_ascii=False).encode("latin-1")
    (tmp_path / "s.json").write_bytes(b'\xef\xbb\xbf{"data": [' + good + b",\n" + bad + b"]}")
    found = read_squad(tmp_path / "s.json")
    assert [gold.id for gold in found.questions] == ["a"]
    assert any("not UTF-8" in fault for fault in found.faults)
    (tmp_path / "q.jsonl").write_bytes(
        b'\xef\xbb\xbf{"question": "A?", "answers": ["\xe5\x8c\x97"]}\n{"question": "caf\xe9", "answers": ["x"]}\n'
    )
    rows = read_jsonl(tmp_path / "q.jsonl")
    assert (len(rows.questions), rows.questions[0].answers) == (1, ("北",))
    assert rows.faults == [f"{tmp_path / 'q.jsonl'}:2: not UTF-8; this line is left out"]


def test_several_squads_do_not_mix(tmp_path: Path) -> None:
    one = squad(tmp_path / "one.json", article(None, ("Hay.", [qa("a", "What?", "Hay")])))
    two = squad(tmp_path / "two.json", article(None, ("Salt.", [qa("a", "What?", "Salt")])))
    found = read_squads([one, two])
    assert [gold.id for gold in found.questions] == ["one-a", "two-a"]
    assert [each.name for each in found.articles] == ["one-article-0001.txt", "two-article-0001.txt"]
    assert {gold.source for gold in found.questions} == {each.name for each in found.articles}
    with pytest.raises(AppError, match="same name"):
        read_squads([one, one])


def test_jsonl(tmp_path: Path) -> None:
    rows: list[Any] = [
        {"id": "a", "question": " What? ", "answers": ["hay", " "], "source": "x.pdf", "page": 2, "kb": "farm"},
        {"question": "One?", "answers": "salt"},
        {"id": 7, "question": "None?", "answers": [], "answerable": False, "source": None},
    ]
    bad = [
        ("not json", "not JSON"),
        ("[1]", "no 'question'"),
        ('{"question": ""}', "no 'question'"),
        ('{"question": "q", "answers": []}', "no gold answers"),
        ('{"question": "q"}', "no gold answers"),
        ('{"question": "q", "answers": [1]}', "not a list of texts"),
        ('{"question": "q", "answers": ["x"], "answerable": "no"}', "'answerable'"),
        ('{"question": "q", "answers": ["x"], "page": "two"}', "'page'"),
        ('{"question": "q", "answers": ["x"], "source": 3}', "'source'"),
        ('{"id": "a", "question": "q", "answers": ["x"]}', "was on line 1 already"),
    ]
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join([json.dumps(row) for row in rows] + [line for line, _ in bad]) + "\n")
    found = read_jsonl(path)
    a, b, c = found.questions
    assert (a.question, a.answers, a.source, a.page, a.kb) == ("What?", ("hay",), "x.pdf", 2, "farm")
    assert a.relevant == {"document": {"x.pdf": 1}, "page": {"x.pdf#2": 1}}
    assert (b.id, b.answers, b.relevant) == ("2", ("salt",), {})
    assert (c.id, c.answerable, c.relevant) == ("7", False, {})
    for number, (fault, (_, says)) in enumerate(zip(found.faults, bad, strict=True), 4):
        assert fault.startswith(f"{path}:{number}: ")
        assert says in fault


def test_sampling_is_by_seed(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join(json.dumps({"question": f"q{n}", "answers": ["x"]}) for n in range(50)))
    found = read_jsonl(path)
    drawn = [[gold.id for gold in found.sample(10, seed).questions] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0] == sorted(drawn[0], key=int)
    assert len(set(drawn[0])) == 10
    assert found.sample(500, 0) is found


def test_beir(tmp_path: Path) -> None:
    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.jsonl").write_text(
        '{"_id": "d/1", "title": "Care", "text": "Llamas eat hay."}\n{"_id": "2", "text": "Salt."}\nnot json\n'
        '{"_id": "2", "text": "again"}\n'
    )
    (tmp_path / "queries.jsonl").write_text(
        '{"_id": "q1", "text": "What do llamas eat?"}\n{"_id": "q2", "text": "unjudged"}\n{"_id": "q3", "text": ""}\n'
    )
    (tmp_path / "qrels" / "test.tsv").write_text(
        "query-id\tcorpus-id\tscore\nq1\td/1\t2\nq1\t2\t0\nq1\tgone\t1\nq3\t2\t1\nbroken\n"
    )
    found = read_beir(tmp_path)
    assert [each.text for each in found.articles] == ["Care\n\nLlamas eat hay.", "Salt."]
    (query,) = found.questions
    assert query.relevant == {"document": {found.articles[0].name: 2}}
    assert [fault.removeprefix(str(tmp_path) + "/").split(" ")[0] for fault in found.faults] == [
        "corpus.jsonl:3:", "corpus.jsonl:4:", "qrels/test.tsv:4:", "qrels/test.tsv:6:", "queries.jsonl:3:",
    ]  # fmt: skip
    for name in ("qrels/test.tsv", "corpus.jsonl"):
        (tmp_path / name).unlink()
        with pytest.raises(AppError):
            read_beir(tmp_path)
    with pytest.raises(AppError, match="no folder"):
        read_beir(tmp_path / "absent")
