"""Two runs side by side, a judge over them, and the gate."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from app.errors import AppError
from app.evaluate import gate
from app.evaluate.compare import compare, render
from app.evaluate.judge import EndpointJudge, JudgeFault, LocalJudge, judge_runs
from app.evaluate.questions import Dataset, Gold
from app.evaluate.run import Run
from llama.engine import load_engine


def a_row(id_: str, answer: str, right: bool, answerable: bool = True, refused: bool = False) -> dict[str, Any]:
    return {
        "id": id_,
        "question": f"Question {id_}?",
        "answer": answer,
        "answers": ["gold"] if answerable else [],
        "answerable": answerable,
        "refused": refused,
        "citations": [],
        "chunks_cited": 0,
        "chunks_holding": 0,
        "in_context": True,
        "groundedness": None,
        "scores": {name: float(right) for name in ("exact_match", "f1", "contains", "rouge_l")},
    }


def a_run(folder: Path, rows: list[dict[str, Any]], **changed: Any) -> Path:
    folder.mkdir()
    results = {
        "kind": "answers",
        "dataset": {"name": "set", "index": "i", "limit": None},
        "settings": {"k": 4},
        "model": {"name": "m", "sha256": "1"},
        "figures": {"contains": {}},
    } | changed
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """B wins q0 to q7, loses q8, answers the unanswerable u, and has two questions of its own."""
    a = [a_row(f"q{i}", "old" if i < 8 else "same", right=i >= 8) for i in range(40)]
    b = [a_row(f"q{i}", "new" if i < 9 else "same", right=i != 8) for i in range(42)]
    a.append(a_row("u", "no", False, answerable=False, refused=True))
    b.append(a_row("u", "yes", False, answerable=False))
    return a_run(tmp_path / "a", a), a_run(tmp_path / "b", b, settings={"k": 8})


def test_compare(runs: tuple[Path, Path]) -> None:
    found = compare(*runs)
    assert (found["shared"], found["only_a"], found["only_b"]) == (41, 0, 2)
    contains = found["figures"]["contains"]
    assert (contains["a"], contains["b"], contains["n"]) == (32 / 40, 39 / 40, 40)
    assert contains["p"] < 0.05
    assert found["figures"]["refusal recall"]["difference"] == -1
    assert found["changed_settings"] == {"k": [4, 8]}
    assert [row["id"] for row in found["flipped"]["won"]] == [f"q{i}" for i in range(8)]
    assert [row["id"] for row in found["flipped"]["lost"]] == ["q8", "u"]
    text = render(found)
    for part in ("k: 4 -> 8", "8 won, 2 lost", "contains", "+17.5", "only in B"):
        assert part in text


def test_runs_that_cannot_be_compared(runs: tuple[Path, Path], tmp_path: Path) -> None:
    a, _ = runs
    other = a_run(tmp_path / "c", [a_row("x", "y", True)])
    with pytest.raises(AppError, match="no question in common"):
        compare(a, other)
    with pytest.raises(AppError, match="kind"):
        compare(a, a_run(tmp_path / "d", [], kind="retrieval"))
    with pytest.raises(AppError, match=r"results\.json"):
        compare(a, tmp_path / "absent")
    with pytest.raises(AppError, match="--resume"):
        compare(a, a_run(tmp_path / "e", [a_row("q0", "y", True)], unfinished=True))
    for row in ('{"id": "q0", "scores": 3}', '{"id": "q0", "question": "Question q0?", "scores": {}}'):
        (other / "answers.jsonl").write_text(row)
        with pytest.raises(AppError, match="evaluate again"):
            compare(a, other)
    (other / "results.json").write_text("[]")
    with pytest.raises(AppError, match="not written by"):
        compare(a, other)


def test_the_same_id_is_not_the_same_question(runs: tuple[Path, Path]) -> None:
    """q0's text differs in B: neither compared nor judged."""
    a, b = runs
    rows = [json.loads(line) for line in (b / "answers.jsonl").read_text().splitlines()]
    rows[0]["question"] = "Quite another?"
    (b / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = compare(a, b)
    assert (found["shared"], found["only_a"], found["only_b"]) == (40, 1, 3)
    assert [row["id"] for row in found["flipped"]["won"]] == [f"q{i}" for i in range(1, 8)]
    heard: list[str] = []
    judged = judge_runs(a, b, Says(lambda first, second: "tie"), lambda n, what: heard.append(what))
    assert (judged["ties"], len(heard)) == (40, found["shared"])


def test_a_figure_that_one_run_alone_has(tmp_path: Path) -> None:
    """Nothing is refused in one of the runs, so there is no precision of refusals in it."""
    asked = [a_row("q", "x", True), a_row("u", "x", False, answerable=False)]
    refusing = [asked[0], a_row("u", "no", False, answerable=False, refused=True)]
    one, two = a_run(tmp_path / "one", asked), a_run(tmp_path / "two", refusing)
    for found, a, b in ((compare(one, two), None, 1.0), (compare(two, one), 1.0, None)):
        figure = found["figures"]["refusal precision"]
        assert (figure["a"], figure["b"], figure["difference"], figure["p"], figure["n"]) == (a, b, None, None, 1)
        (line,) = [line for line in render(found).splitlines() if line.startswith("refusal precision")]
        assert line.split()[2:] == [f"{100 * x:.1f}" if x else "–" for x in (a, b)] + ["–"]
    assert "citation precision" not in found["figures"], "neither run has it"


def test_a_small_p_is_not_nothing(tmp_path: Path) -> None:
    rows = [[a_row(f"q{i}", "x", right) for i in range(50)] for right in (False, True)]
    text = render(compare(a_run(tmp_path / "a", rows[0]), a_run(tmp_path / "b", rows[1])))
    assert "<0.001" in text
    assert "0.000" not in text


class Says:
    """A judge that follows a rule."""

    name = "rule"

    def __init__(self, rule: Callable[[str, str], Any]) -> None:
        self.rule, self.asked = rule, 0

    def __call__(self, question: str, references: list[str], first: str, second: str) -> Any:
        self.asked += 1
        return self.rule(first, second)


def test_both_orders_must_agree(runs: tuple[Path, Path]) -> None:
    fair = Says(lambda first, second: "first" if first in ("new", "yes") else "second")
    found = judge_runs(*runs, fair, lambda n, what: None)
    assert found == {"by": "rule", "a": 0, "b": 10, "ties": 31, "identical": 31, "inconsistent": 0, "failed": 0}
    assert fair.asked == 20, "each pair twice, identical answers never"
    biased = judge_runs(*runs, Says(lambda first, second: "first"), lambda n, what: None)
    assert (biased["inconsistent"], biased["a"], biased["b"]) == (10, 0, 0)
    ties = judge_runs(*runs, Says(lambda first, second: "tie"), lambda n, what: None)
    assert ties["ties"] == 41


@pytest.mark.parametrize(
    ("forth", "back", "counted"),
    [
        ("first", "second", "a"),
        ("second", "first", "b"),
        ("tie", "tie", "ties"),
        ("tie", "first", "inconsistent"),
        ("tie", "second", "inconsistent"),
        ("first", "tie", "inconsistent"),
        ("second", "tie", "inconsistent"),
        ("first", "first", "inconsistent"),
        ("second", "second", "inconsistent"),
    ],
)
def test_every_pair_of_verdicts(tmp_path: Path, forth: str, back: str, counted: str) -> None:
    runs = [a_run(tmp_path / name, [a_row("q", name, True)]) for name in ("a", "b")]
    found = judge_runs(*runs, Says(lambda first, second: forth if first == "a" else back), lambda n, what: None)
    names = ("a", "b", "ties", "inconsistent", "failed")
    assert {name: found[name] for name in names} == {**dict.fromkeys(names, 0), counted: 1}


def test_a_judge_that_is_gone_stops_the_run(runs: tuple[Path, Path]) -> None:
    def fails(first: str, second: str) -> Any:
        raise JudgeFault("gone")

    with pytest.raises(AppError, match="gone"):
        judge_runs(*runs, Says(fails), lambda n, what: None)


@pytest.fixture
def endpoint() -> Iterator[tuple[str, list[Any], dict[str, str]]]:
    """A chat completions server on this machine: its address, what it was asked, and what it replies."""
    asked: list[Any] = []
    reply = {"text": "A"}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.path, self.headers.get("Authorization"), body))
            data = json.dumps({"choices": [{"message": {"content": reply["text"]}}]}).encode()
            self.send_response(500 if reply["text"] == "500" else 200)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", asked, reply
    server.shutdown()


def test_an_endpoint(endpoint: tuple[str, list[Any], dict[str, str]]) -> None:
    url, asked, reply = endpoint
    judge = EndpointJudge(url, "big", "secret")
    assert judge("Who?", ["Anna"], "It was Anna.", "Bob") == "first"
    path, key, body = asked[0]
    assert (path, key, body["model"], body["temperature"]) == ("/v1/chat/completions", "Bearer secret", "big", 0)
    assert all(part in body["messages"][1]["content"] for part in ("Who?", "Anna", "Bob"))
    for text, verdict in (("B", "second"), ("**TIE**", "tie"), ("Answer: b", "second")):
        reply["text"] = text
        assert judge("Who?", ["Anna"], "x", "y") == verdict
    for text in ("neither", "500"):
        reply["text"] = text
        with pytest.raises(JudgeFault, match="127"):
            judge("Who?", ["Anna"], "x", "y")
    with pytest.raises(JudgeFault):
        EndpointJudge("http://127.0.0.1:9/v1", "m", "")("Who?", [], "x", "y")


def test_the_loaded_model_judges(gguf_path: Path) -> None:
    judge = LocalJudge(load_engine(gguf_path, device="cpu", dtype="float32"))
    assert judge("What do llamas eat?", ["hay"], "They eat hay.", "Cars.") in ("first", "second", "tie")
    with pytest.raises(JudgeFault):
        judge("What?", ["x"], "word " * 9000, "y")


# -- gate --------------------------------------------------------------------------------------------------------


NO_MADE_WITH = json.dumps({"figures": dict.fromkeys(gate.TOLERANCES, 0.5)})
MADE_WITH: dict[str, Any] = {"questions": "q", "model": {"name": "m", "sha256": "1"}, "embedder": "e", "k": 4}


def measured(recall: float, contains: float, refusal: float, false: float = 0.0) -> tuple[Run, Run]:
    figures = {"contains": {"value": contains}, "refusal f1": {"value": refusal}, "false refusals": {"value": false}}
    found = {"dense": {"document recall@5": {"value": recall}}}
    return Run({"figures": found}), Run({"figures": figures, "failed": []})


def test_the_gate_holds_within_its_tolerance(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    gate.write_baseline(path, gate.taken(*measured(0.9, 0.2, 0.5, 0.1)), MADE_WITH)
    baseline = gate.read_baseline(path)
    assert baseline["figures"] == {
        "document recall@5": 0.9,
        "contains": 0.2,
        "refusal f1": 0.5,
        "false refusals": 0.1,
    }
    assert gate.judge(gate.taken(*measured(0.9, 0.2, 0.5, 0.1)), baseline)[1]
    assert gate.judge(gate.taken(*measured(1, 1, 1)), baseline)[1]
    for name, tolerance in gate.TOLERANCES.items():
        for by, holds in ((0.9 * tolerance, True), (1.1 * tolerance, False)):
            worse = by if name == "false refusals" else -by
            now = {**baseline["figures"], name: baseline["figures"][name] + worse}
            lines, good = gate.judge(now, baseline)
            assert good is holds, (name, by)
            assert sum(line.startswith(("FELL", "ROSE")) for line in lines) == (not holds)


def test_a_figure_that_cannot_fall_is_told() -> None:
    baseline = {"figures": gate.taken(*measured(0.9, 0.2, 0.0))}
    lines, good = gate.judge(gate.taken(*measured(0.9, 0.2, 0.0, 0.5)), baseline)
    assert not good, "half of what can be answered is refused"
    assert ["it cannot" in line for line in lines] == [False, False, True, False]


def test_a_question_that_failed_is_not_passed_over() -> None:
    found, answered = measured(0.9, 0.2, 0.5)
    answered.results["failed"] = [{"id": "q7", "error": "no room"}]
    with pytest.raises(AppError, match="1 questions could not be asked, 'q7' for one: no room"):
        gate.taken(found, answered)


def test_a_baseline_of_something_else() -> None:
    other = {"questions": "r", "model": {"name": "n", "sha256": "1"}, "embedder": "e", "k": 8}
    assert gate.differences(MADE_WITH, MADE_WITH) == []
    assert gate.differences(MADE_WITH, other) == [
        "questions differ",
        "k: 4 there, 8 here",
        "model name: m there, n here",
    ]
    assert len(gate.differences({}, MADE_WITH)) == 5


@pytest.mark.parametrize(
    ("left_out", "says"),
    [({"source"}, "document recall@5"), ({"answers"}, "contains"), ({"answerable"}, "refusal f1")],
)
def test_questions_that_the_gate_cannot_use(left_out: set[str], says: str) -> None:
    kinds = {
        "source": Gold("a", "What?", ("x",), relevant={"document": {"f": 1}}),
        "answers": Gold("b", "What?", ("x",)),
        "answerable": Gold("c", "What?", answerable=False),
    }
    whole = Dataset("n", list(kinds.values()))
    gate.require(whole, Path("q.jsonl"))
    if left_out == {"answers"}:
        kinds = {"answers": Gold("d", "What?", relevant={"document": {"f": 1}}), "answerable": kinds["answerable"]}
    else:
        kinds = {name: gold for name, gold in kinds.items() if name not in left_out}
    with pytest.raises(AppError, match=rf"q\.jsonl holds no question with .*{says}"):
        gate.require(Dataset("n", list(kinds.values())), Path("q.jsonl"))


@pytest.mark.parametrize("content", [None, "", "{}", NO_MADE_WITH, '{"figures": {"contains": 1}}', '{"figures": 3}'])
def test_a_baseline_that_is_none(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "baseline.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(AppError, match="--update"):
        gate.read_baseline(path)
