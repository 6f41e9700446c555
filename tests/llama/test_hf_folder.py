"""Hugging Face folders beside transformers, on tiny random models: the same ids, the same logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file
from tokenizers import decoders, models, pre_tokenizers, processors

from llama.checkpoint import load_transformer, open_checkpoint
from llama.config import ModelConfig, llama3_divisors
from llama.engine import load_engine
from llama.errors import LlamaError
from llama.sampling import SamplingParams

transformers = pytest.importorskip("transformers")

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
SHAPES: dict[str, dict[str, Any]] = {
    "gqa, tied": {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "mha": {"num_key_value_heads": 4},
    "mqa": {"num_key_value_heads": 1},
    "wide heads": {"head_dim": 20},
    "llama3 scaling": {"rope_scaling": LLAMA3, "rope_theta": 500_000.0},
    "linear scaling": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
}
TEXT = "ab abc 中文 12345\n\n  don't é😀"


def tokenizer() -> tokenizers.Tokenizer:
    """Byte-level BPE with a BOS in front, special tokens behind the vocabulary, as Llama 3 has them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*alphabet, "ab", "abc"])}
    found = tokenizers.Tokenizer(models.BPE(vocabulary, [("a", "b"), ("ab", "c")]))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    found.add_special_tokens(["<|bos|>", "<|eos|>", "<|eot|>"])
    found.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", found.token_to_id("<|bos|>"))]
    )
    return found


def folder(path: Path, shards: bool = False, **changed: Any) -> tuple[Path, Any]:
    """A folder as transformers writes it, and the model that was written."""
    torch.manual_seed(0)
    made = tokenizer()
    bos, eos, eot = (made.token_to_id(name) for name in ("<|bos|>", "<|eos|>", "<|eot|>"))
    config = transformers.LlamaConfig(
        **{
            "hidden_size": 48,
            "intermediate_size": 80,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "vocab_size": made.get_vocab_size(),
            "max_position_embeddings": 512,
            "bos_token_id": bos,
            "eos_token_id": eos,
            "initializer_range": 0.3,
            "rms_norm_eps": 1e-5,
        }
        | changed
    )
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(path, max_shard_size="60KB" if shards else "5GB")
    made.save(str(path / "tokenizer.json"))
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [eos, eot]}))
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|eot|>{% endfor %}a:"
    (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return path, model


@pytest.mark.parametrize("name", SHAPES)
def test_logits_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    path, model = folder(tmp_path / "m", **SHAPES[name])
    ours = load_transformer(open_checkpoint(path), torch.float32, "cpu")
    tokens = torch.randint(0, 250, (2, 300))  # past the original context of the scaled one
    with torch.inference_mode():
        torch.testing.assert_close(ours(tokens), model(tokens).logits, atol=2e-4, rtol=1e-4)
    assert (ours.lm_head.weight is ours.embed_tokens.weight) == ("tied" in name)


def test_several_shards(tmp_path: Path) -> None:
    path, model = folder(tmp_path / "m", shards=True)
    assert len(list(path.glob("*.safetensors"))) > 2
    ours = load_transformer(open_checkpoint(path), torch.float32, "cpu")
    tokens = torch.randint(0, 250, (1, 64))
    with torch.inference_mode():
        torch.testing.assert_close(ours(tokens), model(tokens).logits, atol=2e-4, rtol=1e-4)


def test_llama3_divisors_are_golden() -> None:
    """Llama 3.1: theta 500,000, factor 8, 1 and 4 of 8,192; frequencies as transformers computes them."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = transformers.LlamaConfig(
        hidden_size=512,
        num_attention_heads=4,
        rope_theta=500_000.0,
        max_position_embeddings=131_072,
        rope_scaling={**LLAMA3, "original_max_position_embeddings": 8192},
    )
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    base = 500_000.0 ** -(torch.arange(0, 128, 2) / 128)
    divisors = llama3_divisors(128, 500_000.0, 8.0, 1.0, 4.0, 8192.0)
    torch.testing.assert_close(base / torch.tensor(divisors), expected)
    assert (divisors[0], divisors[-1]) == (1.0, 8.0)
    assert 1 < sorted(divisors)[len(divisors) * 6 // 10] <= 8


def test_tokens_and_chat(tmp_path: Path) -> None:
    path, _ = folder(tmp_path / "m")
    engine = load_engine(path, "cpu", "float32")
    theirs = tokenizer()
    ids = engine.tokenizer.encode(TEXT)
    assert ids == theirs.encode(TEXT, add_special_tokens=False).ids
    assert engine.tokenizer.decode(ids) == TEXT
    eot = theirs.token_to_id("<|eot|>")
    assert engine.tokenizer.eos_ids == {theirs.token_to_id("<|eos|>"), eot}, "of both files"
    said = engine.encode_chat([{"role": "u", "content": "hi <|eot|>"}])
    assert said.count(theirs.token_to_id("<|bos|>")) == 1
    assert said.count(eot) == 1, "the template's, not the one that somebody typed"
    assert eot not in engine.tokenizer.encode("<|eot|>")
    generation = engine.generate(said, SamplingParams(max_tokens=5))
    list(generation)
    assert len(generation.tokens) <= 5


def test_each_of_several_ends_stops(tmp_path: Path) -> None:
    """generation_config.json lists ends, Llama 3.1 three of them; config.json may name another."""
    path, _ = folder(tmp_path / "m")
    rewrite(path / "config.json", eos_token_id=0)
    prompt = [1, 2, 3]

    def generated(*ends: int) -> tuple[list[int], str]:
        (path / "generation_config.json").write_text(json.dumps({"eos_token_id": list(ends)}))
        generation = load_engine(path, "cpu", "float32").generate(prompt, SamplingParams(max_tokens=12))
        list(generation)
        return generation.tokens, generation.usage.finish_reason

    free, reason = generated(255, 254, 253)
    assert (len(free), reason) == (12, "length")
    for token in dict.fromkeys(free):
        assert generated(255, token, 254) == (free[: free.index(token)], "stop")


def test_what_old_writers_stored_besides(tmp_path: Path) -> None:
    """Frequencies that follow from the configuration, in one file and in several."""
    for shards in (False, True):
        path, _ = folder(tmp_path / str(shards), shards=shards)
        file = min(path.glob("*.safetensors"))
        name = "model.layers.0.self_attn.rotary_emb.inv_freq"
        save_file({**load_file(file), name: torch.ones(6)}, file)
        if shards:
            index = path / "model.safetensors.index.json"
            places = json.loads(index.read_text())["weight_map"]
            rewrite(index, weight_map={**places, name: file.name})
        load_transformer(open_checkpoint(path), torch.float32, "cpu")


def test_the_default_among_several_templates(tmp_path: Path) -> None:
    path, _ = folder(tmp_path / "m")
    several = [{"name": name, "template": f"of {name}"} for name in ("tool_use", "default", "rag")]
    rewrite(path / "tokenizer_config.json", chat_template=several)
    assert open_checkpoint(path).chat_template == "of default"
    rewrite(path / "tokenizer_config.json", chat_template=[*several[:1], "damaged"])
    assert open_checkpoint(path).chat_template is None


def test_where_the_base_of_the_rotation_stands(tmp_path: Path) -> None:
    """transformers 5 writes it beside the scaling; a key outside, of an older writer, does not count then."""
    path, _ = folder(tmp_path / "m")
    for changed in (
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}, "rope_theta": 70_000.0},
        {"rope_parameters": "gone", "rope_theta": 70_000.0},
        {"rope_parameters": "gone", "rope_theta": "gone"},
    ):
        rewrite(path / "config.json", **changed)
        theirs = transformers.AutoConfig.from_pretrained(path).rope_parameters["rope_theta"]
        assert open_checkpoint(path).config.rope_theta == theirs, changed


def rewrite(path: Path, **changed: Any) -> None:
    found = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in (found | changed).items() if v != "gone"}))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"model_type": "gpt2"}, "gpt2"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2}}, "yarn"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "factor"),
        ({"hidden_size": "gone"}, "hidden_size"),
        ({"hidden_size": "many"}, "cannot be read"),
        ({"num_attention_heads": 0}, "n_heads is 0"),
        ({"num_key_value_heads": 3}, "evenly"),
        ({"intermediate_size": 81}, "not"),
        ({"num_hidden_layers": 2}, "surplus model.layers.2"),
        ({"num_hidden_layers": 4}, "missing layers.3"),
        ({"vocab_size": 10**9}, "vocab_size"),
    ],
)
def test_configurations_that_do_not_fit(tmp_path: Path, changed: dict[str, Any], says: str) -> None:
    path, _ = folder(tmp_path / "m")
    rewrite(path / "config.json", **changed)
    with pytest.raises(LlamaError, match=says) as error:
        load_transformer(open_checkpoint(path), torch.float32, "cpu")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changed", "context"),
    [
        ({"sliding_window": 40}, 40),
        ({"sliding_window": None}, 512),
        ({"sliding_window": 512}, 512),
        ({"max_position_embeddings": 9000}, 4096),
        ({"max_position_embeddings": 9000, "sliding_window": None}, 9000),
        ({"max_position_embeddings": "gone"}, 4096),
        ({"max_position_embeddings": "gone", "sliding_window": None}, 131_072),
    ],
)
def test_a_mistral_up_to_its_window(tmp_path: Path, changed: dict[str, Any], context: int) -> None:
    """Within it, what transformers computes; beyond it, where that is another thing, nothing."""
    path, _ = folder(tmp_path / "m")
    rewrite(path / "config.json", model_type="mistral", architectures=["MistralForCausalLM"], **changed)
    ours = load_transformer(open_checkpoint(path), torch.float32, "cpu")
    assert ours.config.context_length == context
    length = min(context, 60)
    tokens = torch.randint(0, 250, (2, length + 1), generator=torch.Generator().manual_seed(4))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    assert theirs.config.model_type == "mistral"
    with torch.inference_mode():
        expected = theirs(tokens).logits
        torch.testing.assert_close(ours(tokens[:, :-1]), expected[:, :-1], atol=2e-4, rtol=1e-4)
        if length == context:
            with pytest.raises(LlamaError, match=f"context of {context}"):
                ours(tokens)


def test_defaults_are_those_of_transformers() -> None:
    """Of what a config.json may leave out, for both architectures."""
    least = {"hidden_size": 64, "num_attention_heads": 16, "num_hidden_layers": 2, "intermediate_size": 128,
             "vocab_size": 300}  # fmt: skip
    for kind, theirs in {"llama": transformers.LlamaConfig, "mistral": transformers.MistralConfig}.items():
        ours, other = ModelConfig.from_hf({**least, "model_type": kind}), theirs(**least)
        longest = min(other.max_position_embeddings, getattr(other, "sliding_window", 1 << 40))
        assert (ours.n_kv_heads, ours.norm_eps, ours.context_length, ours.head_dim, ours.tied) == (
            other.num_key_value_heads, other.rms_norm_eps, longest, other.head_dim, other.tie_word_embeddings
        )  # fmt: skip
        assert ours.rope_theta == other.rope_parameters["rope_theta"]


def test_damaged_folders(tmp_path: Path) -> None:
    def refused(path: Path) -> str:
        with pytest.raises(LlamaError) as error:
            load_engine(path, "cpu", "float32")
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "config.json" in refused(tmp_path)
    path, _ = folder(tmp_path / "one")
    weights = path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    assert "model.safetensors" in refused(path)
    weights.write_bytes(b"\xff" * 8 + whole[8:])
    assert "model.safetensors" in refused(path)
    weights.unlink()
    (path / "pytorch_model.bin").write_bytes(b"")
    assert "pickle" in refused(path)

    path, _ = folder(tmp_path / "two", shards=True)
    index = path / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    shard = path / next(iter(places.values()))
    whole = shard.read_bytes()
    shard.unlink()
    assert shard.name in refused(path)
    other = next(name for name in places.values() if name != shard.name)
    save_file(load_file(path / other), shard)
    assert "index" in refused(path)
    shard.write_bytes(whole)
    rewrite(index, weight_map={**places, "model.norm.weight": "../elsewhere.safetensors"})
    assert "outside" in refused(path)
    index.write_text("{")
    assert "JSON" in refused(path)


def test_vocabularies_that_are_not_known(tmp_path: Path) -> None:
    path, _ = folder(tmp_path / "m")
    made = tokenizer()
    made.decoder = decoders.Metaspace()
    made.save(str(path / "tokenizer.json"))
    with pytest.raises(LlamaError, match="byte-level"):
        load_engine(path, "cpu", "float32")
    (path / "tokenizer.json").write_text('{"model": {"type": "BPE"}, "decoder": {"type": "ByteLevel"}}')
    with pytest.raises(LlamaError, match="damaged"):
        load_engine(path, "cpu", "float32")
    (path / "tokenizer.json").unlink()
    with pytest.raises(LlamaError, match=r"tokenizer\.json"):
        load_engine(path, "cpu", "float32")


@pytest.mark.parametrize("ids", [{"eos_token_id": [-3, 99_999]}, {"eos_token_id": -1}, {"bos_token_id": 261}])
@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_ends_beyond_the_vocabulary(tmp_path: Path, ids: dict[str, Any], file: str) -> None:
    """Of 261 tokens; what generation_config.json says of the beginning is not read."""
    path, _ = folder(tmp_path / "m")
    rewrite(path / file, **ids)
    if file != "config.json" and "bos_token_id" in ids:
        open_checkpoint(path).tokenizer()
        return
    with pytest.raises(LlamaError, match="beyond its vocabulary"):
        open_checkpoint(path).tokenizer()


def test_nothing_that_people_write_is_huge() -> None:
    with pytest.raises(LlamaError, match="rotary"):
        ModelConfig(48, 1, 4, 4, 12, 64, 99, 64, rope_divisors=(1.0,) * 5)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, float("inf")) for key in ("hidden_size", "head_dim", "vocab_size", "num_attention_heads",
                                          "num_key_value_heads", "num_hidden_layers", "intermediate_size")),
        ("max_position_embeddings", float("inf")),
        ("rms_norm_eps", float("nan")),
        ("rms_norm_eps", -1.0),
        ("rope_theta", -1.0),
        ("rope_theta", float("nan")),
    ],
)  # fmt: skip
def test_numbers_that_no_model_has(key: str, value: float) -> None:
    config = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2,
              "intermediate_size": 128, "vocab_size": 300, "rms_norm_eps": 1e-5}  # fmt: skip
    assert ModelConfig.from_hf(config).dim == 64
    with pytest.raises(LlamaError):
        ModelConfig.from_hf({**config, key: value})
    metadata = {"general.architecture": "llama", "llama.embedding_length": 64, "llama.attention.head_count": 4,
                "llama.block_count": 2, "llama.feed_forward_length": 128, "tokenizer.ggml.tokens": ["a"] * 300,
                "llama.context_length": 512, "llama.attention.layer_norm_rms_epsilon": 1e-5}  # fmt: skip
    assert ModelConfig.from_gguf(metadata, True).dim == 64
    for name in ("llama.context_length", "llama.block_count", "llama.rope.dimension_count", "llama.rope.freq_base"):
        for wrong in (float("inf"), float("nan")):
            with pytest.raises(LlamaError):
                ModelConfig.from_gguf({**metadata, name: wrong}, True)
