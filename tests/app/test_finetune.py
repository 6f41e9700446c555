"""`paddock finetune` from the command line, and training data about documents."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from langchain_core.documents import Document

from app import adapters
from app.adapters import Shelf
from app.cli import main
from app.config import Settings, load_settings
from app.grounded import readers
from app.prompt import messages_for
from app.refusal import is_refusal
from finetune.config import DataSpec
from finetune.data.encode import Encoder
from finetune.data.samples import Faults, Sample
from finetune.errors import FinetuneError
from finetune.folder import load_adapter
from llama.chat import ChatTemplate
from llama.checkpoint import load_transformer, open_checkpoint

FACTS = ["The key box has the code 4471.", "The herd is shorn in May.", "Snow closes the pass in October."]


@pytest.fixture
def squad(tmp_path: Path) -> Path:
    """Three articles of three paragraphs with a question each, and one without an answer."""
    articles = []
    for a, place in enumerate(("Sable", "Heron", "Condor")):
        paragraphs: list[Any] = []
        for p, fact in enumerate(FACTS):
            text = f"About {place}, part {p}. {fact.replace('4471', f'{a}{p}71')} It is so at {place} every year."
            answer = {0: f"{a}{p}71", 1: "May", 2: "October"}[p]
            asked = f"{('What is the code', 'When is the herd shorn', 'When does snow close the pass')[p]} at {place}?"
            paragraphs.append({"context": text, "qas": [{"id": f"{a}{p}", "question": asked,
                                                         "answers": [{"text": answer}]}]})  # fmt: skip
        paragraphs[0]["qas"].append(
            {"id": f"{a}x", "question": f"Who was king at {place}?", "answers": [], "is_impossible": True}
        )
        articles.append({"title": place, "paragraphs": paragraphs})
    path = tmp_path / "set.json"
    path.write_text(json.dumps({"data": articles}))
    return path


def made(settings: Settings, path: Path, form: str = "squad", **spec: Any) -> list[Sample]:
    return list(readers(settings)[form](path, DataSpec(file=str(path), format=form, **spec), 1, Faults()))


@pytest.mark.parametrize("retrieve", [True, False])
def test_questions_come_in_the_applications_own_prompt(retrieve: bool, settings: Settings, squad: Path) -> None:
    samples = made(settings, squad, unanswerable=0.0, distractors=2, retrieve=retrieve)
    assert len(samples) == 12
    answered = [s for s in samples if not is_refusal(s.messages[-1]["content"])]
    assert len(answered) == 9
    for sample in samples:
        shown = sample.messages[-2]["content"]
        question = shown.split("Question: ")[1].split("\n")[0]
        bare = messages_for(question, (), [Document("…", metadata={"source": "x"})])
        assert sample.messages[0] == bare[0], "the instruction"
        assert shown.startswith(bare[-1]["content"].split("[1]")[0])
        assert shown.endswith(f"Question: {question}\nAnswer:")
        if sample in answered:
            assert sample.messages[-1]["content"] in shown
        else:
            assert question.startswith("Who was king")
    assert {s.group for s in samples} == {"Sable-0001.txt", "Heron-0002.txt", "Condor-0003.txt"}


@pytest.mark.parametrize("retrieve", [True, False])
def test_a_question_without_its_passage_is_refused(retrieve: bool, settings: Settings, squad: Path) -> None:
    for sample in made(settings, squad, unanswerable=1.0, retrieve=retrieve):
        shown = sample.messages[-2]["content"]
        if not is_refusal(answer := sample.messages[-1]["content"]):
            assert retrieve, "found are passages that all say it, in May as in October; so it keeps its own"
            assert answer in (" May", " October")
            assert "[2]" not in shown
        elif "code at Sable" in shown:
            assert "0071" not in shown


def test_many_questions_about_one_paragraph(settings: Settings, squad: Path) -> None:
    """The paragraph is read once; what others of its document answer, and what none does, is refused."""
    samples = made(settings, squad, turns=4, unanswerable=0.5, distractors=0, retrieve=False)
    answers = []
    for sample in samples:
        asked = [m["content"] for m in sample.messages if m["role"] == "user"]
        assert "Passages:" in asked[0]
        assert all(re.fullmatch(r"Question: .+\?\nAnswer:", each) for each in asked[1:])
        assert asked[0].endswith("?\nAnswer:")
        assert len(asked) <= 4
        for question, answer in zip(asked, (m["content"] for m in sample.messages[2::2]), strict=True):
            assert is_refusal(answer) or answer in asked[0]
            assert is_refusal(answer) or "king" not in question.splitlines()[-2]
            answers.append(answer)
    assert sorted(a for a in answers if not is_refusal(a)) == sorted(
        ["0071", "1071", "2071", *[" May", " October"] * 3]
    )
    assert sum(map(is_refusal, answers)) > 3, "those of other paragraphs, besides the three kings"
    alone = made(settings, squad, turns=4, unanswerable=0.0, distractors=0, retrieve=False)
    assert sum(is_refusal(m["content"]) for s in alone for m in s.messages if m["role"] == "assistant") == 3


def test_what_is_asked_of_a_cut_paragraph_is_answered_or_left_out(settings: Settings, squad: Path) -> None:
    for sample in made(settings, squad, turns=4, unanswerable=0.0, distractors=2):
        shown = sample.messages[1]["content"]
        assert all(a["content"] in shown or is_refusal(a["content"]) for a in sample.messages[2::2])


@pytest.mark.parametrize("retrieve", [True, False])
def test_distractors_are_asked_about(retrieve: bool, settings: Settings, squad: Path) -> None:
    """Every question has its answer in a passage shown, those about distractors too."""
    more = made(settings, squad, turns=4, unanswerable=0.0, impossible=0.0, distractors=6, elsewhere=2.0,
                retrieve=retrieve)  # fmt: skip
    plain = made(settings, squad, turns=4, unanswerable=0.0, impossible=0.0, distractors=6, retrieve=retrieve)
    grown = sum(len(s.messages) for s in more) - sum(len(s.messages) for s in plain)
    assert grown == 0 if retrieve else grown > 0, "retrieved, a document of this set is one passage"
    for sample in more:
        assert all(answer["content"] in sample.messages[1]["content"] for answer in sample.messages[2::2])


def test_answers_are_short_and_bare(settings: Settings, tmp_path: Path) -> None:
    rows = [("a", "Zoe Hart,"), ("b", "the U.S."), ("c", "in May of that very long year."), ("d", "in May.")]
    text = "It was Zoe Hart, of the U.S. Navy, in May. So it was in May of that very long year."
    qas = [{"id": n, "question": f"What is {n}?", "answers": [{"text": answer}]} for n, answer in rows]
    (path := tmp_path / "s.json").write_text(
        json.dumps({"data": [{"title": "T", "paragraphs": [{"context": text, "qas": qas}]}]})
    )
    samples = made(settings, path, answer_length=12, unanswerable=0.0, retrieve=False)
    assert [s.messages[-1]["content"] for s in samples] == [" Zoe Hart", " the U.S.", " in May"], "as they stand there"


def test_questions_of_one_conversation_are_drawn_together(settings: Settings, squad: Path) -> None:
    samples = made(settings, squad, turns=4, unanswerable=0.0, retrieve=False, distractors=0, num_samples=5)
    asked = " ".join(m["content"] for s in samples for m in s.messages if m["role"] == "user")
    assert 5 <= sum(len(s.messages) // 2 for s in samples) <= 6
    assert [f"code at {place}" in asked for place in ("Sable", "Heron", "Condor")] == [
        f"king at {place}" in asked for place in ("Sable", "Heron", "Condor")
    ]


def test_a_share_of_the_questions_without_an_answer(settings: Settings, squad: Path) -> None:
    kept = [
        sum(is_refusal(s.messages[-1]["content"]) for s in made(settings, squad, retrieve=False, **share))
        for share in ({"impossible": 0.0, "unanswerable": 0.0}, {"unanswerable": 0.0})
    ]
    assert kept == [0, 3]


def test_some_articles_only(settings: Settings, squad: Path) -> None:
    samples = made(settings, squad, articles="1:2", retrieve=False)
    assert {s.group for s in samples} == {"Heron-0002.txt"}
    assert len(made(settings, squad, articles="1:", num_samples=3, retrieve=False)) == 3


def test_reviewed_questions(settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    rows = [{"question": "When?", "answers": ["In May"], "source": "a.md", "passage": "Shorn in May, at noon."},
            {"question": "", "answers": ["x"], "source": "a.md", "passage": "x"}, {"question": "no more"}]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, rows)))
    faults = Faults()
    spec = DataSpec(file=str(path), format="questions", unanswerable=0.0)
    found = list(readers(settings)["questions"](path, spec, 1, faults))
    assert [s.messages[-1]["content"] for s in found] == ["In May"]
    assert (len(faults.lines), faults.count, faults.empty) == (2, 2, 1)


def test_faults_of_reviewed_questions_are_told(settings: Settings, tmp_path: Path) -> None:
    """People edit the file by hand."""
    good = {"question": "When?", "answers": ["in May"], "source": "a.md", "passage": "Shorn in May, at noon."}
    bad: list[tuple[Any, str]] = [
        ({**good, "answers": [5]}, "'answers' is not a list of texts"),
        ({**good, "answers": {"text": "in May"}}, "'answers' is not a list of texts"),
        ({**good, "answers": ["in June"]}, "no answer ('in June') stands in its passage"),
        ({**good, "answers": ["in June", "in May"]}, "its answer 'in June' does not stand in its passage"),
        ({**good, "passage": None}, "no question, answers, source and passage"),
        ({**good, "question": "When \ud800?"}, "not UTF-8"),
        ([good], "no question, answers, source and passage"),
    ]
    lines = [json.dumps(row).encode() for row in (*(row for row, _ in bad), {**good, "answers": "in May"})]
    path = tmp_path / "q.jsonl"
    path.write_bytes(b"\n".join([*lines, json.dumps(good).encode().replace(b"noon", b"Caf\xe9"), b"{"]))
    faults, spec = Faults(), DataSpec(file=str(path), format="questions", unanswerable=0.0)
    found = list(readers(settings)["questions"](path, spec, 1, faults))
    assert [s.origin for s in found] == [f"{path}:4", f"{path}:8"]
    assert [s.messages[-1]["content"] for s in found] == [" in May"] * 2
    told = [*(what for _, what in bad), "not UTF-8", "not JSON"]
    assert faults.lines == [
        f"{path}:{n}: {what}; it is left out" for n, what in zip([*range(1, 8), 9, 10], told, strict=True)
    ]
    assert faults.count == len(told) - 1, "one is about an answer, beside which there is another"


def test_without_another_passage_a_question_is_asked_with_its_own(settings: Settings, tmp_path: Path) -> None:
    row = {"question": "When?", "answers": ["in May"], "source": "a.md", "passage": "Shorn in May, at noon."}
    (path := tmp_path / "q.jsonl").write_text(json.dumps(row))
    assert [s.messages[-1]["content"] for s in made(settings, path, "questions", unanswerable=1.0)] == [" in May"]


# -- the command line --------------------------------------------------------------------------------------------------

CONFIG = """
name = "talk"
[method]
name = "lora"
lora_rank = 2
lora_target = ["v_proj"]
[[data]]
file = "talk.jsonl"
format = "messages"
[train]
max_steps = 2
batch_size = 2
val_size = 1
"""


@pytest.fixture
def workplace(home_with_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    rows = [{"messages": [{"role": "user", "content": f"Say {i}"}, {"role": "assistant", "content": f"{i}!"}]}
            for i in range(4)]  # fmt: skip
    (tmp_path / "talk.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "talk.toml").write_text(CONFIG)
    monkeypatch.setenv("PADDOCK_HOME", str(home_with_models))
    monkeypatch.setattr(adapters, "SHIPPED", tmp_path / "shipped")
    monkeypatch.chdir(tmp_path)
    return home_with_models


def test_dry_run_shows_what_is_learned(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["finetune", "train", "talk.toml", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "4 examples of 4 samples" in out
    assert "Say 1<|im_end|>" in out
    assert "⟦1!<|im_end|>⟧" in out
    assert not (workplace / "runs").exists()


def test_train_list_export_merge(workplace: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["finetune", "train", "talk.toml", "--device", "cpu", "--seed", "3"]) == 0
    captured = capsys.readouterr()
    assert "best after step" in captured.out
    assert "tokens/s, about" in captured.err
    assert (workplace / "runs" / "talk" / "log.jsonl").is_file()
    assert main(["finetune", "list", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["name"], row["method"], row["base"]) == ("talk", "lora", "SmolLM2-135M-Instruct.Q4_1.gguf")
    assert main(["finetune", "list"]) == 0
    assert "talk: lora for SmolLM2" in capsys.readouterr().out
    assert main(["finetune", "export", "talk", "-o", "peft"]) == 0
    assert {p.name for p in (tmp_path / "peft").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "paddock.json",
    }  # fmt: skip
    assert main(["finetune", "export", "talk", "-o", "peft"]) == 1
    capsys.readouterr()
    assert main(["finetune", "merge", "talk", "-o", "merged", "--dtype", "bfloat16"]) == 0
    told = re.search(r"logits differ from the adapter's by (\S+) at most", capsys.readouterr().out)
    assert json.loads(Path("merged", "config.json").read_text())["dtype"] == "bfloat16"
    merged = load_transformer(open_checkpoint(tmp_path / "merged"), torch.float32, "cpu")
    assert merged.config.n_layers == 30
    settings = load_settings()
    base = load_transformer(open_checkpoint(settings.path_of_model(settings.model)), torch.float32, "cpu")
    entered, adapter, _ = load_adapter(workplace / "adapters" / "talk", base)
    ids = torch.tensor([[504, 2365, 6354, 16438]])
    drift = (merged(ids) - entered(ids, adaptation=adapter)).abs().max().item()
    assert told is not None
    assert drift > 0.01
    assert drift / 5 < float(told[1]) < drift * 5, "of what is written, on another text"


@pytest.mark.slow
def test_qlora_is_merged_into_either_weights(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("train", "talk.toml", "--device", "cpu", "--set", "method.name=qlora", "--set", "name=four")
    assert main(["finetune", *words]) == 0
    drift = {}
    for into in ("original", "dequantized"):
        capsys.readouterr()
        assert main(["finetune", "merge", "four", "-o", into, "--into", into]) == 0
        said = capsys.readouterr().out
        drift[into] = float(re.search(r"by (\S+) at most", said)[1])  # type: ignore[index]
        assert ("--into dequantized" in said) == (into == "original")
    assert drift["dequantized"] < 0.01 < drift["original"]
    assert main(["finetune", "train", "talk.toml", "--device", "cpu"]) == 0
    assert main(["finetune", "merge", "talk", "-o", "x", "--into", "original"]) == 1
    assert "--into is for QLoRA" in capsys.readouterr().err


def test_what_learned_alpacas_prompts_is_asked_with_them(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["finetune", "train", "talk.toml", "--device", "cpu", "--set", "train.template=alpaca"]) == 0
    settings = load_settings()
    with pytest.raises(FinetuneError, match="was trained on Alpaca's prompts"):
        Shelf(settings).chosen("talk")
    assert main(["finetune", "merge", "talk", "-o", "merged"]) == 0
    template = Path("merged", "chat_template.jinja").read_text("utf-8")
    tokenizer = open_checkpoint(settings.path_of_model(settings.model)).tokenizer()
    asked = ChatTemplate(template, tokenizer).encode([{"role": "user", "content": "Say 1"}])
    sample = Sample(
        ({"role": "user", "content": "Say 1"}, {"role": "assistant", "content": "1!"}), group="g", origin="o"
    )
    (example,) = Encoder(tokenizer, None, 100, "alpaca")([sample], Faults())
    assert tuple(asked) == example.ids[: example.learned.index(True)]


@pytest.mark.parametrize("name", ["none", "auto"])
def test_an_adapter_is_not_called_as_a_choice(name: str, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["finetune", "train", "talk.toml", "--set", f"name={name}"]) == 1
    assert "give it another name" in capsys.readouterr().err
    assert main(["finetune", "merge", "", "-o", "x"]) == 1
    assert "name is empty" in capsys.readouterr().err


def test_faults_are_one_line(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, told in (
        (["train", "lorra"], "did you mean 'lora'"),
        (["train", "talk.toml", "--set", "train.epoch=2"], "unknown key 'epoch' in [train] of talk.toml; did you mean"),
        (["train", "talk.toml", "--set", "method.name=lroa"], "there is no method 'lroa'; did you mean 'lora'"),
        (["train", "talk.toml", "--model", "none.gguf"], "there is no model file"),
        (["train", "talk.toml", "--set", "train.distributed=ddp"], "torchrun --nproc-per-node"),
        (["merge", "none", "-o", "x"], "there is no adapter 'none'; there are: none yet"),
    ):
        assert main(["finetune", *words]) == 1, words
        err = capsys.readouterr().err
        assert told in err
        assert len(err.strip().splitlines()) == 1
    assert main(["finetune", "train", "talk.toml", "--set", "x"]) == 2


def test_configurations_and_methods_are_listed(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["finetune", "list"]) == 0
    assert "no adapters yet" in capsys.readouterr().out
    assert main(["finetune", "list", "--configs", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "lora" in found["configs"]
    assert "llama_pro" in found["methods"]
