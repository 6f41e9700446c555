"""The reader that comes with Paddock: small, for the default model, chosen where it fits, made as its card says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from app import config
from app.adapters import READER, SHIPPED, Shelf
from app.config import Settings
from app.evaluate.questions import read_squad
from finetune.config import load_config, shipped
from finetune.folder import read_card
from finetune.run import base_of
from llama.checkpoint import open_checkpoint
from llama.engine import Engine, load_engine
from llama.sampling import SamplingParams

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = SHIPPED / READER
GREEDY = SamplingParams(temperature=0.0, max_tokens=12)


def test_the_folder_is_small_and_whole() -> None:
    files = {each.name: each.stat().st_size for each in FOLDER.iterdir()}
    assert files.keys() == {"adapter_model.safetensors", "adapter_config.json", "paddock.json"}
    assert sum(files.values()) <= 10_000_000


def test_it_was_made_for_the_default_model_by_the_shipped_configuration(gguf_path: Path) -> None:
    card = read_card(FOLDER)
    assert card.base == base_of(open_checkpoint(gguf_path), None)
    made, shipped = card.notes["configuration"], load_config(READER).model_dump(mode="json", exclude_none=True)
    made["train"].pop("distributed"), shipped["train"].pop("distributed")  # how the work was shared says nothing
    assert made == shipped
    assert card.notes["best_validation_loss"] < 1.5


def test_it_answers_by_default_with_the_default_model_only(settings: Settings, tmp_path: Path) -> None:
    assert Shelf(settings).chosen(settings.adapter) == READER
    other = tmp_path / "other.gguf"
    other.write_bytes(settings.path_of_model(config.DEFAULT_MODEL).read_bytes() + b"\0")
    changed = settings.model_copy(update={"model": str(other)})
    assert Shelf(changed).chosen(changed.adapter) is None, "another file: the bare model answers, and nothing is said"


@pytest.fixture(scope="module")
def engine(gguf_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    home = tmp_path_factory.mktemp("reader")
    shelf = Shelf(Settings(home=home, model=str(gguf_path)))
    return load_engine(gguf_path, "cpu", "auto", "auto", adapters=shelf)


def test_it_answers_with_the_words_of_the_passage(engine: Engine) -> None:
    from langchain_core.documents import Document

    from app.prompt import messages_for

    text = "The Weldon pump was rebuilt in 1974 by Harriet Ames. It lifts 340 litres of water a minute from the shaft."
    said = {}
    for asked in ("Who rebuilt the pump?", "When was the pump rebuilt?", "How much water does it lift each minute?"):
        ids = engine.encode_chat(messages_for(asked, (), [Document(text, metadata={"source": "pump.md"})]))
        said[asked] = "".join(engine.generate(ids, GREEDY, adapter=READER)).strip()
    assert list(said.values()) == ["Harriet Ames", "1974", "340 litres"]


def test_the_questions_that_we_wrote_are_about_their_paragraphs() -> None:
    path = ROOT / "data" / "train" / "reader.json"
    found = read_squad(path)
    assert not found.faults
    assert len(found.questions) > 9_000
    assert 0.03 < sum(not each.answerable for each in found.questions) / len(found.questions) < 0.1
    chinese = [each for each in found.questions if any("\u4e00" <= letter <= "\u9fff" for letter in each.question)]
    assert len(chinese) > 1_000
    for article in json.loads(path.read_text("utf-8"))["data"]:
        for paragraph in article["paragraphs"]:
            for row in paragraph["qas"]:
                for answer in row["answers"]:
                    start = answer["answer_start"]
                    assert paragraph["context"][start : start + len(answer["text"])] == answer["text"], row["id"]


PARTS = sorted(name for name in shipped() if name.startswith(READER))


@pytest.mark.parametrize("part", PARTS)
def test_the_shipped_configurations_read_their_data(
    part: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from app.finetuning import prepare

    if not (ROOT.parent / "shared" / "data" / "qa").is_dir():
        pytest.skip("the sets in ../shared/data/qa are not here")
    monkeypatch.chdir(ROOT)
    kept = load_config(part)
    changes: dict[str, Any] = {f"data.{n}.num_samples": 12 for n in range(len(kept.data))}
    changes |= {f"data.{n}.retrieve": False for n, each in enumerate(kept.data) if each.format == "squad"}
    _, _, found = prepare(settings, load_config(part, changes))
    assert len(found.training) > 20
    assert {each.articles for each in kept.data if "xquad" in each.file} == {"0:18"}, "the last six are for testing"
    assert {each.articles for each in kept.data if "policyqa" in each.file} <= {"0:17"}
    earlier = [load_config(each).name for each in PARTS]
    assert kept.start in earlier or part == "reader-base"
