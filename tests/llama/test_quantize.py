"""Packed weights stand for what they were made of, and the compiled step computes what the eager model does."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from llvmlite.binding import get_host_cpu_name
from numba.core.codegen import get_host_cpu_features
from safetensors.torch import save_file

from app.evaluate.perplexity import measure
from llama import packed_file
from llama.cache import KVCache
from llama.checkpoint import open_checkpoint
from llama.config import ModelConfig
from llama.engine import Engine, load_engine, precision_of
from llama.errors import LlamaError
from llama.fused import CACHED, FusedStep, supports
from llama.model import Transformer
from llama.quantize import QuantizedEmbedding, QuantizedLinear, pack, quantization_of, unpack
from llama.team import Team

TEXT = (
    "The refuge stands at 2,450 metres. It has 48 beds and is open from June to October. Dinner is served at seven, "
    "and the lights go out at ten. Whoever wants to stay longer than three nights writes to the keeper beforehand. "
    "山屋有四十八个床位，六月到十月开放。晚餐七点，十点熄灯。想住三晚以上的人请事先写信给管理员。"
) * 4


def shape(heads: int = 4, kv_heads: int = 2, tied: bool = True) -> ModelConfig:
    return ModelConfig(
        dim=96, n_layers=3, n_heads=heads, n_kv_heads=kv_heads, head_dim=64, ffn_dim=160, vocab_size=203,
        context_length=1024, norm_eps=1e-5, rope_theta=10000.0, tied=tied,
    )  # fmt: skip


def random_model(config: ModelConfig) -> Transformer:
    torch.manual_seed(3)
    model = Transformer(config)
    for module in model.modules():
        if hasattr(module, "eps"):
            module.weight.data.uniform_(0.5, 1.5)
    return model.eval().requires_grad_(False)


def quantized(model: Transformer, kind: str, team: Team) -> Transformer:
    """The model with its matrices packed, as one that was read from a packed file."""
    state = {name: x for name, x in model.state_dict().items() if not (model.config.tied and name == "lm_head.weight")}
    parts = [packed_file.packed_parts(name, tensor, kind) for name, tensor in state.items()]
    found = packed_file.assemble(model.config, {k: v for each in parts for k, v in each.items()}, team, torch.float32)
    assert found is not None
    return found


@pytest.mark.parametrize("outputs", [64, 40])
def test_rounding_is_to_the_nearest(outputs: int) -> None:
    torch.manual_seed(0)
    weight = torch.randn(outputs, 96)
    weight[1, 32:64] = 0.25  # a group of equal values
    weight[2] = 0
    groups = weight.view(outputs, 3, 32)
    eight = unpack(pack(weight, 8)).view(outputs, 3, 32)
    step = groups.abs().amax(-1, keepdim=True) / 127
    assert ((eight - groups).abs() <= step * 0.51 + groups.abs() * 1e-3).all()
    four = unpack(pack(weight, 4)).view(outputs, 3, 32)
    assert torch.equal(four[2], torch.zeros(3, 32))
    low = groups.amin(-1, keepdim=True)
    step = (groups.amax(-1, keepdim=True) - low) / 15
    plain = ((groups - low) / torch.where(step == 0, 1, step)).round() * step + low
    lost, plainly = ((each - groups).square().sum(-1) for each in (four, plain))
    assert (lost <= plainly + groups.square().sum(-1) * 1e-6).all(), "scales are fp16"
    assert lost.sum() < 0.95 * plainly.sum(), "a grid that leaves a few values outside is often better"


def test_a_file_of_four_bits_loses_nothing(gguf_path: Path) -> None:
    stored, _ = open_checkpoint(gguf_path).tensors()
    for name in ("layers.3.mlp.down_proj.weight", "layers.0.self_attn.q_proj.weight"):
        weight = stored[name].read()
        assert (unpack(pack(weight, 4)) - weight).abs().max() <= 2e-7 * weight.abs().max()


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1"])
def test_gguf_s_own_grids_of_four_bits_are_kept(kind: str) -> None:
    of = gguf.GGMLQuantizationType[kind]
    given = np.random.default_rng(1).normal(size=(40, 96)).astype(np.float32) + (np.arange(40) % 3 - 1)[:, None]
    stored = torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(given, of), of))
    assert (unpack(pack(stored, 4)) - stored).abs().max() <= 2e-7 * stored.abs().max()


@pytest.mark.parametrize("minimum", [False, True])
def test_a_grid_whose_ends_are_not_reached_is_kept(minimum: bool) -> None:
    """As files have it whose scales were searched for with weights of importance."""
    draw = np.random.default_rng(2)
    scale = draw.uniform(0.001, 0.1, (40, 3, 1)).astype(np.float16).astype(np.float32)
    low = draw.uniform(-1, 0.2, scale.shape).astype(np.float16).astype(np.float32) if minimum else -8 * scale
    numbers = draw.integers(draw.integers(0, 6, scale.shape), draw.integers(9, 15, scale.shape), (40, 3, 32))
    stored = torch.from_numpy((numbers * scale + low).reshape(40, 96).astype(np.float32))
    changed = (unpack(pack(stored, 4)) - stored).abs() > 1e-6 * stored.abs().max()
    assert changed.float().mean() < 0.001


def test_a_packed_file_that_does_not_fit_is_made_anew() -> None:
    config = shape()
    state = {name: x for name, x in random_model(config).state_dict().items() if name != "lm_head.weight"}
    parts = {k: v for name, x in state.items() for k, v in packed_file.packed_parts(name, x, "int4").items()}
    assert packed_file.assemble(config, parts, Team(1), torch.float32) is not None
    for name in ("layers.1.mlp.up_proj.weight", "layers.0.self_attn.q_proj.minimum", "embed_tokens.scale"):
        cut = {**parts, name: parts[name][:-1]}
        assert packed_file.assemble(config, cut, Team(1), torch.float32) is None, name
    assert packed_file.assemble(config, {**parts, "junk": torch.zeros(1)}, Team(1), torch.float32) is None
    assert (
        packed_file.assemble(config, {k: v for k, v in parts.items() if k != "norm.weight"}, Team(1), torch.float32)
        is None
    )


def test_a_checkpoint_that_has_changed_is_packed_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(b"one")
    before = packed_file.place_of(tmp_path, path, "int4")
    assert packed_file.place_of(tmp_path, path, "int4") == before
    assert packed_file.place_of(tmp_path, path, "int8") != before
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))
    assert packed_file.place_of(tmp_path, path, "int4") != before


def test_a_width_that_has_no_groups_is_refused() -> None:
    with pytest.raises(LlamaError, match="--quant none"):
        pack(torch.zeros(32, 48), 8)


def rounded(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Activations as a product with weights of so many bits takes them (`llama.integers`)."""
    most = 127 if bits == 4 else 32639
    groups = x.unflatten(-1, (-1, 32))
    scale = groups.abs().amax(-1, keepdim=True) / most
    return torch.where(scale > 0, (groups / scale).round() * scale, 0).flatten(-2)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("team", [1, 3])
def test_products_are_those_of_the_unpacked_matrix(bits: int, team: int) -> None:
    torch.manual_seed(1)
    packed = pack(torch.randn(72, 160), bits)
    layer, dense = QuantizedLinear(packed, Team(team), torch.float32), unpack(packed)
    for rows in (1, 2, 3, 7, 32, 33, 80, 131):
        x = torch.randn(rows, 160) * torch.logspace(-3, 3, rows)[:, None]
        x[0, 32:64] = 0
        x[-1, 64] = 1e-38
        wanted = rounded(x, bits) @ dense.T
        size = x.abs().amax(-1, keepdim=True)
        # A number that lies between two may be rounded either way.
        assert ((layer(x) - wanted).abs() < size * (2e-2 if bits == 4 else 2e-4)).all(), rows
        assert ((layer(x) - wanted).abs() < size * 2e-5).float().mean() > 0.95
        assert ((layer(x) - x @ dense.T).abs() < size * (0.3 if bits == 4 else 1e-3)).all(), rows
    x = torch.randn(70, 160)
    together = layer(x)
    for i in (0, 1, 12, 63, 69):
        assert torch.equal(layer(x[i : i + 1])[0], together[i]), "a row's result depends on no other"


@pytest.mark.parametrize("bits", [8, 4])
def test_embedding(bits: int) -> None:
    packed = pack(torch.randn(50, 64), bits)
    ids = torch.tensor([[0, 49, 31], [32, 7, 7]])
    assert torch.allclose(QuantizedEmbedding(packed, Team(1), torch.float32)(ids), unpack(packed)[ids])


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize(("heads", "kv_heads", "tied"), [(4, 2, True), (2, 2, False), (3, 1, True)])
@pytest.mark.parametrize("sizes", [(2, 1, 5), (70, 290, 33)])
def test_compiled_step_equals_the_eager_model(
    kind: str, heads: int, kv_heads: int, tied: bool, sizes: tuple[int, int, int]
) -> None:
    """Several requests of different lengths, some of them beyond a split, few and many tokens."""
    config = shape(heads, kv_heads, tied)
    team = Team(3)
    model = quantized(random_model(config), kind, team)
    assert quantization_of(model) == kind
    assert supports(model)
    step, random = FusedStep(model, team), torch.Generator().manual_seed(5)

    def ids(count: int) -> list[int]:
        return torch.randint(0, config.vocab_size, (count,), generator=random).tolist()

    # Rounding differs where the two lie on either side of a half; four bits in a small model make more of it.
    near = 2e-3 if kind == "int8" else 0.15
    prompts, new = [ids(n) for n in (1, 300, 57)], [ids(n) for n in sizes]

    def cache_of(capacity: int) -> KVCache:
        return KVCache(config, 1, capacity, CACHED)

    wanted = [model(torch.tensor([p + n]), cache_of(600))[0, len(p) :] for p, n in zip(prompts, new, strict=True)]
    caches = []
    for prompt in prompts:
        cache = cache_of(600)
        model(torch.tensor([prompt]), cache)
        caches.append(cache)
    found = step(new, caches, [len(each) for each in new])
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).abs().max() < near
    assert [cache.lengths[0] for cache in caches] == [n + m for n, m in zip((1, 300, 57), sizes, strict=True)]
    # What the step put into the caches is what the eager model finds there.
    more = ids(4)
    again = model(torch.tensor([more]), caches[1])
    assert (again[0] - model(torch.tensor([prompts[1] + new[1] + more]), cache_of(700))[0, -4:]).abs().max() < near


def test_a_row_depends_on_no_other_row(fast: Engine) -> None:
    prompts = [fast.tokenizer.encode(text) for text in (TEXT[:60], TEXT[:300], "你好")]

    def logits(chosen: Sequence[int], new: Sequence[list[int]]) -> list[torch.Tensor]:
        caches = []
        for i in chosen:
            caches.append(fast.plain.new_cache(1, 400))
            fast.forward([prompts[i]], [caches[-1]])
        return fast.forward(new, caches, [len(each) for each in new])

    together = logits([0, 1, 2], [[5], [6, 7, 8], [9, 10]])
    assert torch.equal(logits([1], [[6, 7, 8]])[0], together[1])
    assert torch.equal(logits([1], [[6]])[0][0], together[1][0]), "a draft does not change what stands before it"
    assert torch.equal(logits([0], [[5]])[0], together[0])


def test_a_token_is_the_same_read_or_generated(fast: Engine) -> None:
    """Nothing depends on how a text is cut: that is what lets prefixes be reused and drafts be verified exactly."""
    ids = fast.tokenizer.encode(TEXT)[:330]
    found = []
    for sizes in ([330], [1, 63, 65, 201], [300, *[1] * 30]):
        cache, ends = fast.plain.new_cache(1, 340), []
        for size in sizes:
            start = cache.lengths[0]
            ends += fast.forward([ids[start : start + size]], [cache], [size])
        found.append((torch.cat(ends), cache))
    for logits, cache in found[1:]:
        assert torch.equal(logits, found[0][0])
        assert torch.equal(cache.k[..., :330, :], found[0][1].k[..., :330, :])
        assert torch.equal(cache.v[..., :330, :], found[0][1].v[..., :330, :])


def test_positions_beyond_the_context_are_refused() -> None:
    config, team = shape(), Team(1)
    step = FusedStep(quantized(random_model(config), "int8", team), team)
    cache = KVCache(config, 1, 2000, CACHED)
    cache.lengths[0] = 1020
    with pytest.raises(LlamaError, match="1025 tokens exceed the model's context of 1024"):
        step([[1] * 5], [cache], [1])
    with pytest.raises(LlamaError, match="vocabulary of 203"):
        step([[203]], [cache], [1])


PRODUCTS = """
import torch
from llama.integers import DOT_LANES
from llama.quantize import QuantizedLinear, pack
from llama.team import Team

def products():
    torch.manual_seed(1)
    layers = [QuantizedLinear(pack(torch.randn(72, 160), bits), Team(1), torch.float32) for bits in (4, 8)]
    return [layer(torch.randn(7, 160)).numpy().tobytes().hex() for layer in layers]
"""


SUM = """
import numba, numpy
from llama.products import COUNTERS, shared

@numba.njit
def total(counters, tasks):
    found = 0
    for task in shared(counters, 0, tasks):
        found += task
    return found

print(total(numpy.zeros(COUNTERS, numpy.int64), 4))
"""


def test_every_processor_computes_the_same(tmp_path: Path) -> None:
    """Dot products of bytes and their substitute where the processor has none."""
    features = re.sub(r"\+(avx512vnni|avxvnni)\b", r"-\1", get_host_cpu_features())
    environment = {**os.environ, "NUMBA_CPU_FEATURES": features, "NUMBA_CPU_NAME": get_host_cpu_name(),
                   "NUMBA_CACHE_DIR": str(tmp_path)}  # fmt: skip
    command = [sys.executable, "-c", PRODUCTS + "assert DOT_LANES == 0\nprint(*products())"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    here: dict[str, Any] = {}
    exec(PRODUCTS, here)
    assert done.stdout.split() == here["products"]()
    # What else is compiled later, beside what is kept from then.
    again = subprocess.run([sys.executable, "-c", SUM], capture_output=True, text=True, env=environment, check=True)
    assert again.stdout == "6\n"


def test_perplexity_of_quantized_models(engine: Engine, fast: Engine, gguf_path: Path) -> None:
    def perplexity(model: Engine) -> float:
        found = measure(model, TEXT, 512, 256)
        return math.exp(found.loss / found.tokens)

    plain = perplexity(engine)
    assert abs(perplexity(load_engine(gguf_path, "cpu", quant="int8")) / plain - 1) < 0.005
    # The file has four bits already: what is lost is lost by rounding activations.
    assert abs(perplexity(fast) / plain - 1) < 0.02


def test_packed_weights_are_kept(gguf_path: Path, tmp_path: Path, fast: Engine) -> None:
    first = load_engine(gguf_path, "cpu", quant="int4", cache=tmp_path)
    [kept] = tmp_path.iterdir()
    second = load_engine(gguf_path, "cpu", quant="int4", cache=tmp_path)
    ids = fast.tokenizer.encode(TEXT[:80])
    assert torch.equal(first.next_logits(ids), second.next_logits(ids))
    kept.write_bytes(kept.read_bytes()[:100_000])
    third = load_engine(gguf_path, "cpu", quant="int4", cache=tmp_path)
    assert torch.equal(third.next_logits(ids), first.next_logits(ids)), "a damaged copy is made anew"
    assert kept.stat().st_size > 1 << 20


def test_what_an_older_file_left_is_removed(tmp_path: Path) -> None:
    model, cache = tmp_path / "m.gguf", tmp_path / "cache"
    others = [cache / "m-int8-0123456789abcdef.safetensors", cache / "m-x-int4-0123456789abcdef.safetensors"]
    for content in (b"a", b"ab"):
        model.write_bytes(content)
        packed_file.save({"norm.weight": torch.ones(3)}, packed_file.place_of(cache, model, "int4"))
        for other in others:
            other.touch()
    assert sorted(cache.iterdir()) == sorted([*others, packed_file.place_of(cache, model, "int4")])


def test_another_file_has_another_place(tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    places = set()
    for content in (b"a", b"ab"):
        model.write_bytes(content)
        places |= {packed_file.place_of(tmp_path, model, kind) for kind in ("int4", "int8")}
    assert len(places) == 4


def test_a_folder_that_cannot_be_written_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    packed_file.save({"norm.weight": torch.ones(3)}, tmp_path / "file" / "x.safetensors")
    assert packed_file.load(tmp_path / "file" / "x.safetensors") == {}


@pytest.mark.parametrize("tied", [True, False])
def test_any_shape_is_packed_as_it_is_read(tmp_path: Path, tied: bool) -> None:
    """Tensor by tensor from a folder, or all at once in memory: the same model. Those of another shape are none."""
    config, team = shape(tied=tied), Team(2)
    model = random_model(config)
    write_folder(tmp_path / "m", config, model)
    packed = packed_file.pack_checkpoint(open_checkpoint(tmp_path / "m"), "int4")
    packed_file.save(packed, tmp_path / "m.safetensors")
    again = packed_file.assemble(config, packed_file.load(tmp_path / "m.safetensors"), team, torch.float32)
    tokens = torch.randint(0, 203, (1, 70))
    assert again is not None
    assert torch.equal(again(tokens), quantized(model, "int4", team)(tokens))
    for other in (shape(tied=not tied), shape(heads=2, tied=tied)):
        assert packed_file.assemble(other, packed, team, torch.float32) is None
    assert packed_file.assemble(config, {}, team, torch.float32) is None


def write_folder(path: Path, config: ModelConfig, model: Transformer) -> None:
    path.mkdir()
    state = {f"model.{name}" if name != "lm_head.weight" else name: x for name, x in model.state_dict().items()}
    if config.tied:
        del state["lm_head.weight"]
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path / "model.safetensors")
    settings = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": config.dim,
        "num_hidden_layers": config.n_layers, "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads, "head_dim": config.head_dim, "intermediate_size": config.ffn_dim,
        "vocab_size": config.vocab_size, "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm_eps, "rope_theta": config.rope_theta, "tie_word_embeddings": config.tied,
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(settings))


def test_what_auto_chooses(gguf_path: Path) -> None:
    for dtype, quant in (("auto", "int4"), ("float32", "none")):
        engine = load_engine(gguf_path, "cpu", dtype=dtype, quant="auto")
        assert engine.quant == quant
        assert engine.precision == precision_of(gguf_path, "cpu", dtype, "auto")
    assert engine.precision == "float32"
    assert precision_of(gguf_path, "cpu", "bfloat16", "int8") == "int8"
