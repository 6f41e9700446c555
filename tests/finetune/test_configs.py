"""Configurations: what is wrong with one is told, and every shipped one trains."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from finetune.config import Config, load_config, shipped
from finetune.data.samples import Example, Sample
from finetune.errors import FinetuneError
from finetune.folder import TENSORS, load_adapter, read_card
from finetune.run import Prepared, base_of, identity, prepare, train
from llama.chat import ChatTemplate
from llama.checkpoint import load_transformer, open_checkpoint

transformers = pytest.importorskip("transformers")
ROOT = Path(__file__).resolve().parents[2]
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2,
         "max_position_embeddings": 1024, "vocab_size": 49152, "tie_word_embeddings": True}  # fmt: skip


@pytest.fixture(scope="module")
def tiny(gguf_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model with the default model's vocabulary."""
    from finetune.export import export
    from llama.config import ModelConfig
    from llama.model import Transformer

    torch.manual_seed(0)
    checkpoint = open_checkpoint(gguf_path)
    model = Transformer(ModelConfig.from_hf({"model_type": "llama", "num_hidden_layers": 5, **SMALL}))
    for parameter in model.parameters():
        torch.nn.init.ones_(parameter) if parameter.ndim == 1 else torch.nn.init.normal_(parameter, std=0.1)
    folder = tmp_path_factory.mktemp("tiny") / "model"
    export(model, checkpoint, folder, checkpoint.chat_template, torch.float32)
    return folder


def questions(path: Any, spec: Any, seed: int, faults: Any) -> list[Sample]:
    """Stands for the application's reader of SQuAD files, in which other documents are for validation only."""
    of = "kept" if spec.only_validate else "g"
    turns = [({"role": "user", "content": f"Question {i} of {of}?"}, {"role": "assistant", "content": f"Answer {i}."})
             for i in range(12)]  # fmt: skip
    return [Sample(each, group=f"{of}{i % 4}", origin=f"o{i}") for i, each in enumerate(turns)]  # type: ignore[arg-type]


def spoken(folder: Path) -> Any:
    checkpoint = open_checkpoint(folder)
    tokenizer = checkpoint.tokenizer()
    assert checkpoint.chat_template is not None
    return checkpoint, tokenizer, ChatTemplate(checkpoint.chat_template, tokenizer)


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_configuration_trains(name: str, tiny: Path, tmp_path: Path) -> None:
    """Three steps on a tiny model, and the adapter that is written loads again."""
    instruction = tmp_path / "data.jsonl"
    rows = [{"instruction": f"Say {i}.", "output": f"{i}.", "text": f"Snow {i}. " * 20} for i in range(12)]
    instruction.write_text("\n".join(map(json.dumps, rows)))
    tables = range(len(load_config(name).data))
    config = load_config(
        name,
        {
            "train.max_steps": 3,
            "train.eval_steps": 2,
            "train.batch_size": 2,
            "train.cutoff_len": 150,
            **{f"data.{n}.file": str(instruction) for n in tables},
        },
    )
    assert config.name == name, "the adapter is called as its configuration"
    checkpoint, tokenizer, template = spoken(tiny)
    found = prepare(config, tokenizer, template, {"squad": questions})
    folder, state = train(config, checkpoint, found, tmp_path / "runs", tmp_path / "adapters", device="cpu")
    assert state.step == 3
    assert state.best_loss < 20
    model = load_transformer(checkpoint, torch.float32, "cpu")
    entered, adapter, card = load_adapter(folder, model, base_of(checkpoint, None))
    assert card.notes["steps"] == 3
    assert card.notes["configuration"]["name"] == name
    assert card.base is not None
    assert card.base.chat_template == checkpoint.chat_template
    assert entered(torch.tensor([[1, 2, 3]]), adaptation=adapter).isfinite().all()


def test_a_method_is_tried_on_what_comes_with_paddock() -> None:
    """The reader's own parts and those of a data set's form need sets that lie beside the repository."""
    elsewhere = {n for n in shipped() if any(not (ROOT / table.file).exists() for table in load_config(n).data)}
    assert all(name.startswith("reader") or name in ("alpaca", "policyqa") for name in elsewhere)


def test_there_is_a_configuration_of_every_method() -> None:
    from finetune.adapters import METHODS

    assert {load_config(name).method_name for name in shipped()} == METHODS.keys()


def test_the_best_values_are_stored_in_the_dtype_asked_for(tiny: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    config = load_config("lora", {"train.max_steps": 2, "store_dtype": "bfloat16"})
    checkpoint, tokenizer, template = spoken(tiny)
    found = prepare(config, tokenizer, template, {"squad": questions})
    folder, _ = train(config, checkpoint, found, tmp_path / "r", tmp_path / "a", device="cpu")
    assert {t.dtype for t in load_file(folder / "adapter_model.safetensors").values()} == {torch.bfloat16}


def test_a_run_of_its_own_starts_anew_or_goes_on(tiny: Path, tmp_path: Path) -> None:
    config = load_config("lora", {"train.max_steps": 2})
    checkpoint, tokenizer, template = spoken(tiny)
    found = prepare(config, tokenizer, template, {"squad": questions})
    records: list[Any] = []
    places = (tmp_path / "r", tmp_path / "a", "cpu")
    for resume in (False, False, True):
        train(config, checkpoint, found, *places, resume=resume, listen=records.append)
    assert [r["step"] for r in records if "loss" in r] == [1, 2, 1, 2]
    other = load_config("lora", {"train.max_steps": 3})
    with pytest.raises(FinetuneError, match="another configuration"):
        train(other, checkpoint, found, *places, resume=True)
    assert read_card(tmp_path / "a" / "lora").method == "lora"


def test_training_goes_on_from_an_adapter(tiny: Path, tmp_path: Path) -> None:
    checkpoint, tokenizer, template = spoken(tiny)
    first = load_config("lora", {"train.max_steps": 4, "train.learning_rate": 0.05})
    found = prepare(first, tokenizer, template, {"squad": questions})
    places, records = (tmp_path / "r", tmp_path / "a", "cpu"), list[Any]()
    folder, state = train(first, checkpoint, found, *places)
    more = load_config("lora", {"name": "more", "train.max_steps": 1, "start": "lora"})
    train(more, checkpoint, found, *places, listen=records.append, start=folder)
    assert state.best_step > 0, "what was learned is there to go on from"
    assert records[0]["val_loss"] == pytest.approx(state.best_loss, rel=1e-6)
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    (other / TENSORS).write_bytes(save({n: 2 * t for n, t in load((folder / TENSORS).read_bytes()).items()}))
    with pytest.raises(FinetuneError, match="another configuration, dataset or model"):
        train(more, checkpoint, found, *places, resume=True, start=other)
    with pytest.raises(FinetuneError, match=r"adapter 'lora' has lora_rank = 16; \[method\] has to say the same"):
        train(load_config("lora", {"method.lora_rank": 4}), checkpoint, found, *places, start=folder)
    with pytest.raises(FinetuneError, match="adapter 'lora' has the method lora"):
        train(load_config("bottleneck"), checkpoint, found, *places, start=folder)


def test_a_run_is_known_by_all_that_its_numbers_depend_on(tiny: Path, tmp_path: Path) -> None:
    """Configuration, model, every example and what is learned of it, and the adapter that it goes on from."""
    checkpoint, tokenizer, template = spoken(tiny)
    config = load_config("lora", {"train.val_size": 0.5})
    found, base = prepare(config, tokenizer, template, {"squad": questions}), base_of(checkpoint, None)
    starts = [tmp_path / "a", tmp_path / "b"]
    for place in starts:
        place.mkdir()
        (place / TENSORS).write_bytes(place.name.encode())
    first = found.training[0]
    others = [replace(first, ids=(*first.ids[:-1], 7)), replace(first, learned=(True,) * len(first.learned))]
    made = [
        identity(config, base, found),
        identity(load_config("lora", {"train.val_size": 0.5, "train.seed": 1}), base, found),
        identity(config, replace(base, model_hash="x"), found),
        *(identity(config, base, replace(found, training=[other, *found.training[1:]])) for other in others),
        identity(config, base, replace(found, validation=found.validation[1:])),
        *(identity(config, base, found, place) for place in starts),
    ]
    assert len(set(made)) == len(made)
    assert identity(config, base, prepare(config, tokenizer, template, {"squad": questions})) == made[0]


def test_vectors_of_examples_are_split_by_document(tiny: Path) -> None:
    _, tokenizer, template = spoken(tiny)
    found: Prepared = prepare(load_config("lora", {"train.val_size": 0.5}), tokenizer, template, {"squad": questions})
    assert {e.group for e in found.training}.isdisjoint({e.group for e in found.validation})
    assert (len(found.training), len(found.validation)) == (6, 6)
    assert isinstance(found.training[0], Example)


def test_a_file_can_be_for_validation_only(tiny: Path) -> None:
    """Its documents are validated on wherever they come from."""
    _, tokenizer, template = spoken(tiny)

    def some(path: Any, spec: Any, seed: int, faults: Any) -> list[Sample]:
        found = questions(path, spec.model_copy(update={"only_validate": False}), seed, faults)
        return [s for s in found if not spec.only_validate or s.group == "g2"]

    table = {"file": "x", "format": "squad"}
    changes = {"data": [table, {**table, "only_validate": True}], "train.val_size": 0}
    found = prepare(load_config("lora", changes), tokenizer, template, {"squad": some})
    assert {e.group for e in found.training} == {"g0", "g1", "g3"}
    assert {e.group for e in found.validation} == {"g2"}


def test_a_file_that_holds_nothing_is_not_told_by_another_file_s_fault(tiny: Path, tmp_path: Path) -> None:
    _, tokenizer, template = spoken(tiny)

    def none_of_the_second(path: Any, spec: Any, seed: int, faults: Any) -> list[Sample]:
        if path.name == "second":
            return []
        faults.add("first:1", "not an object")
        return questions(path, spec, seed, faults)

    changes = {"data": [{"file": name, "format": "squad"} for name in ("first", "second")]}
    with pytest.raises(FinetuneError) as raised:
        prepare(load_config("lora", changes), tokenizer, template, {"squad": none_of_the_second})
    assert str(raised.value) == "second holds no sample that can be used as squad"


BASIC = 'name = "x"\n[method]\nname = "lora"\n[[data]]\nfile = "a"\nformat = "text"\n'


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("nam = 1\n" + BASIC, "unknown key 'nam' in"),
        (BASIC + "[train]\nlearning_rat = 1\n", "unknown key 'learning_rat' in [train] of"),
        (BASIC + "[train]\nlearning_rate = -1\n", "'train.learning_rate' in"),
        (BASIC.replace("format", "fromat"), "unknown key 'fromat' in [data] of"),
        (BASIC.replace("lora", "lroa"), "there is no method 'lroa'; did you mean 'lora'"),
        (BASIC.replace('[method]\nname = "lora"\n', ""), "'method' in"),
        (BASIC.replace('[method]\nname = "lora"', "[method]"), "[method] has no name"),
        (BASIC.replace('"x"', '"../x"'), "'name' in"),
        ("x = ", "cannot be read as TOML"),
    ],
)
def test_what_is_wrong_is_told(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(FinetuneError) as raised:
        load_config(str(tmp_path / "c.toml"))
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)


def test_unknown_names_suggest_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(FinetuneError, match=r"no configuration of that name; did you mean .lora."):
        load_config("lorra")
    with pytest.raises(FinetuneError, match=r"there is no 'data\.7\.file' to change"):
        load_config("lora", {"data.7.file": "x"})
    assert isinstance(load_config("lora", {"train.epochs": 5}), Config)


def test_no_example_is_longer_than_the_model_has_room_for(tiny: Path, tmp_path: Path) -> None:
    """By default it is left out; a cutoff_len that says otherwise is told before anything runs."""
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps({"instruction": f"{i}?", "output": "x " * n}) for i, n in enumerate((3, 70))))
    data = {"data": [{"file": str(path), "format": "alpaca"}]}
    _, tokenizer, template = spoken(tiny)
    whole = prepare(load_config("prompt-tuning", data), tokenizer, template, {})
    room = max(len(each.ids) for each in (*whole.training, *whole.validation)) - 1
    found = prepare(load_config("prompt-tuning", data), tokenizer, template, {}, context=room + 20)
    assert len(found.training) + len(found.validation) == 1
    assert f"cutoff_len is {room}" in found.faults.lines[0]
    given = load_config("prompt-tuning", {**data, "train.cutoff_len": room + 1})
    with pytest.raises(FinetuneError, match=f"room for {room} tokens behind 20 virtual tokens; lower it"):
        prepare(given, tokenizer, template, {}, context=room + 20)
