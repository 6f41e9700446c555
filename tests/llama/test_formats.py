"""The same weights in every format: Meta's shards, Hugging Face folders and GGUF files give the same logits."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from llama.checkpoint import load_transformer, open_checkpoint, unpermute
from llama.config import ModelConfig, llama3_divisors
from llama.errors import LlamaError
from llama.model import Transformer

from .formats import (
    GGUF,
    HF,
    SHAPES,
    Shape,
    Weights,
    loaded,
    meta_weights,
    renamed,
    write_gguf,
    write_hf,
    write_meta,
)

TOKENS = torch.randint(0, 96, (2, 80), generator=torch.Generator().manual_seed(1))

WRITERS: dict[str, Callable[[Path, Shape, Weights], Path]] = {
    "meta": write_meta,
    "meta, 2 shards as Llama 2": lambda path, shape, w: write_meta(path, shape, w, 2, embedding=1),
    "meta, 2 shards as Llama 3": lambda path, shape, w: write_meta(path, shape, w, 2, embedding=0),
    "hugging face": write_hf,
    "hugging face, 3 shards": lambda path, shape, w: write_hf(path, shape, w, 3),
    "gguf": write_gguf,
}


def logits(model: Transformer) -> torch.Tensor:
    with torch.inference_mode():
        return model(TOKENS)  # type: ignore[no-any-return]


def oracle(path: Path) -> torch.Tensor:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    with torch.inference_mode():
        return theirs.eval()(TOKENS).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", SHAPES)
def test_every_format_gives_the_same_logits(tmp_path: Path, name: str) -> None:
    """Bit for bit: 80 positions of two rows; and what transformers computes from the Hugging Face folder."""
    shape = SHAPES[name]
    weights = meta_weights(shape)
    found = {}
    for kind, write in WRITERS.items():
        if "shards as" in kind and shape.kv == 1:
            continue  # one key head cannot be shared out
        model = loaded(write(tmp_path / kind, shape, weights))
        assert (model.lm_head.weight is model.embed_tokens.weight) == shape.tied
        found[kind] = logits(model)
    first = found["hugging face"]
    assert [kind for kind, each in found.items() if not torch.equal(each, first)] == []
    torch.testing.assert_close(first, oracle(tmp_path / "hugging face"), atol=2e-4, rtol=1e-4)
    assert first.std() > 0.5, "a model whose logits all are alike would prove nothing"


def test_the_shards_make_up_the_tensors(tmp_path: Path) -> None:
    """Each tensor equals its source, not only what comes out in the end."""
    shape = SHAPES["wide heads"]
    weights = meta_weights(shape)
    state = loaded(write_meta(tmp_path / "m", shape, weights, 2)).state_dict()
    outer = {"tok_embeddings": "embed_tokens", "norm": "norm", "output": "lm_head"}
    for name, value in weights.items():
        heads = shape.heads if "wq" in name else shape.kv if "wk" in name else 0
        expected = unpermute(value, heads) if heads else value
        assert torch.equal(state[renamed(name, HF, "layers", outer)], expected), name
    assert len(state) == len(weights)


def test_two_generations_of_params() -> None:
    """Llama 2 7B and 70B, 3 8B, 3.1 8B and 3.2 1B: what their model cards say."""
    base = {"n_layers": 32, "norm_eps": 1e-05, "vocab_size": -1}
    l1 = ModelConfig.from_meta(
        {**base, "dim": 4096, "n_heads": 32, "multiple_of": 256, "norm_eps": 1e-06}, 32_000, False
    )
    l2 = ModelConfig.from_meta({**base, "dim": 4096, "n_heads": 32, "multiple_of": 256}, 32_000, False)
    big = {"dim": 8192, "n_heads": 64, "n_kv_heads": 8, "multiple_of": 4096, "ffn_dim_multiplier": 1.3}
    l2_70 = ModelConfig.from_meta({**base, **big}, 32_000, False)
    wide = {"dim": 4096, "n_heads": 32, "n_kv_heads": 8, "multiple_of": 1024, "ffn_dim_multiplier": 1.3}
    l3 = ModelConfig.from_meta({**base, **wide, "rope_theta": 500000.0}, 128_256, False)
    l31 = ModelConfig.from_meta({**base, **wide, "rope_theta": 500000.0, "use_scaled_rope": True}, 128_256, False)
    small = {"dim": 2048, "n_heads": 32, "n_kv_heads": 8, "multiple_of": 256, "ffn_dim_multiplier": 1.5}
    l32 = ModelConfig.from_meta({**base, **small, "rope_theta": 500000.0, "use_scaled_rope": True}, 128_256, True)
    assert (l1.context_length, l2.context_length, l3.context_length, l31.context_length) == (2048, 4096, 8192, 131_072)
    assert (l2.ffn_dim, l2_70.ffn_dim, l3.ffn_dim, l32.ffn_dim) == (11_008, 28_672, 14_336, 8192)
    assert (l2.n_kv_heads, l2_70.n_kv_heads, l3.n_kv_heads) == (32, 8, 8)
    assert (l2.vocab_size, l3.vocab_size) == (32_000, 128_256)
    assert l3.rope_divisors is None
    assert l31.rope_divisors == llama3_divisors(128, 500_000.0, 8.0, 1.0, 4.0, 8192.0)
    assert l32.rope_divisors == llama3_divisors(64, 500_000.0, 32.0, 1.0, 4.0, 8192.0)
    three = {"dim": 3072, "n_heads": 24, "n_kv_heads": 8, "multiple_of": 256, "rope_theta": 500000.0}
    l32_3 = ModelConfig.from_meta({**base, **three, "use_scaled_rope": True}, 128_256, True)
    assert l32_3.rope_divisors == llama3_divisors(128, 500_000.0, 32.0, 1.0, 4.0, 8192.0)


def test_what_params_say_of_the_context_and_the_scaling() -> None:
    """Keys that Meta's folders may have and that ours are tested without."""
    base = {"n_layers": 16, "norm_eps": 1e-05, "vocab_size": -1, "dim": 2048, "n_heads": 32, "multiple_of": 256}
    assert ModelConfig.from_meta({**base, "max_seq_len": 1024}, 32_000, True).context_length == 1024
    scaled = {**base, "rope_theta": 500_000.0, "use_scaled_rope": True, "max_seq_len": 4096}
    assert ModelConfig.from_meta(scaled, 32_000, True).context_length == 4096
    for high in (None, 2.0):
        config = ModelConfig.from_meta({**scaled, "rope_high_freq_factor": high}, 32_000, True)
        assert config.rope_divisors == llama3_divisors(64, 500_000.0, 32.0, 1.0, high or 4.0, 8192.0)


def test_one_vocabulary_beside_the_folders_of_all_sizes(tmp_path: Path, tiny_spm: Path) -> None:
    """As Llama 1 and 2 came; one within the folder counts before it."""
    shape = Shape(vocabulary=1024)
    path = write_meta(tmp_path / "7B", shape, meta_weights(shape))
    with pytest.raises(LlamaError, match=r"no tokenizer\.model"):
        open_checkpoint(path).tokenizer()
    shutil.copy(tiny_spm, tmp_path / "tokenizer.model")
    tokenizer = open_checkpoint(path).tokenizer()
    assert tokenizer.decode(tokenizer.encode("abc")) == "abc"
    (path / "tokenizer.model").write_bytes(b"damaged")
    with pytest.raises(LlamaError, match=r"tokenizer\.model is damaged"):
        open_checkpoint(path).tokenizer()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells what is mapped")
@pytest.mark.parametrize("kind", ["hugging face", "meta", "gguf"])
def test_files_are_mapped_not_read(tmp_path: Path, kind: str) -> None:
    """Tensors are pages of the file until somebody wants them, so that no second copy of the whole is held."""
    path = WRITERS[kind](tmp_path / "m", Shape(), meta_weights(Shape()))
    checkpoint = open_checkpoint(path)
    tensors = [each.read() for each in checkpoint.tensors()[0].values()] if kind == "hugging face" else []
    mapped = Path("/proc/self/maps").read_text()
    for file in [path] if path.is_file() else [*path.glob("*.pth"), *path.glob("*.safetensors")]:
        assert str(file) in mapped
    del tensors


def test_positions_beyond_the_first_context(tmp_path: Path) -> None:
    """Llama 3.1's scaling past the 8,192 positions of the first training, and angles kept apart by a bf16 model."""
    transformers = pytest.importorskip("transformers")
    from llama.cache import KVCache

    shape = Shape(scaling=8.0, theta=500_000.0, layers=1)
    path = write_hf(tmp_path / "hf", shape, meta_weights(shape))
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 16_384}))
    model = loaded(path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    ids = torch.randint(0, shape.vocabulary, (1, 8400), generator=torch.Generator().manual_seed(2))
    cache = KVCache(model.config, 1, 8400)
    with torch.inference_mode():
        expected = theirs(ids, logits_to_keep=100).logits
        for start in range(0, 8400, 700):
            ours = model(ids[:, start : start + 700], cache)
        torch.testing.assert_close(ours[:, -100:], expected, atol=5e-4, rtol=1e-3)
        position = torch.tensor([[15_961, 15_962]])
        cos, sin = theirs.model.rotary_emb(torch.zeros(1), position)
    half = model.to(torch.bfloat16)
    mine = half.rope.at(position)
    assert mine[0].dtype == torch.float32
    torch.testing.assert_close(mine[0][0, 0], cos[0, :, : shape.head_dim // 2], atol=2e-3, rtol=0)
    torch.testing.assert_close(mine[1][0, 0], sin[0, :, : shape.head_dim // 2], atol=2e-3, rtol=0)
    assert not torch.equal(mine[0][0, 0, 0], mine[0][0, 0, 1])


def random_blocks(kind: gguf.GGMLQuantizationType, rows: int, width: int) -> np.ndarray[Any, Any]:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(int(kind))
    return rng.integers(0, 256, (rows, width // block * size), dtype=np.uint8)


QUANTIZED = [
    "F32",
    "F16",
    "BF16",
    "Q8_0",
    "Q4_0",
    "Q4_1",
    "Q5_0",
    "Q5_1",
    "Q2_K",
    "Q3_K",
    "Q4_K",
    "Q5_K",
    "Q6_K",
    "IQ4_NL",
]


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("name", QUANTIZED)
def test_every_type_is_read_bit_for_bit(tmp_path: Path, name: str) -> None:
    """Random bytes in each type, whatever they mean (NaN too), by the `gguf` package and from an open file."""
    kind = gguf.GGMLQuantizationType[name]
    shape = Shape(dim=256, ffn=512, heads=4, kv=2, head_dim=64, layers=1)
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in {
        "embedding_length": 256,
        "block_count": 1,
        "feed_forward_length": 512,
        "context_length": 64,
    }.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_token_list(["a"] * shape.vocabulary)
    sizes = {"ffn_up": (512, 256), "ffn_down": (256, 512), "attn_q": (256, 256), "attn_k": (128, 256)}
    data = {name: random_blocks(kind, *size) for name, size in sizes.items()}
    for part, value in data.items():
        writer.add_tensor(f"blk.0.{part}.weight", value, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    stored, surplus = open_checkpoint(path).tensors()
    assert surplus == []
    ours = {
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
    }
    for part, value in data.items():
        expected = torch.from_numpy(np.array(gguf.quants.dequantize(value, kind), np.float32)).reshape(sizes[part])
        heads = {"attn_q": 4, "attn_k": 2}.get(part)
        expected = unpermute(expected, heads) if heads else expected
        found = stored[f"layers.0.{ours[part]}.weight"]
        assert found.shape == sizes[part]
        assert torch.equal(found.read().view(torch.int32), expected.view(torch.int32)), part


def test_block_types_by_their_definition() -> None:
    """ggml's blocks of 32 from their layout: d and m are half floats, low nibbles the first 16 elements."""
    rng = np.random.default_rng(0)
    kinds = gguf.GGMLQuantizationType

    def scale(raw: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return raw.copy().view(np.float16).astype(np.float32)

    def blocks(size: int, halves: int) -> np.ndarray[Any, Any]:
        found = rng.integers(0, 256, (50, size), dtype=np.uint8)
        found[:, : 2 * halves] = rng.standard_normal((50, halves)).astype(np.float16).view(np.uint8)
        return found

    b = blocks(34, 1)
    expected = scale(b[:, :2]) * b[:, 2:].view(np.int8).astype(np.float32)
    np.testing.assert_array_equal(gguf.quants.dequantize(b, kinds.Q8_0), expected)
    b = blocks(18, 1)
    nibbles = np.concatenate([b[:, 2:] & 15, b[:, 2:] >> 4], axis=1).astype(np.float32)
    np.testing.assert_array_equal(gguf.quants.dequantize(b, kinds.Q4_0), scale(b[:, :2]) * (nibbles - 8))
    b = blocks(20, 2)
    nibbles = np.concatenate([b[:, 4:] & 15, b[:, 4:] >> 4], axis=1).astype(np.float32)
    expected = scale(b[:, :2]) * nibbles + scale(b[:, 2:4])
    np.testing.assert_array_equal(gguf.quants.dequantize(b, kinds.Q4_1), expected)


def test_a_window_as_long_as_the_context_is_none(tmp_path: Path) -> None:
    path = write_hf(tmp_path / "m", Shape(), meta_weights(Shape()))
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"model_type": "mistral", "sliding_window": 4096}))
    torch.testing.assert_close(logits(loaded(path)), oracle(path), atol=2e-4, rtol=1e-4)


def test_the_shipped_model_in_every_format(tmp_path: Path, gguf_path: Path) -> None:
    """The first four blocks of the default model, dequantized by the `gguf` package, as Meta and as Hugging Face."""
    reader = gguf.GGUFReader(gguf_path)
    back = {value: key for key, value in GGUF.items()}
    outer = {"token_embd": "tok_embeddings", "output_norm": "norm"}
    weights = {}
    for tensor in reader.tensors:
        match tensor.name.split("."):
            case ["blk", number, inner, "weight"] if int(number) < 4:
                name = f"layers.{number}.{back[inner]}.weight"
            case [top, "weight"]:
                name = f"{outer[top]}.weight"
            case _:
                continue
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(tensor.shape[::-1].tolist())
        weights[name] = torch.from_numpy(np.array(values, np.float32))
    shape = Shape(576, 4, 9, 3, 64, 1536, 49_152, theta=100_000.0, tied=True)
    shipped = open_checkpoint(gguf_path)
    config = dataclasses.replace(shipped.config, n_layers=4)
    shipped_state = load_transformer(shipped, torch.float32, "cpu").state_dict()
    first = Transformer(config)
    first.load_state_dict({name: shipped_state[name] for name in first.state_dict()})
    expected = logits(first.eval())
    del shipped_state
    assert torch.equal(logits(loaded(write_hf(tmp_path / "hf", shape, weights))), expected)
    torch.testing.assert_close(expected, oracle(tmp_path / "hf"), atol=1e-3, rtol=1e-3)
    shutil.rmtree(tmp_path / "hf")
    path = write_meta(tmp_path / "meta", shape, weights, 3, embedding=0)
    found = json.loads((path / "params.json").read_text())
    (path / "params.json").write_text(json.dumps(found | {"ffn_dim_multiplier": 1.0}))
    assert torch.equal(logits(loaded(path)), expected)


@pytest.mark.parametrize("kind", ["hugging face", "meta", "gguf"])
def test_weights_do_not_depend_on_the_file_afterwards(tmp_path: Path, kind: str) -> None:
    """The files are mapped; a model must not change, nor the process end, when somebody overwrites them."""
    path = WRITERS[kind](tmp_path / "m", Shape(), meta_weights(Shape()))
    model = loaded(path)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for file in [path] if path.is_file() else [*path.glob("*.pth"), *path.glob("*.safetensors")]:
        size = file.stat().st_size
        with file.open("r+b") as opened:
            opened.write(b"\xff" * size)
            opened.truncate(10)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
