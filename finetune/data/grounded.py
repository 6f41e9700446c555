"""Questions with the paragraph that answers them, to conversations as the application holds them.

The application's own prompt is passed in: what is trained on is what will be asked.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol, TypeVar

from finetune.data.samples import Faults, Sample
from llama.chat import Message

Passage = TypeVar("Passage")

NO_GOLD = "no passage holds its answer"
ELSEWHERE = "the passages of its conversation hold another part of its paragraph"


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

    def again(self, question: str) -> Message:
        """A further question about passages that stand in the conversation already."""

    def answer(self, question: GroundedQuestion, passages: Sequence[Passage]) -> str | None:
        """The shortest of its answers that stands in one of the passages, as it stands there; None where none does."""

    def is_gold(self, passage: Passage, question: GroundedQuestion) -> bool:
        """Whether the passage is of the question's paragraph and holds an answer to it."""

    def refusal(self, question: str) -> str:
        """What is to be said when the passages do not hold the answer."""


@dataclass(frozen=True)
class GroundedQuestion:
    """A question, its answers (none where it cannot be answered), and the document that it is about.

    lost: its own paragraph holds none of them, though another may say the same of something else.
    """

    id: str
    text: str
    answers: tuple[str, ...]
    group: str
    origin: str
    paragraph: str | None = None
    lost: bool = False


def grounded(
    questions: Sequence[GroundedQuestion],
    grounding: Grounding[Passage],
    distractors: int,
    unanswerable: float,
    seed: int,
    faults: Faults | None = None,
) -> Iterator[Sample]:
    """A conversation for each question: none to `distractors` other passages around the one that answers.

    A share `unanswerable` of the questions comes without that one and is to be refused, as are those that have no
    answer at all; where there is no other passage, it is asked with that one. The passage that answers stands where the
    retriever would have put it, one time in four anywhere. faults: told of each question that is left out.
    """
    draw, faults = random.Random(seed), faults or Faults()
    for question in questions:
        count, refused, anywhere = draw.randint(0, distractors), draw.random() < unanswerable, draw.random() < 0.25
        place = draw.random()
        if question.lost:
            faults.add(question.origin, NO_GOLD)
            continue
        gold = grounding.gold(question) if question.answers and not refused else None
        if question.answers and not refused and gold is None:
            faults.add(question.origin, NO_GOLD)
            continue
        passages = grounding.others(question, count if gold is not None else max(1, count))
        if question.answers and gold is None and not passages:
            gold = grounding.gold(question)  # nothing else can be shown, and a refusal needs something to refuse
        if gold is not None:
            at = int(place * (len(passages) + 1)) if anywhere else min(grounding.rank(question), len(passages))
            passages = [*passages[:at], gold, *passages[at:]]
        if not passages:
            faults.add(question.origin, "no passage is found for it")
            continue
        said = grounding.answer(question, [gold]) if gold is not None else grounding.refusal(question.text)
        if said is None:
            faults.add(question.origin, NO_GOLD)
            continue
        yield Sample(
            (*grounding.messages(question.text, passages), {"role": "assistant", "content": said}),
            group=question.group,
            origin=question.origin,
            exact=True,
        )


def conversations(
    questions: Sequence[GroundedQuestion],
    grounding: Grounding[Passage],
    distractors: int,
    unanswerable: float,
    seed: int,
    turns: int,
    elsewhere: float = 0.0,
    faults: Faults | None = None,
) -> Iterator[Sample]:
    """Conversations of up to `turns` questions about one paragraph, whose passages are read once for all of them.

    A question is answered where the passages hold its answer and refused where it has none; a share `unanswerable` of
    the turns asks what other paragraphs of the document answer, and is to be refused. One that is neither is left out.
    Besides, up to `elsewhere` times as many questions are asked whose answer is in the distractors: else the first
    answer would give away the passage of all others. faults: told of each question that is left out.
    """
    draw, faults = random.Random(seed), faults or Faults()
    of_document: dict[str, list[GroundedQuestion]] = {}
    for question in questions:
        of_document.setdefault(question.group, []).append(question)
    for paragraph, group in groupby(questions, key=lambda each: each.paragraph):
        asked = list(group)
        draw.shuffle(asked)
        foreign = [each for each in of_document[asked[0].group] if each.paragraph != paragraph and each.answers]
        draw.shuffle(foreign)
        while asked:
            mixed = _mixed(asked, foreign, unanswerable, turns, draw)
            more = draw.sample(foreign, len(foreign)) if elsewhere else []
            sample = _conversation(mixed, paragraph, grounding, draw.randint(0, distractors), more, elsewhere, faults)
            if sample is not None:
                yield sample


def _mixed(
    own: list[GroundedQuestion], foreign: list[GroundedQuestion], share: float, turns: int, draw: random.Random
) -> list[GroundedQuestion]:
    """Takes the next `turns` questions: of the paragraph, and a share of others. At least one is of the paragraph."""
    taken: list[GroundedQuestion] = []
    others = 0
    while own and len(taken) < turns:
        if foreign and draw.random() < share and others < turns - 1:
            taken.append(foreign.pop())
            others += 1
        else:
            taken.append(own.pop())
    draw.shuffle(taken)
    return taken


def _conversation(
    asked: Sequence[GroundedQuestion],
    paragraph: str | None,
    grounding: Grounding[Passage],
    count: int,
    more: Sequence[GroundedQuestion],
    elsewhere: float,
    faults: Faults,
) -> Sample | None:
    """The questions behind each other, around the passage that answers the first of them that one answers.

    more: of them, those that a distractor answers are strewn in, up to `elsewhere` times as many as are asked.
    """
    # Those of other paragraphs have their turn in a conversation of their own.
    own = [each for each in asked if each.paragraph == paragraph]
    dropped: list[GroundedQuestion] = []
    for anchor in (each for each in own if each.answers):
        gold = None if anchor.lost else grounding.gold(anchor)
        if gold is not None:
            break
        dropped.append(anchor)
        faults.add(anchor.origin, NO_GOLD)
    else:
        for each in own:
            if not each.answers:
                faults.add(each.origin, "no question beside it in its conversation has an answer that a passage holds")
        return None
    asked = [each for each in asked if each not in dropped]
    passages = grounding.others(anchor, count)
    at = min(grounding.rank(anchor), len(passages))
    held = [each for each in more if any(grounding.is_gold(passage, each) for passage in passages)]
    passages = [*passages[:at], gold, *passages[at:]]
    turns = [*asked, *held[: round(elsewhere * len(asked))]]
    random.Random(anchor.id).shuffle(turns)
    messages: list[Message] = []
    for question in turns:
        if question.lost:
            if question.paragraph == paragraph:
                faults.add(question.origin, NO_GOLD)
            continue
        answer = grounding.answer(question, passages)
        if answer is None and question.answers and question.paragraph == paragraph:
            # Where its passage was cut from this one, nobody knows whether it is answered.
            cut = grounding.gold(question) is not None
            faults.add(question.origin, ELSEWHERE if cut else NO_GOLD)
            continue
        messages += [grounding.again(question.text)] if messages else grounding.messages(question.text, passages)
        messages.append({"role": "assistant", "content": answer or grounding.refusal(question.text)})
    return Sample(tuple(messages), group=anchor.group, origin=anchor.origin, exact=True) if messages else None
