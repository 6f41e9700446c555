"""The one path from question to answer, without models."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document

from app.answer import WINDOW, Answerer, Question
from app.confidence import Calibration, Confidence
from app.errors import AppError
from app.prompt import REFUSAL, SYSTEM, Turn
from app.result import Answer
from llama.sampling import SamplingParams

from .fakes import Backend, chunk

HAY = chunk("Each adult llama eats 2.3 kilograms of hay a day.", "feed.txt")
OTHER = chunk("The bridge swings.", "bridge.md", 1, 0.4)


def answerer(backend: Backend, budget: int = 2000) -> Answerer:
    return Answerer(backend, budget, SamplingParams(max_tokens=50))


def test_an_answer_has_what_the_contract_names() -> None:
    backend = Backend([HAY, OTHER], "An adult llama eats 2.3 kilograms of hay [7].")
    answer = answerer(backend).answer("  How much hay? ", "default", 2)
    row = answer.to_json()
    assert set(row) == {
        "question", "answer", "refused", "citations", "retrieved", "model", "adapter", "timings",
        "rewritten", "confidence", "sentences",
    }  # fmt: skip
    assert (row["rewritten"], row["confidence"]) == (None, None)
    assert row["sentences"] == [{"text": row["answer"], "citations": (1,), "support": "words"}]
    assert row["question"] == "How much hay?"
    assert row["answer"] == "An adult llama eats 2.3 kilograms of hay."
    assert (row["refused"], row["model"], row["adapter"]) == (False, "fake.gguf", None)
    assert row["retrieved"] == ["feed.txt-0", "bridge.md-1"]
    (citation,) = row["citations"]
    assert citation == {
        "n": 1,
        "source": "feed.txt",
        "page": None,
        "chunk_id": "feed.txt-0",
        "text": HAY.page_content,
        "score": 0.8,
        "quote": HAY.page_content,
    }
    assert set(row["timings"]) == {
        "retrieve_s", "prefill_s", "decode_s", "total_s", "prompt_tokens", "cached_tokens", "answer_tokens",
    }  # fmt: skip
    assert row["timings"]["answer_tokens"] == 9
    assert answer.marked() == "An adult llama eats 2.3 kilograms of hay. [1]"
    json.dumps(row)


def test_the_stream_gives_chunks_then_text_then_the_answer() -> None:
    events = list(answerer(Backend([HAY], "two words")).stream("q", "default", 4))
    assert events[0] == [HAY]
    assert events[1:-1] == ["two", " words"]
    assert isinstance(events[-1], Answer)
    assert "".join(list(answerer(Backend([HAY], "two [1] words")).stream("q", "default", 4))[1:-1]) == "two words"


@pytest.mark.parametrize(("kb", "says"), [("default", REFUSAL["en"]), ("empty", "holds no documents")])
def test_nothing_retrieved_is_refused_without_asking_the_model(kb: str, says: str) -> None:
    backend = Backend([], "made up")
    backend.fault = AssertionError("the model was asked")
    answer = answerer(backend).answer("Who?", kb, 4)
    assert answer.refused
    assert says in answer.answer
    assert (answer.citations, answer.retrieved, answer.model) == ([], [], "fake.gguf")
    assert (answer.confidence, answer.sentences) == (0.0, [])
    assert answerer(backend).answer("谁？", "default", 4).answer == REFUSAL["zh"] + "已搜索知识库“default”。"


@pytest.mark.parametrize(
    "says",
    [
        REFUSAL["en"],
        "I could not find the answer in the documents. Maybe ask us.",
        "Who? The passages do not say.",
        SYSTEM["en"].format(refusal=REFUSAL["en"]),
        "",
        "  ",
    ],
)
def test_a_model_that_finds_nothing_refuses(says: str) -> None:
    answer = answerer(Backend([HAY], says)).answer("Who?", "default", 4)
    assert (answer.refused, answer.citations) == (True, [])
    told = " The knowledge base 'default' was searched; what comes nearest is in feed.txt."
    assert answer.answer == REFUSAL["en"] + told
    assert answer.passages == [HAY]
    assert answer.retrieved == ["feed.txt-0"]


@pytest.mark.parametrize(("says", "cited"), [("The hay of an adult llama a day.", 0), ("2.3 kilograms of hay.", 1)])
def test_an_echo_of_the_question_is_not_cited(says: str, cited: int) -> None:
    answer = answerer(Backend([HAY], says)).answer("How much hay of a day does an adult llama have?", "default", 4)
    assert (answer.refused, len(answer.citations)) == (False, cited)


def judged(threshold: float) -> Confidence:
    """P(answerable) is 1/2 for a passage with all of the question's words, and next to 0 for one with none."""
    learned = Calibration({}, {"constant": 0.0, "held": 4.0}, threshold)
    return Confidence(learned, lambda text: 1.0)


def found(share: float, **more: Any) -> Document:
    return chunk(
        HAY.page_content, "feed.txt", keyword_score=share, cosine=0.5, relevance=share, held=share, ordinary=0.2, **more
    )


@pytest.mark.parametrize(("share", "refused"), [(0.05, True), (0.95, False)])
def test_a_question_is_refused_below_the_threshold_on_every_path(share: float, refused: bool) -> None:
    backend = Backend([found(share)], "An adult llama eats 2.3 kilograms of hay.")
    backend.confidence = judged(0.2)
    made = answerer(backend)
    one = made.answer("Who is the king?", "default", 4)
    ((_, other),) = made.answer_batch([Question("Who is the king?", "default", 4)])
    assert isinstance(other, Answer)
    assert [one.refused, other.refused] == [refused, refused]
    assert backend.asked == (0 if refused else 2), "a refusal does not ask the model"
    assert one.confidence == other.confidence == pytest.approx(1 / (1 + (share + 0.05) ** -4))
    assert one.passages == backend.chunks
    assert ("feed.txt" in one.answer) == refused
    backend.confidence = Confidence(judged(0.2).calibration, lambda text: 1.0, threshold=0.0)
    assert not made.answer("Who is the king?", "default", 4).refused, "the setting overrides the calibration"


def test_given_passages_are_not_refused() -> None:
    backend = Backend([], "An adult llama eats 2.3 kilograms of hay.")
    backend.confidence = judged(0.9)
    ((_, answer),) = answerer(backend).answer_batch([Question("How much?", "default", 4, passages=[HAY])])
    assert isinstance(answer, Answer)
    assert (answer.refused, answer.confidence) == (False, None)


CODE = chunk("The key box at Sable Hut has the code 4471.", "huts.txt")
TALK = [Turn("Where do we sleep at Sable Hut?", "In bunks.")]


def test_a_follow_up_is_searched_for_with_the_conversation() -> None:
    backend = Backend([CODE], "yes")
    answer = answerer(backend).answer("What is the code of it?", "default", 4, TALK)
    assert answer.rewritten == "What is the code of it? (sleep Sable Hut)"
    assert answer.question == "What is the code of it?"
    assert answer.rewritten in backend.messages[-1]["content"]


def test_the_model_s_rewrite_is_taken_if_nothing_is_lost_or_made_up() -> None:
    said = "What is the code of Sable Hut?"
    answer = answerer(Backend([CODE], said)).answer("What is the code of it?", "default", 4, TALK)
    assert answer.rewritten == said, "without a confidence, the first reading"
    backend = Backend([found(0.2)], said)
    backend.confidence = judged(0.0)
    backend.by_question = {said: [found(0.9), CODE], "What is the code of it?": [found(0.3)]}
    assert answerer(backend).answer("What is the code of it?", "default", 4, TALK).rewritten == said
    backend.says = "What is the code of Condor Hut?"
    assert answerer(backend).answer("What is the code of it?", "default", 4, TALK).rewritten is None
    assert backend.asked == 4


def test_a_reading_that_finds_nothing_of_the_question_itself_does_not_count() -> None:
    """The conversation's words stand in the documents; what is asked now does not."""
    backend = Backend([found(0.1)], "In 1889.")
    backend.confidence = judged(0.2)
    reading = "And when was the tower painted? (sleep Sable Hut)"
    backend.by_question = {reading: [found(0.9), CODE], "And when was the tower painted?": [found(0.1)]}
    answer = answerer(backend).answer("And when was the tower painted?", "default", 4, TALK)
    assert (answer.rewritten, answer.refused) == (None, True)
    backend.by_question[reading] = [found(0.9), chunk("The tower was painted in 1889.", "tower.txt")]
    answer = answerer(backend).answer("And when was the tower painted?", "default", 4, TALK)
    assert (answer.rewritten, answer.refused) == (reading, False)


def test_a_change_of_topic_leaves_the_conversation_behind() -> None:
    backend = Backend([HAY], "yes")
    answer = answerer(backend).answer("How much hay does an adult llama eat?", "default", 4, TALK)
    assert (answer.rewritten, backend.asked) == (None, 1)
    assert not any("Sable" in message["content"] for message in backend.messages)


def test_history_is_given_and_unknown_bases_are_errors() -> None:
    backend = Backend([HAY], "yes")
    answerer(backend).answer("And hay?", "default", 4, [Turn("Salt?", "On Mondays.")])
    assert [m["content"] for m in backend.messages[1:3]] == ["Salt?", "On Mondays."]
    with pytest.raises(AppError, match="no knowledge base"):
        answerer(backend).answer("q", "nowhere", 4)


@pytest.mark.parametrize(
    ("question", "says"),
    [
        ("", "empty"),
        (" \n ", "empty"),
        ("x" * 50_000, "50,000 characters"),
        ("羊驼" * 25_000, "50,000 characters"),
        ("?!", "no words"),
        ("？！。……", "no words"),
        ("🦙 \u200b", "no words"),
    ],
)
def test_questions_that_cannot_be_asked(question: str, says: str) -> None:
    with pytest.raises(AppError, match=says):
        answerer(Backend([HAY])).answer(question, "default", 4)


def test_the_budget_leaves_room_for_the_answer() -> None:
    """Context 130, answer 50: the prompt may have 80 tokens, whatever the setting allows."""
    chunks = [chunk("word " * 20, f"{n}.md", n) for n in range(4)]
    backend = Backend(chunks, "word", context=130)
    answer = answerer(backend).answer("q", "default", 4)
    assert len(backend.encode(backend.messages)) <= 80
    assert len(answer.passages) == 1
    assert len(answer.retrieved) == 4


def test_cancelling_keeps_what_was_said() -> None:
    cancel = threading.Event()
    events = answerer(Backend([HAY], "one two three four")).stream("q", "default", 4, cancel=cancel)
    said = []
    for event in events:
        said.append(event)
        if event == " two":
            cancel.set()
    assert isinstance(said[-1], Answer)
    assert said[-1].answer == "one two"


def test_streamlit_is_not_needed_for_an_answer() -> None:
    """The path adds nothing of the web UI: its module does not name it."""
    source = Path(__file__).resolve().parents[2].joinpath("app", "answer.py").read_text()
    assert "streamlit" not in source


def test_a_batch_answers_as_one_at_a_time() -> None:
    backend = Backend([HAY, OTHER], "An adult llama eats 2.3 kilograms of hay.")
    made = answerer(backend)
    questions = [
        Question("How much hay?", "default", 2),
        Question("  ", "default", 2),
        Question("Anything?", "empty", 2),
        Question("Nowhere?", "nowhere", 2),
        *(Question(f"Question {n}?", "default", 1) for n in range(WINDOW + 3)),
        Question("And the bridge?", "default", 2, passages=[OTHER]),
        Question("Nothing given?", "default", 2, passages=[]),
    ]
    found = dict(made.answer_batch(questions))
    assert sorted(found) == list(range(len(questions)))
    for index in (0, 2, 4, len(questions) - 3):
        expected = made.answer(questions[index].text, questions[index].kb, questions[index].k).to_json()
        got = found[index]
        assert isinstance(got, Answer)
        assert {**got.to_json(), "timings": None} == {**expected, "timings": None}
    assert ["question is empty" in str(found[1]), "no knowledge base" in str(found[3])] == [True, True]
    given, nothing = found[len(questions) - 2], found[len(questions) - 1]
    assert isinstance(given, Answer)
    assert given.retrieved == ["bridge.md-1"]
    assert isinstance(nothing, Answer)
    assert nothing.refused
    assert given.timings.total_s == pytest.approx(given.timings.retrieve_s + 0.3)
