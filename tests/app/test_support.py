"""What a sentence rests on, told by leaving chunks out."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from app.answer import Answerer
from app.support import DROP, LikelihoodDrop
from llama.sampling import SamplingParams

from .fakes import Backend, chunk

CHUNKS = [chunk("Salt blocks.", "a.md"), chunk("Mineral licks.", "b.md", 1), chunk("Hay.", "c.md", 2)]
SENTENCE = "The beasts receive weekly supplements."


def engine(worth: dict[str, float], context: int = 4096) -> Any:
    """A sentence's tokens are likelier by `worth` for each of these texts in the prompt."""

    def log_likelihoods(pairs: Sequence[tuple[str, list[int]]], adapter: str | None = None) -> list[list[float]]:
        return [[-5.0 + sum(w for text, w in worth.items() if text in prompt)] * len(said) for prompt, said in pairs]

    return SimpleNamespace(
        tokenizer=SimpleNamespace(encode=lambda text: [1] * len(text.split())),
        encode_chat=lambda messages: " ".join(message["content"] for message in messages),
        log_likelihoods=log_likelihoods,
        context_length=context,
    )


@pytest.mark.parametrize(
    ("worth", "index"),
    [
        ({"Mineral licks.": 2.0, "Hay.": 1.0}, 1),
        ({"Hay.": DROP + 0.01}, 2),
        ({"Hay.": DROP - 0.01}, None),
        ({"Hay.": -2.0}, None),
        ({}, None),
    ],
)
def test_the_chunk_without_which_the_sentence_loses_most(worth: dict[str, float], index: int | None) -> None:
    assert LikelihoodDrop(engine(worth), "What?")(SENTENCE, CHUNKS) == index


def test_what_does_not_fit_is_not_judged() -> None:
    assert LikelihoodDrop(engine({"Hay.": 9.0}, context=100), "What?")(SENTENCE, CHUNKS) is None


@pytest.mark.parametrize("trace", [True, False])
def test_the_answer_uses_it_where_it_is_wanted(trace: bool) -> None:
    backend = Backend(CHUNKS, SENTENCE)
    more = engine({"Mineral licks.": 2.0})
    plain = backend.engine
    more.encode_chat, chat = plain.encode_chat, more.encode_chat

    class Both:
        model_name, confidence, retriever = backend.model_name, backend.confidence, backend.retriever
        adapter = backend.adapter

        @property
        def engine(self) -> Any:
            # The path counts tokens; the judge below reads text.
            return SimpleNamespace(
                **{
                    **vars(plain),
                    "tokenizer": more.tokenizer,
                    "log_likelihoods": more.log_likelihoods,
                    "encode_chat": chat,
                }
            )

    answer = Answerer(Both(), 4000, SamplingParams(max_tokens=50), trace=trace).answer("What?", "default", 3)
    assert [sentence.support for sentence in answer.sentences] == (["likelihood"] if trace else [None])
    assert [citation.source for citation in answer.citations] == (["b.md"] if trace else [])


def test_a_sentence_of_an_adapter_is_judged_as_it_was_said() -> None:
    """The readers of this repository begin with the space of the passage, the bare model without."""
    judged: list[str] = []
    more = engine({"Hay.": 2.0})
    more.tokenizer = SimpleNamespace(encode=lambda text: judged.append(text) or [1])
    chunks = [chunk("They eat Hay. daily", "a.md")]
    for adapter in (None, "reader"):
        LikelihoodDrop(more, "What?", adapter)("Hay.", chunks)
    assert judged == ["Hay.", " Hay."]
