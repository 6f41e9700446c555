"""The commands from outside: what goes wrong is one line on standard error, exit 1, and 2 for wrong usage."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest


def paddock(home: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app.cli", *words],
        env={**os.environ, "PADDOCK_HOME": str(home), **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def complaint(done: subprocess.CompletedProcess[str], code: int = 1) -> str:
    """The one line of a command that failed as it should."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("paddock: ")
    return line


@pytest.mark.parametrize(
    ("words", "says", "code"),
    [
        (["ask", "x", "--kb", "nowhere"], "there is no knowledge base 'nowhere'; known: default", 1),
        (["ask", "x" * 50_000], "50,000 characters", 1),
        (["ask", " "], "the question is empty", 1),
        (["ask", "？！……"], "the question has no words", 1),
        (["ask", "x", "--type", "pdf' OR '1'='1"], "there are no documents of type", 2),
        (["ask", "x", "--after", "明天"], "'明天' and not a day; write it as 2026-12-31", 2),
        (["ask", "x", "--language", "en' --"], "is no code of a language", 2),
        (["ask", "x", "--source", "*a" * 9], "no pattern of a file name", 2),
        (["batch", "absent.jsonl", "-o", "out.jsonl", "--before", "1 OR 1"], "not a day", 2),
        (["ask"], "see `paddock ask --help`", 2),
        (["frob"], "No such command 'frob'", 2),
        (["ask", "x", "--k", "0"], "see `paddock ask --help`", 2),
        (["serve", "--host", "0.0.0.0"], "password", 1),
        (["ingest", "absent-folder"], "there is no file or folder absent-folder", 1),
        (["ingest", "--kb", "nowhere"], "there is no knowledge base 'nowhere'", 1),
        (["batch", "absent.jsonl", "-o", "out.jsonl"], "there is no file absent.jsonl", 1),
        (["kb", "status", "nowhere"], "there is no knowledge base 'nowhere'", 1),
        (["kb", "delete", "default", "absent.md", "--yes"], "has no document 'absent.md'", 1),
    ],
)
def test_what_goes_wrong_is_one_line(home_with_models: Path, words: list[str], says: str, code: int) -> None:
    assert says in complaint(paddock(home_with_models, *words), code)


def test_settings_that_are_wrong(home_with_models: Path) -> None:
    assert "did you mean 'k'" in complaint(paddock(home_with_models, "kb", "list", PADDOCK_KK="3"))
    assert "'k' in the environment is 'many'" in complaint(paddock(home_with_models, "kb", "list", PADDOCK_K="many"))


def test_listing_needs_no_model(home: Path) -> None:
    for words in (["kb", "list"], ["kb", "status"]):
        assert paddock(home, *words).returncode == 0
    assert "folder /proc/x/index cannot be made" in complaint(paddock(Path("/proc/x"), "kb", "list"))


def test_a_port_in_use(home_with_models: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert "choose another with --port" in complaint(paddock(home_with_models, "serve", "--port", str(port)))


def test_a_model_file_that_is_empty(home_with_models: Path) -> None:
    (home_with_models / "inbox" / "a.txt").write_text("Salt blocks are changed on Mondays.")
    assert paddock(home_with_models, "ingest").returncode == 0
    (home_with_models / "zero.gguf").touch()
    done = paddock(home_with_models, "ask", "When are salt blocks changed?", "--model", f"{home_with_models}/zero.gguf")
    assert "0 bytes" in complaint(done)


def test_an_index_that_is_damaged(home_with_models: Path) -> None:
    (home_with_models / "inbox" / "a.txt").write_text("Salt blocks are changed on Mondays.")
    (home_with_models / "index" / "chroma").mkdir(parents=True)
    (home_with_models / "index" / "chroma" / "chroma.sqlite3").write_text("junk")
    assert "move this folder away" in complaint(paddock(home_with_models, "ingest"))
    (home_with_models / "index" / "chroma").rename(home_with_models / "away")
    assert "1 added" in paddock(home_with_models, "ingest").stdout, "doing as told mends it"


def test_nothing_but_the_name_shows_the_help(home: Path) -> None:
    for words in ([], ["kb"], ["models"]):
        done = paddock(home, *words)
        assert done.returncode == 2
        assert "Commands:" in done.stderr
        assert len(done.stderr.splitlines()) > 5


def test_questions_are_never_overwritten(home_with_models: Path, tmp_path: Path) -> None:
    source = tmp_path / "q.jsonl"
    source.write_text('{"question": "Salt?"}\n')
    assert "choose another" in complaint(paddock(home_with_models, "batch", str(source), "-o", str(source), "--resume"))
    assert json.loads(source.read_text()) == {"question": "Salt?"}


def test_a_question_that_needs_too_much_memory_is_a_line_of_a_batch(home_with_models: Path, tmp_path: Path) -> None:
    (home_with_models / "inbox" / "a.txt").write_text("Salt blocks are changed on Mondays.")
    assert paddock(home_with_models, "ingest").returncode == 0
    source, out = tmp_path / "q.txt", tmp_path / "out.jsonl"
    source.write_text("Are salt blocks changed" + " on Mondays" * 300 + "?\nWhen are salt blocks changed?\n")
    variables = {"PADDOCK_KV_MEMORY_MB": "20", "PADDOCK_MAX_ANSWER_TOKENS": "8"}
    done = paddock(home_with_models, "batch", str(source), "-o", str(out), "--dtype", "float32", **variables)
    assert done.returncode == 0, done.stderr
    assert "1 answered, 1 failed" in done.stderr
    large, small = map(json.loads, out.read_text().splitlines())
    assert set(large) == {"id", "question", "error"}
    assert "kv_memory_mb" in large["error"]
    assert small["answer"]


def test_a_type_that_is_not_read_is_told(home_with_models: Path) -> None:
    (home_with_models / "inbox" / "a.xyz").write_text("x")
    done = paddock(home_with_models, "ingest", str(home_with_models / "inbox" / "a.xyz"), "--json")
    (failure,) = json.loads(done.stdout)["failed"]
    assert failure["source"] == "a.xyz"
    assert "type that is not read" in failure["error"]
