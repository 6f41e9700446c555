"""The question's likelihood under the shipped model, as a scorer."""

from __future__ import annotations

from pathlib import Path

import pytest
from langchain_core.documents import Document

from app.likelihood import MOST, QuestionLikelihood
from llama.engine import Engine, load_engine

FACTS = [
    "Dinner is served at seven in the hut. Lights go out at ten.",
    "Llamas are fed hay and grass in the morning; they drink from the stream.",
    "The office in the valley sells maps and is closed on Mondays.",
]
PASSAGES = [Document(text, metadata={"headings": "Handbook"}) for text in FACTS]


@pytest.fixture(scope="module")
def engine(gguf_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return load_engine(gguf_path, device="cpu", quant="int4", cache=tmp_path_factory.mktemp("quantized"))


@pytest.mark.parametrize(
    ("question", "right"), [("When is dinner served?", 0), ("What do llamas eat?", 1), ("Where can I buy maps?", 2)]
)
def test_a_question_is_likelier_behind_the_passage_that_answers_it(engine: Engine, question: str, right: int) -> None:
    found = QuestionLikelihood(lambda: engine)(question, PASSAGES)
    assert found is not None
    assert max(range(3), key=found.__getitem__) == right
    assert all(score < 0 for score in found)


def test_it_is_the_sum_over_the_question_s_tokens(engine: Engine) -> None:
    question = "When is dinner served?"
    shown = f"Passage: Handbook\n{FACTS[0]}\n\nPlease write a question based on this passage."
    prompt = engine.encode_chat([{"role": "user", "content": shown}])
    [wanted] = engine.log_likelihoods([(prompt, engine.tokenizer.encode(question))])
    assert QuestionLikelihood(lambda: engine)(question, PASSAGES[:1]) == [sum(wanted)]


def test_a_model_without_a_template_is_asked_plainly(engine: Engine) -> None:
    bare = Engine(engine.model, engine.tokenizer, None, engine.name)
    found = QuestionLikelihood(lambda: bare)("What do llamas eat?", PASSAGES)
    assert found is not None
    assert max(range(3), key=found.__getitem__) == 1


def test_what_is_too_long_is_cut(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = QuestionLikelihood(lambda: engine)
    monkeypatch.setattr(Engine, "context_length", 300)
    asked: list[int] = []
    plain = Engine.log_likelihoods

    def watched(self: Engine, pairs: list) -> list:
        asked.extend(len(prompt) + len(continuation) for prompt, continuation in pairs)
        return plain(self, pairs)

    monkeypatch.setattr(Engine, "log_likelihoods", watched)
    assert len(scorer("When? " * 5000, [Document("羊驼吃干草。" * 900), *PASSAGES]) or []) == 4
    assert max(asked) <= 300
    assert MOST < 300


def test_what_the_model_spells_byte_by_byte_is_not_judged(engine: Engine) -> None:
    assert QuestionLikelihood(lambda: engine)("羊驼吃什么东西？", PASSAGES) is None
    assert QuestionLikelihood(lambda: engine)("Was fressen die Lamas?", PASSAGES) is not None
