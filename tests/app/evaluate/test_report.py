"""The report: complete, safe, and without a network."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from app.errors import AppError
from app.evaluate.report import WORST, marked, page, write_report
from app.evaluate.run import Run

from .test_compare import a_row

EVIL = '<script>alert("x")</script><img src="http://example.org/x.png">'


def a_passage(text: str, score: float = 0.5) -> dict[str, Any]:
    return {"chunk_id": f"c{text[:5]}", "source": "a.md", "page": 3, "score": score, "text": text}


def head(kind: str, **more: Any) -> dict[str, Any]:
    return {
        "kind": kind,
        "created": "2026-01-01",
        "dataset": {"name": EVIL, "questions": 2, "documents": 1, "chunks": 3, "faults": [f"f:1: {EVIL}"]},
        "settings": {"k": 4},
        "model": {"name": "m.gguf", "sha256": "ab"},
        "versions": {"torch": "2"},
        "machine": {"cores": 4},
        "embedder": "e@1",
        "seed": 0,
        "by_language": {},
        **more,
    }


@pytest.fixture
def run() -> Run:
    rows = []
    for n in range(WORST + 10):
        row = a_row(f"q{n}", f"{EVIL} answer {n}", right=n % 3 == 0)
        row["passages"] = [a_passage(f"The gold stands here, number {n}. {EVIL}", n / 100)]
        row["citations"] = [{"chunk_id": row["passages"][0]["chunk_id"], "quote": "stands here"}]
        times = {"retrieve_s": 0.01, "prefill_s": 1.0, "decode_s": 0.5, "total_s": 1.6}
        row["timings"] = {**times, "prompt_tokens": 100 + n, "cached_tokens": 0, "answer_tokens": 5}
        rows.append(row)
    rows.append({"id": "bad", "question": "?", "answers": [], "error": "no"})
    figure = {"value": 0.3333, "low": 0.2, "high": 0.45, "n": 60}
    bleu = [{"language": "en", "value": 3.0, "low": 1.0, "high": 5.0, "n": 60, "signature": "nrefs:1|tok:13a"}]
    return Run(head("answers", gold_context=False, k=4, figures={"contains": figure}, bleu=bleu), rows)


def test_the_page(run: Run) -> None:
    html = page(run)
    assert html.count("<details") == WORST
    assert html.count("<svg") == 4
    for part in ("33.3", "20.0 – 45.0", "nrefs:1|tok:13a", "first k", "tokens of the prompt", "milliseconds"):
        assert part in html
    assert "<script>alert" not in html, "what documents say is text"
    assert html.count("<script>") == 1
    assert not re.search(r'(?:src|href)\s*=\s*"(?!#)', html), "nothing is fetched"
    assert '<mark class="quote">stands here</mark>' in html
    assert '<mark class="gold">gold</mark>' in html
    # A right answer may have little in common with the gold one; it is no worse a case than a wrong one for that.
    run.rows[0]["scores"]["f1"], run.rows[1]["scores"]["f1"] = 0.0, 0.9
    order = re.findall(r"Question (q\d+)\?", page(run))
    assert "q0" not in order[:30]
    assert "q1" in order
    first = html.index("<details")
    assert 'data-kind="unread"' in html[first : first + 80], "wrong ones come first"


def test_the_page_of_a_retrieval_run() -> None:
    figure = {"value": 0.5, "low": 0.2, "high": 0.8, "n": 2}
    rows = [
        {
            "mode": "dense",
            "id": str(n),
            "question": f"q{n}",
            "answers": ["gold"],
            "relevant": {"document": {"a.md": 1}},
            "retrieved": {"document": ["b.md", "a.md"] if n else ["b.md"]},
            "holds_answer": [False, bool(n)],
            "seconds": 0.01,
            "scores": {"document": {"recall@5": float(n), "mrr@10": n / 2}},
            "passages": [a_passage("The gold.")],
        }
        for n in range(2)
    ]
    results = head(
        "retrieval",
        figures={"dense": {"document recall@5": figure}, "other": {"document recall@5": figure}},
        over_k={"dense": {"document": [0.1, 0.5]}, "other": {"document": [0.2, 0.6]}},
    )
    html = page(Run(results, rows))
    assert html.count("<svg") == 2
    assert "not among the first 10" in html
    assert "rank 2" in html
    assert html.index(">q0 ") < html.index(">q1 "), "the worse one first"


def test_files(run: Run, tmp_path: Path) -> None:
    write_report(run, tmp_path / "new" / "folder")
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == [
        "answers.jsonl", "report.html", "results.json",
    ]  # fmt: skip
    (tmp_path / "file").write_text("")
    with pytest.raises(AppError, match="--report"):
        write_report(run, tmp_path / "file")


def test_marks() -> None:
    assert marked("Ab cd ef", ["b c"], ["CD"]) == [
        ("", "A"), ("quote", "b "), ("gold quote", "c"), ("gold", "d"), ("", " ef"),
    ]  # fmt: skip
    assert marked("x", ["", "y"], [" "]) == [("", "x")]


@pytest.mark.browser
def test_in_a_browser(run: Run, tmp_path: Path, chromium: str) -> None:
    """Filters work, nothing is asked of the network, and a phone needs no sideways scrolling."""
    from playwright.sync_api import sync_playwright

    write_report(run, tmp_path)
    with sync_playwright() as playwright:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        view = browser.new_page(viewport={"width": 390, "height": 800})
        asked, said = list[str](), list[str]()
        view.on("request", lambda request: asked.append(request.url))
        view.on("console", lambda message: said.append(message.text))
        view.goto((tmp_path / "report.html").as_uri())
        assert view.evaluate("document.documentElement.scrollWidth") <= 390
        assert view.locator("#count").inner_text() == f"{WORST} shown"
        view.locator("#words").fill("answer 31")
        assert view.locator("details.case:visible").count() == 1
        view.locator("#words").fill("")
        view.locator("input.kinds[value=unread]").uncheck()
        assert 0 < view.locator("details.case:visible").count() < WORST
        browser.close()
    assert asked == [(tmp_path / "report.html").as_uri()]
    assert said == []
