"""Questions with the paragraph that answers them, to conversations as the application holds them.

The application's own prompt is passed in: what is trained on is what will be asked.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from finetune.data.samples import Sample
from llama.chat import Message

Passage = TypeVar("Passage")


class Grounding(Protocol[Passage]):
    """What the application gives: the passages around a question, and its prompt."""

    def gold(self, question: GroundedQuestion) -> Passage | None:
        """The passage that holds the answer; None where none does."""

    def others(self, question: GroundedQuestion, count: int) -> list[Passage]:
        """Passages that are found for the question, best first, none of which holds an answer to it."""

    def rank(self, question: GroundedQuestion) -> int:
        """How many of `others` are found before the one that answers."""

    def messages(self, question: str, passages: Sequence[Passage]) -> list[Message]:
        """The prompt."""

    def refusal(self, question: str) -> str:
        """What is to be said when the passages do not hold the answer."""


@dataclass(frozen=True)
class GroundedQuestion:
    """A question, its answers (none where it cannot be answered), and the document that it is about."""

    id: str
    text: str
    answers: tuple[str, ...]
    group: str
    origin: str
    paragraph: str | None = None


def grounded(
    questions: Sequence[GroundedQuestion],
    grounding: Grounding[Passage],
    distractors: int,
    unanswerable: float,
    seed: int,
) -> Iterator[Sample]:
    """A conversation for each question: none to `distractors` other passages around the one that answers.

    A share `unanswerable` of the questions comes without that one and is to be refused, as are those that have no
    answer at all. The passage that answers stands where the retriever would have put it, one time in four anywhere.
    """
    draw = random.Random(seed)
    for question in questions:
        count, refused, anywhere = draw.randint(0, distractors), draw.random() < unanswerable, draw.random() < 0.25
        place = draw.random()
        gold = grounding.gold(question) if question.answers and not refused else None
        if question.answers and not refused and gold is None:
            continue
        passages = grounding.others(question, count if gold is not None else max(1, count))
        if gold is not None:
            at = int(place * (len(passages) + 1)) if anywhere else min(grounding.rank(question), len(passages))
            passages = [*passages[:at], gold, *passages[at:]]
        if not passages:
            continue
        answer = min(question.answers, key=len) if gold is not None else grounding.refusal(question.text)
        yield Sample(
            (*grounding.messages(question.text, passages), {"role": "assistant", "content": answer}),
            group=question.group,
            origin=question.origin,
        )
