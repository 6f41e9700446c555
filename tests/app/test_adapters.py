"""Adapters from the shelf to the answer: found, checked against the model, chosen, told."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from app import adapters
from app.adapters import Shelf
from app.answer import Answerer, Question
from app.cli import main
from app.config import Settings
from app.errors import AppError
from app.evaluate.gate import made_with
from app.evaluate.perplexity import run as perplexity
from app.evaluate.questions import Dataset
from app.evaluate.record import adapter_of, surroundings
from app.result import Answer
from app.services import Services
from finetune.errors import FinetuneError
from finetune.folder import Base
from finetune.run import base_of
from llama.checkpoint import open_checkpoint
from llama.engine import Engine
from llama.model import Transformer
from llama.request import Request
from llama.sampling import SamplingParams

from .fakes import Backend, chunk, random_lora

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def base(gguf_path: Path) -> Base:
    return base_of(open_checkpoint(gguf_path), None)


@pytest.fixture
def make(settings: Settings, base: Base, gguf_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Make:
    """Makes a LoRA for the default model with weights at random, in the state folder unless said otherwise."""
    monkeypatch.setattr(adapters, "SHIPPED", tmp_path / "shipped")

    def made(name: str, seed: int = 0, folder: Path | None = None, of: Base = base) -> Path:
        return random_lora(gguf_path, (folder or settings.adapters) / name, of, seed)

    return made


def test_names_and_paths(make: Make, settings: Settings, tmp_path: Path) -> None:
    shelf = Shelf(settings)
    with pytest.raises(AppError, match="there is no adapter 'a'; there are: none yet"):
        shelf.chosen("a")
    make("contracts")
    elsewhere = make("other", folder=tmp_path / "elsewhere")
    make("reader", folder=tmp_path / "shipped")
    assert shelf.fitting() == ["reader", "contracts"]
    assert [shelf.chosen(name) for name in ("contracts", "none", str(elsewhere))] == ["contracts", None, str(elsewhere)]
    assert shelf.chosen(str(settings.adapters / "contracts")) == "contracts", "by its path the same one"
    with pytest.raises(AppError, match="'contract'; did you mean 'contracts'"):
        shelf.chosen("contract")


def test_auto_is_the_reader_that_fits(make: Make, settings: Settings, base: Base, tmp_path: Path) -> None:
    shelf = Shelf(settings)
    make("contracts")
    assert shelf.chosen("auto") is None
    make("reader", folder=tmp_path / "shipped", of=replace(base, model_hash="0" * 64))
    assert shelf.chosen("auto") is None, "of another model"
    make("reader", folder=tmp_path / "shipped")
    assert shelf.chosen("auto") == "reader"
    (tmp_path / "shipped" / "reader" / "paddock.json").write_text("{")
    assert shelf.chosen("auto") is None, "damaged"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_hash": "0" * 64}, "another model"),
        ({"tokenizer_hash": "0" * 64}, "another vocabulary"),
        ({"chat_template": "{{ 1 }}"}, "chat template of SmolLM2-135M"),
    ],
)
def test_a_mismatch_is_refused_by_name(
    change: dict[str, str], says: str, make: Make, settings: Settings, base: Base, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    make("foreign", of=replace(base, **change))
    with torch.device("meta"):
        empty = Transformer(open_checkpoint(settings.path_of_model(settings.model)).config)
    with pytest.raises(FinetuneError, match=f"adapter 'foreign' .*{says}"):
        Services(settings).adapter("foreign")
    with pytest.raises(FinetuneError, match=f"adapter 'foreign' .*{says}"):
        Services(settings).adapters.load("foreign", empty)
    monkeypatch.setenv("PADDOCK_HOME", str(settings.home))
    assert main(["ask", "What?", "--adapter", "foreign"]) == 1
    told = capsys.readouterr().err.strip()
    assert told.startswith("paddock: adapter 'foreign'")
    assert "\n" not in told


def told(engine: Engine, adapter: str | None, ids: list[int]) -> Request:
    request = engine.generate(ids, SamplingParams(max_tokens=16, logprobs=True), adapter=adapter)
    list(request)
    return request


@pytest.mark.parametrize("quant", ["auto", "none"])
def test_two_adapters_and_the_bare_model_at_once(make: Make, settings: Settings, quant: str) -> None:
    """Each equals its run alone, with the shipped model; in whole numbers to the last bit."""
    make("a", seed=1)
    make("b", seed=2)
    settings = settings.model_copy(update={"quant": quant, "device": "cpu"})
    engine = Services(settings).engine
    ids = engine.encode_chat([{"role": "user", "content": "Where do llamas live, and what do they eat?"}])
    names = [None, "a", "b"] * 2
    found = dict(engine.generate_batch([ids] * 6, SamplingParams(max_tokens=16, logprobs=True), adapters=names))
    for place, name in enumerate(names):
        fresh = Engine(engine.model, engine.tokenizer, engine.template, engine.name, adapters=Shelf(settings))
        alone = told(fresh, name, ids)
        assert alone.tokens == found[place].tokens
        if quant == "auto":
            assert alone.logprobs == found[place].logprobs
    assert len({tuple(found[place].tokens) for place in range(3)}) == 3, "they say different things"


def test_who_answers_is_a_matter_of_the_question() -> None:
    backend = Backend([chunk("Hay is what llamas eat.")], says="Hay.")
    backend.default = "/elsewhere/usual"
    answerer = Answerer(backend, 2000, SamplingParams(max_tokens=50))  # type: ignore[arg-type]
    questions = [Question("What do llamas eat?", "default", 2, adapter=name) for name in (None, "none", "other")]
    answers = [answer for _, answer in sorted(answerer.answer_batch(questions), key=lambda each: each[0])]
    assert [answer.to_json()["adapter"] for answer in answers if isinstance(answer, Answer)] == ["usual", None, "other"]
    assert set(backend.adapters) == {"/elsewhere/usual", None, "other"}
    events = list(answerer.stream("What do llamas eat?", "default", 2, adapter="other"))
    assert events[-1].adapter == backend.adapters[-1] == "other"  # type: ignore[union-attr]


def test_from_the_command_line(
    make: Make, settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    make("mine", seed=1)
    (settings.home / "inbox" / "a.md").write_text("Llamas eat hay. The hut at Sable has 48 beds.")
    monkeypatch.setenv("PADDOCK_HOME", str(settings.home))
    assert main(["ingest"]) == 0
    capsys.readouterr()
    rows = {}
    for name in ("mine", "none"):
        assert main(["ask", "How many beds has the hut at Sable?", "--adapter", name, "--json"]) == 0
        rows[name] = json.loads(capsys.readouterr().out)
    assert (rows["mine"]["adapter"], rows["none"]["adapter"]) == ("mine", None)
    assert rows["mine"]["answer"] != rows["none"]["answer"]
    (tmp_path / "q.txt").write_text("How many beds has the hut at Sable?\nWhat do llamas eat?\n")
    (settings.home / "paddock.toml").write_text('adapter = "mine"\n')
    assert main(["batch", str(tmp_path / "q.txt"), "-o", str(tmp_path / "a.jsonl")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [line["adapter"] for line in lines] == ["mine", "mine"]
    assert lines[0]["answer"] == rows["mine"]["answer"]
    capsys.readouterr()
    assert main(["batch", str(tmp_path / "q.txt"), "-o", str(tmp_path / "b.jsonl"), "--adapter", "min"]) == 1
    assert "did you mean 'mine'" in capsys.readouterr().err
    assert main(["finetune", "list"]) == 0
    assert "mine: lora" in capsys.readouterr().out


def test_runs_record_who_answered(make: Make, settings: Settings, tmp_path: Path) -> None:
    place = make("mine", seed=1)
    shelf, chosen = Shelf(settings), settings.model_copy(update={"adapter": str(place)})
    assert surroundings(settings)["adapter"] is None
    first = adapter_of(chosen, "mine")
    assert first == {"name": "mine", "sha256": shelf.digest("mine")}
    assert surroundings(chosen)["settings"]["adapter"] == "mine", "no path of this machine"
    before = made_with(Dataset("x", []), Services(chosen))
    make("mine", seed=2)
    assert Shelf(settings).digest("mine") != first["sha256"]
    assert made_with(Dataset("x", []), Services(chosen))["adapter"] != before["adapter"]
    assert made_with(Dataset("x", []), Services(settings))["adapter"] is None
    text = tmp_path / "text.txt"
    text.write_text("The refuge stands at 2,450 metres. It has 48 beds and is open from June to October. " * 4)
    figures = [perplexity(Services(each), [text], 64, 32, 2) for each in (settings, chosen)]
    assert figures[0]["adapter"] is None
    assert figures[1]["adapter"]["name"] == "mine"
    assert figures[0]["perplexity"] < figures[1]["perplexity"]
