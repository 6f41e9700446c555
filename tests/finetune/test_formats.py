"""PEFT folders in and out, the merged export, and what an adapter refuses to be loaded beside."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from finetune.adapters import METHODS
from finetune.adapters.base import Adapter
from finetune.errors import FinetuneError
from finetune.export import export
from finetune.folder import (
    CONFIG,
    FORMAT,
    OURS,
    TENSORS,
    Base,
    load_adapter,
    peft_folder,
    read_card,
    require_base,
    save_adapter,
)
from llama.checkpoint import load_transformer, open_checkpoint
from llama.config import ModelConfig, llama3_divisors
from llama.identity import model_hash, tokenizer_hash
from llama.model import Transformer

from .conftest import FORMS, adapted, shaken

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

IDS = torch.tensor([[7, 3, 90, 41, 5, 5, 62, 18, 33, 2]])
BASE = Base("tiny", "a" * 64, "b" * 64, "{{ messages }}")
# Heads as wide as dim / heads: the library's adaption prompts are wrong for others.
SHAPE = {
    "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 96, "max_position_embeddings": 512, "tie_word_embeddings": True,
}  # fmt: skip
FITTING = ["lora", "rslora", "dora", "qlora", "scalar gates", "prefix_tuning", "prefix by a network", "prompt_tuning",
           "p-tuning mlp"]  # fmt: skip
STARTS = ["gaussian", "orthogonal", "mica"]  # first values of PEFT's that are none of the base's business


@pytest.fixture(scope="module")
def hf_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(4)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE, initializer_range=0.3))
    folder = tmp_path_factory.mktemp("hf") / "tiny"
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def ours(hf_folder: Path) -> Transformer:
    return load_transformer(open_checkpoint(hf_folder), torch.float32, "cpu")


@pytest.fixture
def theirs(hf_folder: Path) -> Any:
    return transformers.LlamaForCausalLM.from_pretrained(hf_folder).eval()


def logits(model: Transformer, adapter: Adapter) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS, adaptation=adapter.eval())[0]  # type: ignore[no-any-return]


def said(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits[0, -IDS.shape[1] :]  # type: ignore[no-any-return]


@pytest.mark.parametrize("form", FITTING)
def test_peft_loads_what_we_write(form: str, ours: Transformer, theirs: Any, tmp_path: Path) -> None:
    model, adapter = adapted(form, ours)
    shaken(model, adapter)
    card = save_adapter(tmp_path / "adapter", FORMS[form][0], adapter, model, BASE)
    assert card.peft
    peft_folder(tmp_path / "alone", tmp_path / "adapter", model.config)
    loaded = peft.PeftModel.from_pretrained(theirs, tmp_path / "alone").eval()
    expected = said(loaded)
    if form == "qlora":  # the library beside the exact base; ours beside the same
        plain = load_transformer(open_checkpoint(Path(theirs.config._name_or_path)), torch.float32, "cpu")
        other = METHODS["lora"].make(plain.config, METHODS["lora"].options(lora_rank=4))
        other.restore(plain, adapter.stored(model))
        model, adapter = plain, other
    assert (logits(model, adapter) - expected).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("form", "config"),
    [
        ("lora", peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=9, target_modules=["q_proj", "down_proj"])),
        ("lora", peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=9, target_modules="all-linear")),
        ("lora", peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=9, use_rslora=True, target_modules=["v_proj"])),
        ("lora", peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=9, use_dora=True, target_modules=["o_proj"])),
        *(
            ("lora", peft.LoraConfig(task_type="CAUSAL_LM", r=4, init_lora_weights=start, target_modules=["q_proj"]))
            for start in STARTS
        ),
        ("llama_adapter", peft.AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=5, adapter_layers=3)),
        ("prefix_tuning", peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=6)),
        ("prompt_tuning", peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=6)),
    ],
    ids=["lora", "all-linear", "rslora", "dora", *STARTS, "adaption prompt", "prefix", "prompt"],
)
def test_we_load_what_peft_writes(form: str, config: Any, ours: Transformer, theirs: Any, tmp_path: Path) -> None:
    torch.manual_seed(6)
    made = peft.get_peft_model(theirs, config)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    made.save_pretrained(tmp_path / "theirs")
    model, adapter, card = load_adapter(tmp_path / "theirs", ours)
    assert card.method == form
    assert card.base is None
    assert (logits(model, adapter) - said(made.eval())).abs().max() < 1e-3


def test_a_loaded_adapter_drops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that PEFT wrote says with what dropout it was trained; it is used without."""
    monkeypatch.setitem(FORMS, "lora", ("lora", {"lora_rank": 4, "lora_dropout": 0.5}))
    model, adapter = adapted("lora")
    shaken(model, adapter)
    save_adapter(tmp_path / "a", "lora", adapter, model, BASE)
    (tmp_path / "a" / OURS).unlink()
    entered, loaded, _ = load_adapter(tmp_path / "a", adapted("lora")[0])
    assert loaded.options.lora_dropout == 0.5  # type: ignore[union-attr]
    assert torch.allclose(entered(IDS, adaptation=loaded), model(IDS, adaptation=adapter.eval()), atol=1e-5)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_paddocks_own_forms_come_back(tmp_path: Path) -> None:
    for form, (name, _) in FORMS.items():
        model, adapter = adapted(form)
        shaken(model, adapter)
        save_adapter(tmp_path / form, name, adapter, model, BASE, notes={"val_loss": 1.5})
        other_model, other, card = load_adapter(tmp_path / form, adapted("lora")[0], BASE)
        assert torch.allclose(logits(other_model, other), logits(model, adapter), atol=1e-5), form
        assert card.notes == {"val_loss": 1.5}
        assert card.base == BASE


def test_what_peft_cannot_say_is_refused(tmp_path: Path) -> None:
    for form, why in (
        ("llama_adapter", 'gate = "scalar"'),
        ("scalar gates", "heads as wide as dim / heads = 12, and the model's have 16; keep it as it is"),
        ("bottleneck", "PEFT has no form for bottleneck; it cannot be merged either, keep it as it is"),
        *((form, f"PEFT has no form for {form}; merge it, or") for form in ("freeze", "llama_pro", "full")),
    ):
        model, adapter = adapted(form)
        save_adapter(tmp_path / form, FORMS[form][0], adapter, model, BASE)
        assert not (tmp_path / form / "adapter_config.json").exists()
        with pytest.raises(FinetuneError, match=why):
            peft_folder(tmp_path / "out", tmp_path / form, model.config)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("bias", "all", "bias = 'all'"),
        ("modules_to_save", ["lm_head"], "modules_to_save"),
        ("rank_pattern", {"q_proj": 2}, "rank_pattern"),
        ("peft_type", "LOHA", "kind 'LOHA'; known are"),
        ("peft_type", ["LORA"], "kind"),
        ("target_modules", ["qkv"], "no 'qkv'"),
        ("target_modules", 5, "'b' cannot be used"),
        ("target_modules", "(", "'b' cannot be used"),
        ("lora_alpha", math.inf, "finite"),
        *(
            ("init_lora_weights", name, f"init_lora_weights = '{name}', and only gaussian")
            for name in ("pissa", "pissa_niter_4", "olora", "OLoRA", "corda", "loftq", "lora_ga", "another")
        ),
    ],
)
def test_what_we_cannot_do_is_refused(key: str, value: Any, told: str, ours: Transformer, tmp_path: Path) -> None:
    model, adapter = adapted("lora", ours)
    save_adapter(tmp_path / "a", "lora", adapter, model, BASE)
    peft_folder(tmp_path / "b", tmp_path / "a", model.config)
    (tmp_path / "b" / "paddock.json").unlink()  # as PEFT itself writes a folder
    path = tmp_path / "b" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(FinetuneError, match=told):
        load_adapter(tmp_path / "b", ours)


def test_every_key_is_written(ours: Transformer, tmp_path: Path) -> None:
    model, adapter = adapted("lora", ours)
    save_adapter(tmp_path / "a", "lora", adapter, model, BASE)
    keys = {
        "peft_type", "task_type", "base_model_name_or_path", "revision", "inference_mode", "r", "lora_alpha",
        "lora_dropout", "target_modules", "bias", "fan_in_fan_out", "init_lora_weights", "use_rslora", "use_dora",
        "rank_pattern", "alpha_pattern", "layers_to_transform", "layers_pattern", "modules_to_save",
    }  # fmt: skip
    assert keys == json.loads((tmp_path / "a" / "adapter_config.json").read_text()).keys()
    names = load_file(tmp_path / "a" / "adapter_model.safetensors").keys()
    assert "base_model.model.model.layers.3.mlp.down_proj.lora_B.weight" in names


def test_an_adapter_is_exported_to_the_folder_one_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, adapter = adapted("lora")
    save_adapter(tmp_path / "a", "lora", adapter, model, BASE)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    peft_folder(Path(), tmp_path / "a", model.config)
    assert {each.name for each in (tmp_path / "here").iterdir()} == {CONFIG, OURS, TENSORS}
    assert {each.name for each in tmp_path.iterdir()} == {"a", "here"}


def test_another_base_is_refused_by_name(tmp_path: Path) -> None:
    model, adapter = adapted("lora")
    save_adapter(tmp_path / "reader", "lora", adapter, model, BASE)
    card = read_card(tmp_path / "reader")
    with pytest.raises(FinetuneError, match="adapter 'reader' was made for tiny, and other has another model"):
        require_base("reader", card, replace(BASE, model="other", model_hash="c" * 64))
    with pytest.raises(FinetuneError, match="another vocabulary"):
        load_adapter(tmp_path / "reader", model, replace(BASE, tokenizer_hash="c" * 64))
    assert card.base is not None
    assert card.base.chat_template == "{{ messages }}"


def test_a_damaged_adapter_is_one_line(tmp_path: Path) -> None:
    model, adapter = adapted("lora")
    save_adapter(tmp_path / "a", "lora", adapter, model, BASE)
    tensors = tmp_path / "a" / "adapter_model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-5])
    with pytest.raises(FinetuneError, match="missing or damaged"):
        load_adapter(tmp_path / "a", model)
    save_file({"x": torch.zeros(1)}, tensors)
    with pytest.raises(FinetuneError, match="adapter 'a' cannot be used: its x is not of"):
        load_adapter(tmp_path / "a", model)
    (tmp_path / "a" / "paddock.json").write_text("{")
    with pytest.raises(FinetuneError, match="no adapter that can be read"):
        read_card(tmp_path / "a")
    harms = [{"method": 5}, {"method": ["lora"]}, {"options": [1]}, {"base": {"x": 1}}, {"notes": [1]}, {"notes": None}]
    for harm in harms:
        card = {"format": FORMAT, "method": "lora", "options": {}, "base": None, "peft": True, **harm}
        (tmp_path / "a" / "paddock.json").write_text(json.dumps(card))
        with pytest.raises(FinetuneError, match="no adapter that can be read"):
            read_card(tmp_path / "a")
    with pytest.raises(FinetuneError, match="there is no adapter"):
        read_card(tmp_path / "none")


# -- the merged model --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["lora", "dora", "full", "llama_pro", "qlora"])
def test_transformers_loads_the_merged_export(form: str, ours: Transformer, gguf_path: Path, tmp_path: Path) -> None:
    """The weights are the tiny model's; the vocabulary comes from the default model's file."""
    model, adapter = adapted(form, ours)
    shaken(model, adapter)
    expected = logits(model, adapter)
    adapter.merge(model)
    missing = export(model, open_checkpoint(gguf_path), tmp_path / "out", "{{ messages[0].content }}", torch.float32)
    assert missing == []
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert loaded.config.num_hidden_layers == model.config.n_layers
    assert loaded.lm_head.weight.data_ptr() == loaded.model.embed_tokens.weight.data_ptr()
    with torch.no_grad():
        assert (loaded(IDS).logits[0] - expected).abs().max() < 1e-3
    again = load_transformer(open_checkpoint(tmp_path / "out"), torch.float32, "cpu")
    with torch.no_grad():
        assert (again(IDS)[0] - expected).abs().max() < 1e-4
    with pytest.raises(FinetuneError, match="not empty"):
        export(model, open_checkpoint(gguf_path), tmp_path / "out", None, torch.float32)


def test_a_model_is_exported_to_the_folder_one_is_in(
    ours: Transformer, gguf_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    export(ours, open_checkpoint(gguf_path), Path(), None, torch.float32)
    assert (tmp_path / "here" / "config.json").is_file()
    assert [each.name for each in tmp_path.iterdir()] == ["here"]


@pytest.mark.parametrize("form", ["lora", "full"])
def test_a_merged_export_keeps_an_output_of_its_own(form: str, gguf_path: Path, tmp_path: Path) -> None:
    """The output matrix of an untied base is written as it is, trained or not, and comes back untied."""
    torch.manual_seed(4)
    shape = {**SHAPE, "tie_word_embeddings": False, "initializer_range": 0.3}
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape)).save_pretrained(tmp_path / "base")
    base = load_transformer(open_checkpoint(tmp_path / "base"), torch.float32, "cpu")
    before = base.lm_head.weight.clone()
    model, adapter = adapted(form, base)
    shaken(model, adapter)
    expected = logits(model, adapter)
    adapter.merge(model)
    assert export(model, open_checkpoint(gguf_path), tmp_path / "out", None, torch.float32) == []
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert loaded.config.tie_word_embeddings is False
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    assert torch.equal(loaded.lm_head.weight, before) == (form == "lora")
    again = load_transformer(open_checkpoint(tmp_path / "out"), torch.float32, "cpu")
    assert again.lm_head.weight.data_ptr() != again.embed_tokens.weight.data_ptr()
    with torch.no_grad():
        assert (loaded(IDS).logits[0] - expected).abs().max() < 1e-3
        assert (again(IDS)[0] - expected).abs().max() < 1e-4


def test_an_export_that_the_disk_has_no_room_for_leaves_nothing(
    ours: Transformer, gguf_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    given = (ours, open_checkpoint(gguf_path), tmp_path / "out", None, torch.float32)
    with monkeypatch.context() as patch:
        patch.setattr("finetune.export.save_torch_state_dict", full)
        with pytest.raises(FinetuneError, match="out cannot be written: the disk is full; make room, and try again"):
            export(*given)
    assert list(tmp_path.iterdir()) == []
    export(*given)
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_exported_vocabulary_is_the_models(ours: Transformer, gguf_path: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(gguf_path)
    export(ours, checkpoint, tmp_path / "out", checkpoint.chat_template, torch.bfloat16)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    known = checkpoint.tokenizer()
    for text in (
        "The key box: 4471.\n\nI'm  here",
        "每年十月，羊驼群会被带下山。",
        "def f(x):\n\treturn x * 2  # ½ 🦙",
    ):
        assert theirs(text, add_special_tokens=False).input_ids == known.encode(text)
        assert theirs.decode(known.encode(text)) == text
    assert theirs.eos_token_id in known.eos_ids
    asked = [{"role": "user", "content": "What?"}]
    said = theirs.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    assert "<|im_start|>user\nWhat?<|im_end|>" in said


@pytest.mark.parametrize(("ends", "written"), [({0, 2}, [0, 2]), ({2}, 2)])
def test_every_token_that_ends_a_text_is_written(
    ends: set[int], written: Any, ours: Transformer, gguf_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint(gguf_path)
    known = checkpoint.tokenizer()
    known.eos_ids = frozenset(ends)
    monkeypatch.setattr(type(checkpoint), "tokenizer", lambda self: known)
    export(ours, checkpoint, tmp_path / "out", None, torch.float32)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == written


@pytest.mark.parametrize("factor", [None, 8.0, 32.0, "linear"])
def test_rotary_scaling_travels(factor: Any, gguf_path: Path, tmp_path: Path) -> None:
    config = ModelConfig(
        dim=48, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=24, ffn_dim=64, vocab_size=96, context_length=512,
        rope_theta=500_000.0, rope_divisors=None if factor is None else (2.0,) * 12 if factor == "linear" else
        llama3_divisors(24, 500_000.0, factor, 1.0, 4.0, 8192.0),
    )  # fmt: skip
    torch.manual_seed(0)
    model = Transformer(config)
    for parameter in model.parameters():
        torch.nn.init.ones_(parameter) if parameter.ndim == 1 else torch.nn.init.normal_(parameter, std=0.3)
    export(model, open_checkpoint(gguf_path), tmp_path / "out", None, torch.float32)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    ids = torch.arange(90)[None]
    with torch.no_grad():
        assert (loaded(ids).logits - model(ids)).abs().max() < 1e-3
    odd = replace(config, rope_divisors=tuple(1.0 + i for i in range(12)))
    with pytest.raises(FinetuneError, match="follows no rule"):
        export(Transformer(odd), open_checkpoint(gguf_path), tmp_path / "odd", None, torch.float32)


# -- identity ----------------------------------------------------------------------------------------------------------


def test_hashes_are_of_content(gguf_path: Path, hf_folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "hashes.json"
    first = model_hash(hf_folder, cache)
    assert model_hash(hf_folder, cache) == model_hash(hf_folder) == first
    stamp = next(iter(json.loads(cache.read_text())))
    cache.write_text(json.dumps({stamp: "remembered"}))
    assert model_hash(hf_folder, cache) == "remembered"
    other = tmp_path / "other"
    other.mkdir()
    for file in hf_folder.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    assert model_hash(other, cache) == first
    weights = other / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert model_hash(other) != first
    known = open_checkpoint(gguf_path).tokenizer()
    assert tokenizer_hash(known) == tokenizer_hash(open_checkpoint(gguf_path).tokenizer())
    changed = open_checkpoint(gguf_path).tokenizer()
    changed.eos_ids = frozenset({5})
    assert tokenizer_hash(changed) != tokenizer_hash(known)
