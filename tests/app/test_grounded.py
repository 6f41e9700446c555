"""Questions about documents as training data: which are left out, what is said of it, and what is learned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from app.config import Settings
from app.grounded import Neighbours, readers
from app.refusal import is_refusal
from finetune.config import Config, DataSpec
from finetune.data.grounded import GroundedQuestion
from finetune.data.samples import Faults, Sample
from finetune.errors import FinetuneError
from finetune.run import Prepared, prepare
from llama.chat import ChatTemplate
from llama.checkpoint import open_checkpoint


def squad_of(path: Path, *articles: dict[str, Any]) -> Path:
    """articles: `title` where there is one, and paragraphs of (text, {question: its answer, None for impossible})."""
    data = []
    for place, article in enumerate(articles):
        paragraphs = []
        for text, asked in article["paragraphs"]:
            qas = [
                {"id": f"{place}/{question}", "question": question, "is_impossible": answer is None,
                 "answers": [] if answer is None else [{"text": answer}]}
                for question, answer in asked.items()
            ]  # fmt: skip
            paragraphs.append({"context": text, "qas": qas})
        data.append({**article, "paragraphs": paragraphs})
    path.write_text(json.dumps({"data": data}, indent=1))
    return path


def told(settings: Settings, path: Path, **spec: Any) -> tuple[list[Sample], list[str]]:
    """The samples and, without where, what is said of those left out."""
    faults, table = Faults(), DataSpec(file=str(path), format="squad", **{"unanswerable": 0.0, **spec})
    samples = list(readers(settings)["squad"](path, table, 1, faults))
    return samples, [line.partition(": ")[2] for line in faults.lines]


LOST = "no passage holds its answer; it is left out"


@pytest.mark.parametrize("turns", [1, 4])
@pytest.mark.parametrize("retrieve", [True, False])
def test_an_answer_that_stands_in_no_passage_is_not_learned(
    retrieve: bool, turns: int, settings: Settings, tmp_path: Path
) -> None:
    """Though evaluation asks it; and whatever is asked beside it in its conversation is learned."""
    asked = {"How many?": "fifty", "When?": "in May", "Where?": "at Sable", "Who was king?": None}
    path = squad_of(tmp_path / "s.json", {"title": "T", "paragraphs": [("The herd is shorn in May at Sable.", asked)]})
    samples, lines = told(settings, path, retrieve=retrieve, turns=turns)
    answers = [m["content"] for sample in samples for m in sample.messages if m["role"] == "assistant"]
    assert sorted(a for a in answers if not is_refusal(a)) == [" at Sable", " in May"]
    assert len(answers) == 3
    assert lines == [LOST]


def test_where_no_question_of_a_conversation_has_its_passage_each_is_told_why(
    settings: Settings, tmp_path: Path
) -> None:
    bad = ("The herd is shorn in May.", {"How many?": "fifty", "Who was king?": None, "How old?": "sixty"})
    good = ("Snow closes the pass in October.", {"When does it snow?": "October"})
    path = squad_of(tmp_path / "s.json", {"title": "T", "paragraphs": [bad, good]})
    samples, lines = told(settings, path, retrieve=False, turns=4)
    assert len(samples) == 1
    assert sorted(lines) == [
        LOST,
        LOST,
        "no question beside it in its conversation has an answer that a passage holds; it is left out",
    ]


def test_an_answer_that_only_other_paragraphs_hold_is_not_learned(settings: Settings, tmp_path: Path) -> None:
    """They say it of something else."""
    bad = {f"How many is {what}?": "fifty" for what in ("the herd", "the flock", "the train")}
    good = {"When is it shorn?": "May", "What is shorn?": "The herd", "What is done in May?": "shorn"}
    own = ("The herd is shorn in May.", {**bad, **good})
    others = [(f"Hut {n} has fifty beds.", {f"Which hut is the {n}th?": f"Hut {n}"}) for n in range(9)]
    path = squad_of(tmp_path / "s.json", {"title": "T", "paragraphs": [own, *others]})
    samples, lines = told(settings, path, retrieve=False, turns=8, distractors=99)
    [sample] = [each for each in samples if "When is it shorn?" in str(each.messages)]
    assert "fifty" in sample.messages[1]["content"]
    answers = {m["content"].strip() for m in sample.messages if m["role"] == "assistant"}
    assert answers == {"May", "The herd", "shorn"}
    assert lines == [LOST] * 3


def test_a_paragraph_without_the_answer_is_not_the_passage_that_answers() -> None:
    near = Neighbours({"p": ("a.md", "The herd is shorn in May.")}, seed=0)
    may, fifty = (GroundedQuestion("q", "?", (answer,), "a.md", "f:1", "p") for answer in ("May", "fifty"))
    passage = near.gold(may)
    assert passage is not None
    assert near.is_gold(passage, may)
    assert near.gold(fifty) is None
    assert not near.is_gold(passage, fifty)


def herd(title: str | None, answer: str = "May", when: str = "May") -> dict[str, Any]:
    article = {"paragraphs": [(f"The herd is shorn in {when} at Sable.", {f"When, in {when}?": answer})]}
    return article if title is None else {"title": title, **article}


def test_articles_without_a_title_are_other_documents_in_other_files(settings: Settings, tmp_path: Path) -> None:
    """Both are the first article of their file; what has one title in two files is one document in two languages."""
    first = squad_of(tmp_path / "a.json", herd(None), herd("Herd"))
    other = squad_of(tmp_path / "b.json", herd(None, "June", "June"), herd("Herd", "June", "June"))
    (one, titled), (two, same) = (
        [sample.group for sample in told(settings, path, retrieve=False)[0]] for path in (first, other)
    )
    assert one != two
    assert titled == same
    copied = squad_of(tmp_path / "c.json", herd("Before"), herd(None))
    assert told(settings, copied, retrieve=False)[0][1].group == one, "the same text is the same document"


def data(settings: Settings, gguf_path: Path, *tables: dict[str, Any]) -> Prepared:
    """Tables of SQuAD files as a run prepares them."""
    checkpoint = open_checkpoint(gguf_path)
    tokenizer = checkpoint.tokenizer()
    assert checkpoint.chat_template is not None
    spec = [{"format": "squad", "unanswerable": 0.0, "retrieve": False, **table} for table in tables]
    config = Config(name="x", method={"name": "lora"}, data=spec, train={"val_size": 0})
    return prepare(config, tokenizer, ChatTemplate(checkpoint.chat_template, tokenizer), readers(settings))


def test_it_is_said_what_a_file_for_validation_takes_from_others(
    settings: Settings, gguf_path: Path, tmp_path: Path
) -> None:
    first = squad_of(tmp_path / "a.json", herd("Herd"), herd("Pass", "July", "July"), herd(None))
    other = squad_of(tmp_path / "b.json", herd("Herd", "June", "June"), herd(None, "April", "April"))
    found = data(settings, gguf_path, {"file": str(first)}, {"file": str(other), "only_validate": True})
    assert (len(found.training), len(found.validation)) == (2, 3)
    line = "1 samples of other tables were moved to validation: only_validate keeps their document for it"
    assert line in found.quality.lines()
    alone = data(settings, gguf_path, {"file": str(first)})
    assert "moved" not in " ".join(alone.quality.lines())
    first = squad_of(first, herd("Herd"))
    with pytest.raises(FinetuneError, match="all 3 samples are of documents that only_validate keeps for validation"):
        data(settings, gguf_path, {"file": str(first)}, {"file": str(other), "only_validate": True})


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ({"articles": "0:1", "answer_length": 1}, "answer_length = 1 and impossible = 0 leave none of 3 questions"),
        ({"articles": "1:"}, "impossible = 0 leaves none of 1 questions"),
    ],
)
def test_filters_that_leave_nothing_are_named(
    spec: dict[str, Any], why: str, settings: Settings, gguf_path: Path, tmp_path: Path
) -> None:
    asked = {"When?": "in May", "Where?": "at Sable", "How many?": "fifty"}
    path = squad_of(
        tmp_path / "a.json",
        {"title": "T", "paragraphs": [("The herd is shorn in May at Sable.", {**asked, "How many?": None})]},
        {"title": "U", "paragraphs": [("Snow closes the pass.", {"Who was king?": None})]},
    )
    with pytest.raises(FinetuneError) as raised:
        data(settings, gguf_path, {"file": str(path), "impossible": 0.0, **spec})
    assert str(raised.value) == f"{path}: {why}; a larger value keeps more"


def test_what_a_squad_file_lacks_is_counted_once(settings: Settings, gguf_path: Path, tmp_path: Path) -> None:
    """Also where two tables read the file, and not where a question is used all the same."""
    asked = {"When?": "in May", "Where?": "at Sable", "How many?": "fifty", " ": "May"}
    text = "The herd is shorn in May at Sable."
    path = squad_of(tmp_path / "a.json", *({"title": t, "paragraphs": [(text, asked)]} for t in "TU"))
    table = {"file": str(path)}
    report = data(settings, gguf_path, {**table, "articles": "0:1"}, {**table, "articles": "1:"}).quality
    assert (report.examples, report.left_out, report.empty) == (4, 4, 2)
    refused = data(settings, gguf_path, {**table, "unanswerable": 1.0, "distractors": 0})
    assert (refused.quality.left_out, refused.quality.empty) == (4, 2)


@pytest.mark.parametrize("turns", [1, 4])
def test_an_answer_is_learned_with_the_space_before_it(
    turns: int, settings: Settings, gguf_path: Path, tmp_path: Path
) -> None:
    """As its tokens stand in the passage, so that they can be copied from there."""
    path = squad_of(tmp_path / "a.json", herd("Herd"))
    [example] = data(settings, gguf_path, {"file": str(path), "turns": turns}).training
    learned = [id_ for id_, is_learned in zip(example.ids, example.learned, strict=True) if is_learned]
    assert open_checkpoint(gguf_path).tokenizer().decode(learned[:-1]) == " May"


def test_what_nearly_answers_an_impossible_question_comes_first(settings: Settings, tmp_path: Path) -> None:
    """Its own paragraph is the passage that it is hardest to refuse behind."""
    months = ("January", "February", "March", "April", "May", "June", "July", "August")
    paragraphs = [(f"Snow falls in {month}.", {f"Who was king in {month}?": None}) for month in months]
    path = squad_of(tmp_path / "a.json", {"title": "T", "paragraphs": paragraphs})
    samples, _ = told(settings, path, retrieve=False, distractors=2)
    assert len(samples) == len(months)
    for month, sample in zip(months, samples, strict=True):
        first = sample.messages[-2]["content"].split("[1]")[1].split("[2]")[0]
        assert f"Snow falls in {month}." in first
