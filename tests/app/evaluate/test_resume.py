"""A run of answers that goes on after an interruption, with questions that changed in between."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from app.answer import Answerer
from app.errors import AppError
from app.evaluate import run
from app.evaluate.corpus import Corpus
from app.evaluate.questions import Dataset, Gold
from app.evaluate.record import dataset_digest, identity_of
from app.evaluate.report import write_report
from app.evaluate.run import Inputs, Run, run_answers
from llama.sampling import SamplingParams

from ..fakes import Backend, chunk

HAY = {"id": "hay", "question": "How much hay?", "answers": ["2.3 kilograms"]}
KING = {"id": "king", "question": "Who is the king?", "answerable": False}


class Place:
    """Runs of the fakes' model on question files in a folder."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.patch = folder, patch
        self.backend = Backend([chunk("Each adult llama eats 2.3 kilograms of hay a day.", "feed.txt")], "5 bales")
        self.index = "i"
        services: Any = SimpleNamespace(
            settings=SimpleNamespace(seed=0, k=4, kb="default"),
            retriever=self.backend.retriever,
            answerer=Answerer(self.backend, 4000, SamplingParams(max_tokens=50)),
            engine=SimpleNamespace(precision="float32"),
            confidence=self.backend.confidence,
            warm=lambda: None,
        )
        self.services = services
        patch.setattr(Inputs, "corpus", lambda inputs, dataset, services: Corpus(services, {}))
        patch.setattr(run, "recorded", self.recorded)

    def recorded(self, kind: str, dataset: Dataset, *_: Any) -> dict[str, Any]:
        about = {"name": dataset.name, "sha256": dataset_digest(dataset), "index": self.index}
        more: dict[str, Any] = {"settings": {}, "model": {"name": "m"}, "adapter": None, "embedder": "e"}
        return {"kind": kind, "dataset": about, **more}

    def __call__(self, name: str, *rows: dict[str, Any], resume: bool = True) -> Run:
        path = self.folder / name
        path.write_text("\n".join(map(json.dumps, rows)))
        return run_answers(Inputs(file=path), self.services, report=self.folder / "report", resume=resume)

    def finish(self, name: str, *rows: dict[str, Any]) -> None:
        """A whole run, its rows written."""
        done = self(name, *rows, resume=False)
        self.patch.setattr("app.evaluate.report.page", lambda run: "")
        write_report(done, self.folder / "report")

    def log(self) -> list[tuple[str, str, list[str]]]:
        lines = (self.folder / "report" / "answers.jsonl").read_text().splitlines()
        return [(row["id"], row["question"], row["answers"]) for row in map(json.loads, lines)]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(tmp_path, monkeypatch)


def test_kept_answers_are_scored_by_the_file_as_it_is(place: Place) -> None:
    place.finish("one.jsonl", HAY, KING)
    place.backend.asked = 0
    again = place("another-name.jsonl", {**HAY, "answers": ["5 bales"]}, {**KING, "answers": ["x"], "answerable": True})
    assert (again.results["kept"], place.backend.asked) == (2, 0)
    assert again.results["figures"]["contains"] == {"value": 0.5, "low": 0.0, "high": 1.0, "n": 2}
    assert "refusal f1" not in again.results["figures"]


def test_a_changed_question_takes_the_place_of_the_old_one_in_the_log(place: Place) -> None:
    place.finish("q.jsonl", HAY, KING)
    asked = place.backend.asked
    queen = {**KING, "question": "Who is the queen?"}
    assert place("q.jsonl", HAY, queen).results["kept"] == 1
    assert place.backend.asked == asked + 1
    assert place.log() == [("hay", "How much hay?", ["2.3 kilograms"]), ("king", "Who is the queen?", [])]


def test_answers_to_questions_left_out_this_time_stay_while_it_runs(place: Place) -> None:
    place.finish("q.jsonl", HAY, KING)
    assert len(place("q.jsonl", KING).rows) == 1
    assert {id_ for id_, _, _ in place.log()} == {"hay", "king"}


def test_another_index_is_another_run(place: Place) -> None:
    place.finish("q.jsonl", HAY)
    place.index = "j"
    with pytest.raises(AppError, match="leave out --resume"):
        place("q.jsonl", HAY)


def test_the_digest_is_of_all_that_is_right() -> None:
    gold = Gold("a", "What?", ("x",), relevant={"document": {"f": 1}})
    others = [
        Gold("a", "What?", ("y",), relevant={"document": {"f": 1}}),
        Gold("a", "What?", ("x",), answerable=False, relevant={"document": {"f": 1}}),
        Gold("a", "What?", ("x",), relevant={"document": {"g": 1}}),
        Gold("a", "What?", ("x",), kb="k", relevant={"document": {"f": 1}}),
    ]
    assert len({dataset_digest(Dataset("n", [each])) for each in [gold, *others]}) == 5
    head = {"kind": "answers", "settings": {}, "model": {}, "adapter": None, "embedder": "e", "gold_context": False}
    one = {**head, "k": 4, "calibration": "c", "dataset": {"name": "one", "index": "i"}}
    assert identity_of(one) != identity_of({**one, "calibration": "d"})
    assert identity_of(one) == identity_of({**one, "dataset": {"name": "two", "index": "i"}})
