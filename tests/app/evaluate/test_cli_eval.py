"""`paddock eval` from outside, with the real models on a small set."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
PARAGRAPHS = {
    "Feeding": [
        ("Each adult llama eats 2.3 kilograms of hay a day.", "How much hay does an adult llama eat?", "2.3 kilograms"),
        ("Salt blocks are changed on Mondays.", "When are salt blocks changed?", "Mondays"),
    ],
    "Office": [
        ("The office closes at five. It was built in 1950.", "When does the office close?", "five"),
        ("办公室在三楼。", "办公室在哪里？", "三楼"),
    ],
}


@pytest.fixture(scope="module")
def home(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    (home / "models").symlink_to(models_dir.resolve(), target_is_directory=True)
    (home / "inbox" / "bare").mkdir(parents=True)
    (home / "paddock.toml").write_text('max_answer_tokens = 16\ndtype = "float32"\n')
    return home


@pytest.fixture(scope="module")
def squad(home: Path) -> Path:
    articles = [
        {
            "title": title,
            "paragraphs": [
                {"context": text, "qas": [{"id": asked, "question": asked, "answers": [{"text": gold}]}]}
                for text, asked, gold in paragraphs
            ],
        }
        for title, paragraphs in PARAGRAPHS.items()
    ]
    extra = {"id": "king", "question": "Who is the king?", "is_impossible": True, "answers": []}
    articles[0]["paragraphs"][0]["qas"].append(extra)  # type: ignore[index]
    path = home / "set.json"
    path.write_text(json.dumps({"data": articles}, indent=1))
    return path


def paddock(home: Path, *words: str | Path, code: int = 0, **settings: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "app.cli", *map(str, words)],
        env={
            **os.environ,
            "PADDOCK_HOME": str(home),
            **{f"PADDOCK_{name.upper()}": str(value) for name, value in settings.items()},
        },
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_retrieval(home: Path, squad: Path, tmp_path: Path) -> None:
    done = paddock(home, "eval", "retrieval", "--squad", squad, "--json", "--report", tmp_path)
    results = json.loads(done.stdout)
    assert list(results["figures"]) == ["dense", "keyword", "hybrid"]
    figures = results["figures"]["hybrid"]
    assert figures["document recall@5"] == {"value": 1.0, "low": 1.0, "high": 1.0, "n": 4}
    assert {"paragraph mrr@10", "answer in context@4"} <= set(figures)
    assert results["dataset"]["documents"] == 2
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert len((tmp_path / "retrieval.jsonl").read_text().splitlines()) == 3 * 4
    again = paddock(home, "eval", "retrieval", "--squad", squad)
    assert "document recall@5" in again.stdout
    assert len(list((home / "cache" / "eval").iterdir())) == 1, "the same content is built once"
    assert not (home / "index").exists(), "the user's own index is left alone"


def test_calibrate(home: Path, squad: Path, tmp_path: Path) -> None:
    out = tmp_path / "parameters.json"
    done = paddock(home, "eval", "calibrate", "--squad", squad, "--json", "--report", tmp_path / "report", "-o", out)
    results = json.loads(done.stdout)
    groups = {(each["how"], each["answerable"]): each["n"] for each in results["groups"]}
    own = {("own", True): 4, ("own", False): 1, ("without", False): 4}
    assert groups == {**own, ("alone", True): 4, ("another", False): 3}
    assert [each["holds_for"]["embedder"] for each in json.loads(out.read_text())] == [results["embedder"], None]
    assert not (home / "calibration").exists()
    report = (tmp_path / "report" / "report.html").read_text()
    assert report.count("<svg") == 2
    assert len((tmp_path / "report" / "calibrate.jsonl").read_text().splitlines()) == 16
    told = paddock(home, "eval", "calibrate", "--squad", squad).stdout
    assert "without its article" in told
    assert "its article alone" in told
    (kept,) = (home / "calibration").iterdir()
    assert json.loads(kept.read_text())[0]["threshold"] == results["threshold"]
    kept.unlink()
    alike = paddock(home, "eval", "calibrate", "--similar", squad, "-o", out, code=1)
    assert "with and without answers" in alike.stderr, "none is unanswerable for the lack of its article"
    assert "--docs goes with" in paddock(home, "eval", "calibrate", "--docs", tmp_path, code=2).stderr


def test_answers_resume_and_compare(home: Path, squad: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    results = json.loads(paddock(home, "eval", "answers", "--squad", squad, "--json", "--report", one).stdout)
    assert {"contains", "f1", "refusal f1", "citation precision", "groundedness"} <= set(results["figures"])
    assert (results["answered"], results["kept"], results["failed"]) == (5, 0, [])
    assert {each["language"] for each in results["bleu"]} == {"en", "zh"}
    assert len(results["model"]["sha256"]) == 64
    assert results["by_language"]["zh"]["contains"]["n"] == 1
    assert results["by_language"]["en"]["contains"]["n"] == 3
    rows = (one / "answers.jsonl").read_text().splitlines()
    # Cut off in the middle of the fourth answer.
    (one / "answers.jsonl").write_text("\n".join(rows[:3]) + "\n" + rows[3][:40])
    resumed = json.loads(
        paddock(home, "eval", "answers", "--squad", squad, "--json", "--report", one, "--resume").stdout
    )
    assert (resumed["answered"], resumed["kept"]) == (5, 3)
    assert resumed["figures"] == results["figures"]
    assert [json.loads(row)["id"] for row in (one / "answers.jsonl").read_text().splitlines()] == [
        json.loads(row)["id"] for row in rows
    ]
    refused = paddock(home, "eval", "answers", "--squad", squad, "--k", "1", "--report", one, "--resume", code=1)
    assert len(refused.stderr.strip().splitlines()) == 1
    assert "--resume" in refused.stderr

    gold = paddock(home, "eval", "answers", "--squad", squad, "--gold-context", "--limit", "4", "--report", two)
    assert "gold context" in gold.stdout
    compared = paddock(home, "eval", "compare", one, two).stdout
    assert "contains" in compared
    assert "gold_context: False -> True" in compared
    judged = json.loads(paddock(home, "eval", "compare", one, two, "--judge", "--json").stdout)["judge"]
    counted = sum(judged[name] for name in ("a", "b", "ties", "inconsistent", "failed"))
    assert (counted, judged["by"]) == (4, results["model"]["name"])


def test_perplexity(home: Path, tmp_path: Path) -> None:
    (home / "text.md").write_text("# Care\n\nLlamas eat hay, and they like it.\n" * 4)
    (home / "empty.txt").write_text("")
    done = paddock(home, "eval", "perplexity", home / "text.md", home / "empty.txt", "--json")
    results = json.loads(done.stdout)
    assert results["perplexity"] > 1
    assert results["bits_per_byte"] > 0
    assert [each["file"] for each in results["failed"]] == [str(home / "empty.txt")]
    assert "is empty" in done.stderr
    assert "perplexity" in paddock(home, "eval", "perplexity", home / "text.md", "--report", tmp_path).stdout
    kept = json.loads((tmp_path / "results.json").read_text())
    assert kept["files"] == results["files"]
    assert len(kept["model"]["sha256"]) == 64
    assert {"settings", "versions", "machine", "seed"} <= set(kept)
    assert f"{results['perplexity']:.3f}" in (tmp_path / "report.html").read_text()
    assert (
        len(paddock(home, "eval", "perplexity", home / "text.md", "--window", "9000", code=1).stderr.splitlines()) == 1
    )


def test_docs_and_gate(home: Path, tmp_path: Path) -> None:
    docs = tmp_path / "docs" / "sub"
    docs.mkdir(parents=True)
    (docs / "feed.txt").write_text(PARAGRAPHS["Feeding"][0][0])
    questions = tmp_path / "q.jsonl"
    rows: list[dict[str, Any]] = [
        {"question": "How much hay?", "answers": ["2.3 kilograms"], "source": "sub/feed.txt"},
        {"question": "Who is the king?", "answerable": False},
        {"question": "No gold?", "answers": []},
        {"question": "How much hay a day?", "answers": ["not a word of it"], "source": "sub/feed.txt"},
        {"question": "Which file?", "answers": ["2.3"], "source": "gone.txt"},
    ]
    questions.write_text("\n".join(map(json.dumps, rows)))
    baseline = tmp_path / "baseline.json"
    gate = ("eval", "gate", questions, "--docs", tmp_path / "docs", "--baseline", baseline)
    assert "--update" in paddock(home, *gate, code=1).stderr
    made = paddock(home, *gate, "--update")
    assert f"{questions}:3: no gold answers" in made.stderr
    assert f"{questions}:4: no gold answer of question '4' ('not a word of it')" in made.stderr
    assert f"{questions}:5: the source 'gone.txt'" in made.stderr
    held = paddock(home, *gate)
    assert held.stdout.count("holds") == 4
    assert "k: 4 there, 3 here" in paddock(home, *gate, code=1, k=3).stderr
    written = json.loads(baseline.read_text())
    assert written["figures"]["document recall@5"] == pytest.approx(2 / 3, abs=1e-3)
    written["figures"]["contains"] = 2.0
    baseline.write_text(json.dumps(written))
    fell = paddock(home, *gate, code=1)
    assert "FELL" in fell.stdout
    assert "figures are worse" in fell.stderr


def test_batch_scores(home: Path, tmp_path: Path) -> None:
    (home / "inbox" / "feed.txt").write_text(PARAGRAPHS["Feeding"][0][0])
    paddock(home, "ingest")
    questions, out, scores = tmp_path / "q.jsonl", tmp_path / "out.jsonl", tmp_path / "scores.json"
    questions.write_text(
        '{"id": "a", "question": "How much hay?", "answers": ["2.3 kilograms"]}\n{"question": "Salt?"}\n'
    )
    done = paddock(home, "batch", questions, "-o", out, "--scores", scores)
    found = json.loads(scores.read_text())
    assert "1 with gold answers: exact match" in done.stderr
    (row,) = found["rows"]
    assert (found["scored"], row["id"]) == (1, "a")
    assert found["figures"]["contains"]["value"] == row["scores"]["contains"]
    questions.write_text('{"question": "Salt?"}\n')
    assert "no line" in paddock(home, "batch", questions, "-o", out, "--scores", scores, code=1).stderr


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["retrieval"], 2, "one of FILE"),
        (["retrieval", "a.jsonl", "--squad", "b.json"], 2, "one of FILE"),
        (["retrieval", "--squad", "b.json", "--docs", "d"], 2, "--docs goes with"),
        (["retrieval", "--squad", "b.json", "--kb", "nosuch"], 2, "--kb goes with"),
        (["answers", "a.jsonl", "--docs", "d", "--kb", "nosuch"], 2, "--kb goes with"),
        (["retrieval", "a.jsonl", "--dtype", "float32"], 2, "--dtype"),
        (["retrieval", "a.jsonl", "--model", "m"], 2, "--model"),
        (["compare", "a", "b", "--model", "m"], 2, "--model goes with --judge"),
        (["compare", "a", "b", "--judge", "http://x/v1", "--device", "cpu"], 2, "--device goes with --judge"),
        (["perplexity", "README.md", "--window", "4", "--stride", "9"], 2, "--stride 9 must be smaller"),
        (["retrieval", "--squad", "absent.json"], 1, "no file"),
        (["retrieval", "--squad", "absent.json", "--report", "README.md"], 1, "choose another --report"),
        (["answers", "data/eval/sample.jsonl", "--limit", "1", "--kb", "bare"], 1, "holds no documents"),
        (["retrieval", "absent.jsonl"], 1, "no file"),
        (["retrieval", "--beir", "absent"], 1, "no folder"),
        (["retrieval", "a.jsonl", "--mode", "psychic"], 2, "there are: dense, keyword, hybrid"),
        (["answers", "a.jsonl", "--resume"], 2, "--report"),
        (["compare", "absent", "absent"], 1, "results.json"),
        (["perplexity"], 2, "FILES"),
        (["perplexity", "absent.txt"], 1, "absent.txt"),
        (["gate", "a.jsonl", "--docs", "d"], 2, "--baseline"),
    ],
)
def test_bad_input_is_a_line(home: Path, words: list[str], code: int, says: str) -> None:
    done = paddock(home, "eval", *words, code=code)
    assert says in done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) <= (2 if words[0] == "perplexity" else 1)
