"""P(answerable): what it is made of, whose parameters it uses, and what is said where there are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.confidence import (
    FEATURES,
    OF_WORDS,
    SHIPPED,
    Calibration,
    Confidence,
    evidence_of,
    find,
    identity,
    path_of,
    write,
)  # fmt: skip
from app.errors import AppError

from .fakes import chunk

DEFAULT = "all-MiniLM-L6-v2@0b40d68aaba8"


def passage(held: float, cosine: float, relevance: float = 1.0, ordinary: float = 0.2) -> object:
    return chunk("text", score=cosine, cosine=cosine, relevance=relevance, held=held, ordinary=ordinary)


def test_the_shipped_parameters_hold_for_the_default_embedder_and_for_any(tmp_path: Path) -> None:
    ours, whose = find(tmp_path, identity(DEFAULT))
    assert whose == "shipped"
    assert ours is not None
    assert set(ours.parameters) == set(FEATURES)
    other, whose = find(tmp_path, identity("bge@1"))
    assert whose == "words"
    assert other is not None
    assert set(other.parameters) == set(OF_WORDS), "another embedder's similarities mean something else"
    assert 0 < ours.threshold < 1


def test_a_calibration_of_one_s_own_is_for_its_embedder_and_terms_alone(tmp_path: Path) -> None:
    own = Calibration(identity("bge@1"), {"constant": 1.0}, 0.4, ["set"])
    write(path_of(tmp_path, own.holds_for), [own])
    found, whose = find(tmp_path, identity("bge@1"))
    assert whose == "yours"
    assert found == own
    assert find(tmp_path, identity("bge@2"))[1] == "words"
    assert find(tmp_path, {**identity(DEFAULT), "terms": 999})[1] != "shipped"
    assert find(tmp_path, {**identity(DEFAULT), "features": 1})[1] != "shipped"


DAMAGED = (
    "",
    "[{}]",
    "[1]",
    "{",
    "[]",
    "{}",
    *(
        json.dumps([{"holds_for": {}, "parameters": parameters, "threshold": threshold}])
        for parameters, threshold in (
            ({"bogus": 1}, 0.5),
            ({"constant": "1"}, 0.5),
            ({"constant": 1}, None),
            ([1], 0.5),
        )
    ),
)


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_calibration_is_one_line(tmp_path: Path, text: str) -> None:
    path = path_of(tmp_path, identity("bge@1"))
    path.write_text(text)
    with pytest.raises(AppError, match="eval calibrate"):
        find(tmp_path, identity("bge@1"))


def test_more_evidence_is_more_confidence() -> None:
    shipped = Calibration(**json.loads(SHIPPED.read_text())[0])
    judge = Confidence(shipped, lambda text: 1.0)

    def of(*each: object) -> float:
        found = judge.of("quartz", each)  # type: ignore[arg-type]
        assert found is not None
        return found

    assert of(passage(0.5, 0.6)) > of(passage(0.1, 0.6)) > of(passage(0.1, 0.2))
    assert of(passage(0.3, 0.4, ordinary=0.9)) > of(passage(0.3, 0.4, ordinary=0.1)), "little to come near by chance"
    assert of(passage(0.5, 0.6), passage(0.1, 0.1, 0.5)) == of(passage(0.1, 0.1, 0.5), passage(0.5, 0.6))
    assert 0 < of(passage(0.0, -1.0)) < judge.threshold < of(passage(0.9, 0.7)) < 1


@pytest.mark.parametrize("question", ["the of and is", "what", "who are you", "Is it?", "的 了 吗", "的", "I", "？"])
def test_a_question_of_common_words_asks_about_nothing(question: str) -> None:
    judge = Confidence(Calibration(**json.loads(SHIPPED.read_text())[0]), lambda text: 1.0)
    given = [passage(1.0, 0.9)]
    assert judge.of(question, given) == 0.0  # type: ignore[arg-type]
    assert (judge.of("What does the llama eat?", given) or 0) > 0.5  # type: ignore[arg-type]
    assert (judge.of("羊驼吃什么？", given) or 0) > 0.5  # type: ignore[arg-type]


def test_where_nothing_is_known() -> None:
    judge = Confidence(Calibration({}, {"constant": 0.0}, 0.5), lambda text: 1.0)
    assert judge.of("quartz", [chunk("by meaning alone")]) is None
    assert not judge.refuses(None)
    assert judge.of("quartz", []) == 0.0
    nothing = Confidence(None, lambda text: 1.0, 0.9)
    assert nothing.of("q", [passage(0.9, 0.9)]) is None  # type: ignore[list-item]
    assert nothing.digest is None


def test_a_digest_tells_everything_that_is_judged_by() -> None:
    plain = Calibration({"embedder": "a"}, {"constant": 1.0}, 0.5)
    others = [
        Calibration({"embedder": "b"}, {"constant": 1.0}, 0.5),
        Calibration({"embedder": "a"}, {"constant": 2.0}, 0.5),
        Calibration({"embedder": "a"}, {"constant": 1.0}, 0.4),
    ]
    assert len({each.digest for each in [plain, *others]}) == 4
    assert Confidence(plain, len).digest == Confidence(plain, len).digest
    assert Confidence(plain, len).digest != Confidence(plain, len, threshold=0.1).digest


def test_what_was_found_by_words_alone_is_judged_by_words() -> None:
    found = chunk("text", score=0.9, keyword_score=0.9, relevance=0.9, held=0.7, ordinary=0.2)
    evidence = evidence_of("q", [found], lambda text: 1.0)
    assert evidence is not None
    assert (evidence["meaning"], evidence["covered"], evidence["held_covered"]) == (0.0, 0.0, 0.0)


def test_what_the_embedder_cannot_read_counts_less() -> None:
    evidence = evidence_of("q", [passage(0.5, 0.8)], lambda text: 0.25)  # type: ignore[list-item]
    assert evidence is not None
    assert (evidence["meaning"], evidence["covered"]) == (0.2, 0.25)
    assert evidence["held_covered"] == 0.25 * evidence["held"]
