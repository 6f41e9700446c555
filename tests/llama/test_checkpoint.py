"""Model files: the right order of rows, and one clear line for every file that is not a LLaMA."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from llama.checkpoint import load_transformer, open_gguf, unpermute
from llama.engine import Engine, load_engine
from llama.errors import LlamaError

SHAPE = {"dim": 48, "layers": 2, "heads": 4, "kv": 2, "head_dim": 16, "ffn": 64, "vocabulary": 96}


def tensors(rng: np.random.Generator, tied: bool = True) -> dict[str, np.ndarray[Any, Any]]:
    d, h, g, e, f, v = (SHAPE[k] for k in ("dim", "heads", "kv", "head_dim", "ffn", "vocabulary"))
    out = {"token_embd.weight": (v, d), "output_norm.weight": (d,)}
    if not tied:
        out["output.weight"] = (v, d)
    for n in range(SHAPE["layers"]):
        out |= {
            f"blk.{n}.attn_norm.weight": (d,),
            f"blk.{n}.attn_q.weight": (h * e, d),
            f"blk.{n}.attn_k.weight": (g * e, d),
            f"blk.{n}.attn_v.weight": (g * e, d),
            f"blk.{n}.attn_output.weight": (d, h * e),
            f"blk.{n}.ffn_norm.weight": (d,),
            f"blk.{n}.ffn_gate.weight": (f, d),
            f"blk.{n}.ffn_up.weight": (f, d),
            f"blk.{n}.ffn_down.weight": (d, f),
        }
    return {name: rng.standard_normal(shape).astype(np.float32) * 0.1 for name, shape in out.items()}


def write(path: Path, weights: dict[str, np.ndarray[Any, Any]], architecture: str = "llama", **extra: Any) -> Path:
    """A tiny GGUF file; head_dim (16) is not dim / heads (12)."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(SHAPE["layers"])
    writer.add_embedding_length(SHAPE["dim"])
    writer.add_head_count(SHAPE["heads"])
    writer.add_head_count_kv(SHAPE["kv"])
    writer.add_key_length(SHAPE["head_dim"])
    writer.add_rope_dimension_count(SHAPE["head_dim"])
    writer.add_feed_forward_length(SHAPE["ffn"])
    writer.add_context_length(128)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(["<s>", "</s>", *map(chr, range(33, 126)), "ab"])
    writer.add_token_types([3, 3] + [1] * 94)
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(1)
    writer.data_alignment = extra.get("general__alignment", writer.data_alignment)
    for key, value in extra.items():
        add = (
            writer.add_uint32
            if isinstance(value, int)
            else writer.add_float32
            if isinstance(value, float)
            else writer.add_string
        )
        add(key.replace("__", "."), value)
    for name, value in weights.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def naive(weights: dict[str, np.ndarray[Any, Any]], ids: list[int], tied: bool) -> torch.Tensor:
    """The architecture from its definition, slowly: Meta's pairs (2i, 2i+1) as complex numbers, heads in loops."""
    w = {name: torch.from_numpy(value).double() for name, value in weights.items()}
    h, g, e = SHAPE["heads"], SHAPE["kv"], SHAPE["head_dim"]

    def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight

    def turn(x: torch.Tensor, position: int) -> torch.Tensor:
        angle = position * 10000.0 ** (-torch.arange(0, e, 2).double() / e)
        turned = torch.view_as_complex(x.view(-1, 2)) * torch.polar(torch.ones_like(angle), angle)
        return torch.view_as_real(turned).flatten()

    x = w["token_embd.weight"][ids]
    for n in range(SHAPE["layers"]):
        y = norm(x, w[f"blk.{n}.attn_norm.weight"])
        q, k, v = (y @ w[f"blk.{n}.attn_{p}.weight"].T for p in "qkv")
        out = torch.zeros(len(ids), h * e).double()
        for i in range(len(ids)):
            for head in range(h):
                shared = head * g // h
                query = turn(q[i, head * e : (head + 1) * e], i)
                keys = torch.stack([turn(k[j, shared * e : (shared + 1) * e], j) for j in range(i + 1)])
                share = torch.softmax(keys @ query / e**0.5, 0)
                out[i, head * e : (head + 1) * e] = share @ v[: i + 1, shared * e : (shared + 1) * e]
        x = x + out @ w[f"blk.{n}.attn_output.weight"].T
        y = norm(x, w[f"blk.{n}.ffn_norm.weight"])
        gate = y @ w[f"blk.{n}.ffn_gate.weight"].T
        x = x + (gate * torch.sigmoid(gate) * (y @ w[f"blk.{n}.ffn_up.weight"].T)) @ w[f"blk.{n}.ffn_down.weight"].T
    return norm(x, w["output_norm.weight"]) @ w["token_embd.weight" if tied else "output.weight"].T


@pytest.mark.parametrize("tied", [True, False])
def test_a_tiny_model_equals_the_definition(tmp_path: Path, tied: bool) -> None:
    weights = tensors(np.random.default_rng(0), tied)
    checkpoint = open_gguf(write(tmp_path / "tiny.gguf", weights))
    model = load_transformer(checkpoint, torch.float32, "cpu")
    ids = list(range(7, 27))
    with torch.inference_mode():
        ours = model(torch.tensor([ids]))[0]
    assert torch.allclose(ours.double(), naive(weights, ids, tied), atol=1e-5)
    assert (model.lm_head.weight.data_ptr() == model.embed_tokens.weight.data_ptr()) == tied


def test_unpermute_moves_pairs_apart() -> None:
    rows = torch.arange(8.0)[:, None].expand(8, 3)
    assert unpermute(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_weights_do_not_depend_on_the_file_afterwards(tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.gguf", tensors(np.random.default_rng(0)))
    model = load_transformer(open_gguf(path), torch.float32, "cpu")
    before = model.norm.weight.clone()
    with path.open("r+b") as file:
        file.seek(-1000, 2)
        file.write(b"\xff" * 1000)
    assert torch.equal(model.norm.weight, before)


def no_file(folder: Path) -> Path:
    return folder / "absent.gguf"


def zero_bytes(folder: Path) -> Path:
    (folder / "empty.gguf").write_bytes(b"")
    return folder / "empty.gguf"


def not_gguf(folder: Path) -> Path:
    (folder / "page.gguf").write_text("<html>404</html>" * 100)
    return folder / "page.gguf"


def cut_short(folder: Path) -> Path:
    whole = write(folder / "cut.gguf", tensors(np.random.default_rng(0))).read_bytes()
    (folder / "cut.gguf").write_bytes(whole[: len(whole) * 2 // 3])
    return folder / "cut.gguf"


def cut_in_header(folder: Path) -> Path:
    whole = write(folder / "head.gguf", tensors(np.random.default_rng(0))).read_bytes()
    (folder / "head.gguf").write_bytes(whole[:300])
    return folder / "head.gguf"


def other_architecture(folder: Path) -> Path:
    return write(folder / "other.gguf", tensors(np.random.default_rng(0)), "mamba")


def missing_tensor(folder: Path) -> Path:
    weights = tensors(np.random.default_rng(0))
    del weights["blk.1.attn_k.weight"]
    return write(folder / "missing.gguf", weights)


def surplus_tensor(folder: Path) -> Path:
    return write(folder / "surplus.gguf", {**tensors(np.random.default_rng(0)), "blk.0.attn_q.bias": np.ones(64, "f4")})


def wrong_shape(folder: Path) -> Path:
    weights = tensors(np.random.default_rng(0))
    weights["blk.0.ffn_up.weight"] = np.ones((10, 48), "f4")
    return write(folder / "shape.gguf", weights)


def scaled_rope(folder: Path) -> Path:
    return write(folder / "rope.gguf", tensors(np.random.default_rng(0)), llama__rope__scaling__type="yarn")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (no_file, "paddock models pull"),
        (zero_bytes, "0 bytes"),
        (not_gguf, "not a whole GGUF"),
        (cut_short, "not a whole GGUF"),
        (cut_in_header, "not a whole GGUF"),
        (other_architecture, "architecture is 'mamba'"),
        (missing_tensor, "missing layers.1.self_attn.k_proj.weight"),
        (surplus_tensor, "surplus blk.0.attn_q.bias"),
        (wrong_shape, "blk.0.ffn_up.weight is \\[10, 48\\], not \\[64, 48\\]"),
        (scaled_rope, "rotary scaling 'yarn' is not known"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, make: Callable[[Path], Path], says: str) -> None:
    path = make(tmp_path)
    with pytest.raises(LlamaError, match=says) as caught:
        load_engine(path, "cpu", "float32")
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_base_model_cannot_chat(tmp_path: Path) -> None:
    engine: Engine = load_engine(write(tmp_path / "tiny.gguf", tensors(np.random.default_rng(0))), "cpu")
    with pytest.raises(LlamaError, match="chat"):
        engine.encode_chat([{"role": "user", "content": "x"}])


def test_the_structure_is_what_the_gguf_package_reads(gguf_path: Path, tmp_path: Path) -> None:
    """Every key, every tensor's place, shape and type, of the shipped model and of one with plain tensors."""
    for path in (gguf_path, write(tmp_path / "tiny.gguf", tensors(np.random.default_rng(0)))):
        reader = gguf.GGUFReader(path)
        ours = open_gguf(path)
        theirs = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
        assert ours.metadata == theirs
        assert [(t.name, list(t.shape), t.tensor_type) for t in ours.stored] == [
            (t.name, t.shape.tolist(), t.tensor_type) for t in reader.tensors
        ]
        for mine, other in zip(ours.stored, reader.tensors, strict=True):
            assert mine.data.tobytes() == other.data.tobytes()


@pytest.mark.parametrize("version", [1, 2, 4])
def test_versions(tmp_path: Path, version: int) -> None:
    """2 and 3 are laid out alike; 1 counts in 32 bits, and of what 4 will be nothing is known."""
    path = write(tmp_path / "tiny.gguf", tensors(np.random.default_rng(0)))
    whole = path.read_bytes()
    assert whole[4:8] == (3).to_bytes(4, "little")
    path.write_bytes(whole[:4] + version.to_bytes(4, "little") + whole[8:])
    if version == 2:
        open_gguf(path).config  # noqa: B018
        return
    with pytest.raises(LlamaError, match=f"its version is {version}; 2 and 3 are read"):
        open_gguf(path)


def test_another_alignment(tmp_path: Path) -> None:
    """Where the tensors begin, and each of them, is a multiple of `general.alignment`."""
    weights = tensors(np.random.default_rng(0))
    path = write(tmp_path / "tiny.gguf", weights, general__alignment=4096)
    found = {tensor.name: tensor for tensor in open_gguf(path).stored}
    for name, value in weights.items():
        assert found[name].data.tobytes() == value.tobytes(), name


def test_a_file_that_ends_within_a_tensor_names_it(tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.gguf", tensors(np.random.default_rng(0)))
    last = open_gguf(path).stored[-1].name
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(LlamaError, match=f"it ends within tensor {last}"):
        open_gguf(path)


def test_rows_that_are_not_whole_blocks(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("token_embd.weight", np.zeros((4, 34), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert open_gguf(tmp_path / "m.gguf").stored[0].shape == (32, 4)
    whole = (tmp_path / "m.gguf").read_bytes()
    at = whole.index(b"token_embd.weight") + len("token_embd.weight") + 4
    assert whole[at : at + 8] == (32).to_bytes(8, "little")
    (tmp_path / "m.gguf").write_bytes(whole[:at] + (33).to_bytes(8, "little") + whole[at + 8 :])
    with pytest.raises(LlamaError, match=r"token_embd\.weight has rows of 33, not a multiple of 32"):
        open_gguf(tmp_path / "m.gguf")


@pytest.mark.parametrize("key", ["bos", "eos"])
@pytest.mark.parametrize("token", [96, 4_000_000_000])
def test_marks_beyond_the_vocabulary(tmp_path: Path, key: str, token: int) -> None:
    checkpoint = open_gguf(write(tmp_path / "tiny.gguf", tensors(np.random.default_rng(0))))
    checkpoint.metadata[f"tokenizer.ggml.{key}_token_id"] = 95
    assert checkpoint.tokenizer().vocab_size == 96
    checkpoint.metadata[f"tokenizer.ggml.{key}_token_id"] = token
    with pytest.raises(LlamaError, match="beyond its vocabulary"):
        checkpoint.tokenizer()


@pytest.mark.parametrize("at", [8, 16])
def test_a_lying_count_reserves_nothing(tmp_path: Path, at: int) -> None:
    """Headers that promise 2^62 tensors or keys are refused at once instead of being believed."""
    path = write(tmp_path / "tiny.gguf", tensors(np.random.default_rng(0)))
    data = bytearray(path.read_bytes())
    data[at : at + 8] = (1 << 62).to_bytes(8, "little")
    path.write_bytes(data)
    with pytest.raises(LlamaError, match="ends too early"):
        open_gguf(path)


def test_damage_anywhere_is_one_line(tmp_path: Path) -> None:
    """200 files with a byte of the head changed: each loads or is refused, and nothing else is raised."""
    whole = write(tmp_path / "tiny.gguf", tensors(np.random.default_rng(0))).read_bytes()
    rng = np.random.default_rng(1)
    said = []
    for _ in range(200):
        data = bytearray(whole)
        data[int(rng.integers(0, 3000))] = int(rng.integers(0, 256))
        (tmp_path / "bad.gguf").write_bytes(data)
        try:
            load_engine(tmp_path / "bad.gguf", "cpu", "float32")
        except LlamaError as error:
            said.append(str(error))
    assert len(said) > 20
    assert [line for line in said if "\n" in line] == []


def test_rotary_scaling(tmp_path: Path) -> None:
    """`rope_freqs.weight` holds divisors, not factors; linear scaling divides every frequency alike."""
    weights = tensors(np.random.default_rng(0))
    plain = load_transformer(open_gguf(write(tmp_path / "plain.gguf", weights)), torch.float32, "cpu")
    divisors = np.linspace(1, 8, 8, dtype=np.float32)
    path = write(tmp_path / "llama3.gguf", {**weights, "rope_freqs.weight": divisors})
    model = load_transformer(open_gguf(path), torch.float32, "cpu")
    assert model.config.rope_divisors == pytest.approx(divisors.tolist())
    frequencies = 10_000.0 ** -(np.arange(0, 16, 2) / 16) / divisors
    np.testing.assert_allclose(model.rope.cos[7], np.cos(7 * frequencies), atol=1e-5)
    path = write(
        tmp_path / "linear.gguf",
        weights,
        llama__rope__scaling__type="linear",
        llama__rope__scaling__factor=4.0,
    )
    linear = load_transformer(open_gguf(path), torch.float32, "cpu")
    np.testing.assert_allclose(linear.rope.sin[8], plain.rope.sin[2], atol=1e-5)
    assert not torch.equal(linear.rope.sin[7], model.rope.sin[7])


FACTOR, OLDER, KIND = "llama__rope__scaling__factor", "llama__rope__scale_linear", "llama__rope__scaling__type"


@pytest.mark.parametrize(
    ("keys", "divisor"),
    [
        ({FACTOR: 4.0}, 4.0),
        ({OLDER: 4.0}, 4.0),
        ({OLDER: 4.0, KIND: "linear"}, 4.0),
        ({FACTOR: 2.0, OLDER: 4.0}, 2.0),
        ({FACTOR: 4.0, KIND: "none"}, 1.0),
        ({FACTOR: 0.0, KIND: "linear"}, 1.0),
    ],
)
@pytest.mark.parametrize("slow", [False, True])
def test_linear_scaling_in_every_spelling(tmp_path: Path, keys: dict[str, Any], divisor: float, slow: bool) -> None:
    """A factor without a type, or under its older key, is linear, besides `rope_freqs.weight`: as llama.cpp has it."""
    stored = np.linspace(1, 8, 8, dtype=np.float32)
    weights = tensors(np.random.default_rng(0)) | ({"rope_freqs.weight": stored} if slow else {})
    config = open_gguf(write(tmp_path / "tiny.gguf", weights, **keys)).config
    expected = (stored if slow else np.ones(8)) * divisor
    assert (config.rope_divisors or (1.0,) * 8) == pytest.approx(expected.tolist())
