"""Adapters beside one model: each request as if it had the model alone with its adapter."""

from __future__ import annotations

import gc
import os
import random
import shutil
import threading
import time
import weakref
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune.adapters import METHODS
from finetune.adapters.base import Adapter
from finetune.errors import FinetuneError
from finetune.folder import Base, load_adapter, save_adapter, serve_adapter
from llama import engine as engine_module
from llama import packed_file
from llama.adaptation import NONE, Apart
from llama.chat_model import ChatLlama
from llama.config import ModelConfig
from llama.engine import Engine
from llama.errors import LlamaError
from llama.fused import supports
from llama.model import Transformer
from llama.quantize import QuantizedLinear, bits_of, pack, unpack
from llama.request import Request
from llama.sampling import SamplingParams
from llama.serving import Serving, Variant
from llama.team import Team
from llama.tokenizer import Tokenizer
from llama.vocabulary import Vocabulary

from .conftest import FORMS, TINY, adapted, shaken, tiny_model

PACKABLE = ModelConfig(
    dim=96, n_layers=4, n_heads=4, n_kv_heads=2, head_dim=64, ffn_dim=160, vocab_size=96, context_length=512, tied=True
)
KINDS = {"float32": TINY, "int8": PACKABLE, "int4": PACKABLE}
BASE = Base("tiny", "a" * 64, "b" * 64, None)
IDS = [7, 3, 90, 41, 5, 5, 62, 18, 33, 2]
EAGER = ("llama_adapter", "scalar gates", "bottleneck")  # beside a quantized base
VOCABULARY = Vocabulary(
    encode=lambda text, first: [ord(c) % 95 + 1 for c in text], spelled=[bytes([32 + i]) for i in range(96)],
    special={}, bos_id=None, eos_ids=frozenset({0}), add_bos=False,
)  # fmt: skip


class Shelf:
    """Adapters of a folder, as an engine asks for them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.loads = folder, list[str]()

    def stamp(self, name: str) -> Hashable:
        return (self.folder / name / "paddock.json").stat().st_mtime_ns

    def load(self, name: str, model: Transformer) -> Serving:
        self.loads.append(name)
        return serve_adapter(self.folder / name, model, BASE)


def exact(kind: str) -> Transformer:
    """The model before it is packed; its weights are small enough that rounding does not grow from layer to layer."""
    model = tiny_model(KINDS[kind])
    if kind != "float32":
        for parameter in model.parameters():
            parameter.mul_(0.4 if parameter.ndim > 1 else 1)
    return model


def round_weights(model: Transformer, kind: str) -> None:
    """Gives the weights the values that packed ones stand for."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if kind != "float32" and weight.ndim > 1:
                weight.copy_(unpack(pack(weight, bits_of(name.removesuffix(".weight"), kind))))


def plain_model(kind: str) -> Transformer:
    """The weights in full; for a kind that is packed, what the packed ones stand for."""
    model = exact(kind)
    round_weights(model, kind)
    return model


def quantized(model: Transformer, kind: str) -> Transformer:
    state = {name: x for name, x in model.state_dict().items() if name != "lm_head.weight"}
    parts = [packed_file.packed_parts(name, tensor, kind) for name, tensor in state.items()]
    joined = {k: v for each in parts for k, v in each.items()}
    found = packed_file.assemble(model.config, joined, Team(2), torch.float32)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of every form for each kind of base, every value moved off its start."""
    folder = tmp_path_factory.mktemp("shelf")
    for kind in KINDS:
        for form in FORMS:
            model, adapter = adapted(form, plain_model(kind))
            shaken(model, adapter, by=0.05)
            save_adapter(folder / kind / form, FORMS[form][0], adapter, model, BASE)
    return folder


def engine_of(kind: str, shelf: Path, memory: int = 64 << 20) -> Engine:
    model = exact(kind)
    model = model if kind == "float32" else quantized(model, kind)
    assert supports(model) == (kind != "float32")
    return Engine(model, Tokenizer(VOCABULARY), None, "tiny", memory, Shelf(shelf / kind))


def trained_logits(kind: str, form: str, shelf: Path) -> torch.Tensor:
    """Those of the training-time forward [S, V]; of a base in full precision where training would round it."""
    model: Transformer = plain_model(kind)
    adapter: Adapter
    if form == "qlora":
        stored = load_adapter(shelf / kind / form, plain_model(kind))[1]
        options = METHODS["lora"].options(**FORMS[form][1])
        adapter = METHODS["lora"].make(model.config, options)
        adapter.restore(model, dict(stored.named_parameters()))
    else:
        model, adapter, _ = load_adapter(shelf / kind / form, model)
        round_weights(model, kind)  # those that trained, too
    with torch.no_grad():
        return model(torch.tensor([IDS]), adaptation=adapter.eval())[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_served_is_the_training_forward(kind: str, form: str, shelf: Path) -> None:
    """At once, and token by token behind a cache; the bare model beside it is not touched."""
    engine = engine_of(kind, shelf)
    before = engine.next_logits(IDS)
    expected = trained_logits(kind, form, shelf)
    near = {"float32": 1e-4, "int8": 2e-3, "int4": 0.05}[kind] * expected.abs().max()  # int4 has activations of 8 bits
    assert (engine.next_logits(IDS, form) - expected[-1]).abs().max() < near
    variant = engine.variant(form)
    cache = variant.new_cache(1, len(IDS))
    found = [engine.forward([IDS[:4]], [cache], [4], [variant])[0]]
    found += [engine.forward([[token]], [cache], variants=[variant])[0] for token in IDS[4:]]
    assert (torch.cat(found) - expected).abs().max() < near
    assert torch.equal(engine.next_logits(IDS), before)
    assert kind == "int4" or (expected[-1] - before).abs().max() > 10 * near


def run(engine: Engine, form: str | None, prompt: list[int], **more: int) -> Request:
    params = SamplingParams(**{"max_tokens": 24, "logprobs": True, "lookup": False, **more})  # type: ignore[arg-type]
    return engine.generate(prompt, params, adapter=form)


def prompts() -> dict[str | None, list[int]]:
    return {form: [*IDS[: 3 + i % 7], 20 + i] for i, form in enumerate([None, *FORMS])}


@pytest.mark.parametrize("kind", ["float32", "int4"])
def test_all_at_once_equal_each_alone(kind: str, shelf: Path) -> None:
    """The bare model and every method, in one engine at the same time; and again behind what was kept of them."""
    together = engine_of(kind, shelf)
    for _ in range(2):
        running = {form: run(together, form, prompt) for form, prompt in prompts().items()}
        together.scheduler.submit(list(running.values()))
        for request in running.values():
            request._submitted = True
        for request in running.values():
            list(request)
    for form, request in running.items():
        alone = run(engine_of(kind, shelf), form, request.prompt)
        list(alone)
        assert alone.tokens == request.tokens, form
        near = 1e-4 if kind == "float32" else 0.0
        assert max(abs(a - b) for a, b in zip(alone.logprobs, request.logprobs, strict=True)) <= near, form
        assert request.usage.cached_tokens == (0 if kind == "int4" and form in EAGER else len(request.prompt) - 1)
    assert len({tuple(request.tokens) for request in running.values()}) > len(FORMS) // 2


@pytest.mark.parametrize("kind", ["float32", "int4"])
def test_what_one_adapter_computed_is_never_used_for_another(kind: str, shelf: Path) -> None:
    engine = engine_of(kind, shelf)
    for form in (None, "lora", "rslora", "prefix_tuning", "prompt_tuning", "llama_pro", "bottleneck"):
        first, again = run(engine, form, IDS), None
        list(first)
        assert first.usage.cached_tokens == 0, form
        again = run(engine, form, IDS)
        list(again)
        assert again.usage.cached_tokens == (0 if kind == "int4" and form in EAGER else len(IDS) - 1), form
        assert again.tokens == first.tokens


@pytest.mark.parametrize("form", EAGER)
def test_those_beside_the_compiled_step_are_exact(form: str, shelf: Path) -> None:
    """Several requests of one adapter, prompts of several pieces, what is kept of them, and drafts: to the last bit."""
    draw = random.Random(0)
    head = [draw.randrange(1, 90) for _ in range(150)]
    given = [head[:10], head[:70], [*head[:70], 5, 6], head, [*head[:100], *head[20:60]], head[:140]]
    alone = [run(engine_of("int4", shelf), form, prompt) for prompt in given]
    for request in alone:
        list(request)
    together = engine_of("int4", shelf)
    forward, pieces = together.forward, list[int]()

    def watched(tokens: Any, caches: Any, last: Any, variants: Any) -> Any:
        pieces.extend(len(each) for each in tokens if variants[0].grid > 1)
        return forward(tokens, caches, last, variants)

    together.forward = watched  # type: ignore[method-assign, assignment]
    for known in (0, len(head) // 64 * 64):
        beside = [run(together, None, head[1:]), *(run(together, form, prompt, lookup=True) for prompt in given)]
        together.scheduler.submit(beside)
        for request in beside:
            request._submitted = True
            list(request)
        assert [each.tokens for each in beside[1:]] == [each.tokens for each in alone]
        assert [each.logprobs for each in beside[1:]] == [each.logprobs for each in alone]
        assert max(each.usage.cached_tokens for each in beside[1:]) == known
    scored = [(head[:90], head[90:130]), (head[:30], head[30:50])]
    found = [engine_of("int4", shelf).log_likelihoods([pair], adapter=form)[0] for pair in scored]
    assert together.log_likelihoods(scored, adapter=form) == found
    assert max(pieces) == 64, "whatever is known, the same pieces"


def test_apart_hands_every_seam_on(shelf: Path) -> None:
    """Of an adaptation in products or in front of a sequence, too, each gets its own."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(1, 7, TINY.dim, generator=draw)
    for form in ("lora", "prefix_tuning", "prompt_tuning"):
        model = tiny_model(TINY)
        inner = load_adapter(shelf / "float32" / form, model)[1]
        apart = Apart(inner, [3, 4])
        linear = model.get_submodule("layers.0.self_attn.q_proj")
        with torch.no_grad():
            wanted = [inner.project(0, "q_proj", linear, part) for part in torch.split(x, [3, 4], 1)]
            assert torch.allclose(apart.project(0, "q_proj", linear, x), torch.cat(wanted, 1), atol=1e-6)
            assert apart.prefix_length == inner.prefix_length
            if inner.prefix_length:
                assert all(map(torch.equal, apart.prefix(1), inner.prefix(1)))
            assert (apart.virtual is None) == (inner.virtual is None)
            assert inner.virtual is None or apart.virtual is None or torch.equal(apart.virtual, inner.virtual)


def test_kept_prefixes_share_one_memory(shelf: Path) -> None:
    """What was used longest ago goes, whosever it is; running requests count with their virtual tokens."""
    per_token = engine_of("int4", shelf).cache_bytes_per_token
    engine = engine_of("int4", shelf, 100 * per_token)
    for form in (None, "lora", "prefix_tuning"):
        list(run(engine, form, IDS, max_tokens=10))
    tree = engine.scheduler.prefixes

    def kept(form: str | None, tokens: list[int]) -> int:
        """How much of it is kept; a request has ended shortly before that is done."""
        end = time.monotonic() + 5
        while not (found := tree.match(tokens, engine.variant(form))) and time.monotonic() < end:
            time.sleep(0.01)
        return found

    assert [kept(form, IDS) for form in (None, "lora", "prefix_tuning")] == [len(IDS)] * 3
    list(run(engine, "lora", [9] * 40, max_tokens=10))
    assert kept("lora", [9] * 40) == 40
    assert tree.bytes <= 100 * per_token
    assert tree.match(IDS, engine.plain) < len(IDS), "the oldest"
    with pytest.raises(LlamaError, match="kv_memory_mb"):  # 75 and 20 would fit, the 6 virtual ones do not
        list(run(engine, "prefix_tuning", [9] * 75, max_tokens=20))
    list(run(engine, None, [9] * 75, max_tokens=20))


def test_a_deeper_model_counts_its_layers(shelf: Path) -> None:
    engine = engine_of("int8", shelf)
    assert engine.variant("llama_pro").bytes_per_token == engine.cache_bytes_per_token * 6 // 4
    deep, base = engine.variant("llama_pro").model, engine.model
    shared = {id(module) for module in base.modules() if isinstance(module, QuantizedLinear)}
    own = [m for m in deep.modules() if isinstance(m, QuantizedLinear) and id(m) not in shared]
    assert len(own) == 2 * 7, "two new blocks; all else is the base's"


def test_cancelling_one_leaves_the_others(shelf: Path) -> None:
    engine = engine_of("int4", shelf)
    alone = run(engine_of("int4", shelf), "dora", IDS)
    list(alone)
    cancel = threading.Event()
    params = SamplingParams(max_tokens=400, stop_loops=False)
    long = engine.generate(IDS, params, cancel, adapter="bottleneck")
    other = run(engine, "dora", IDS)
    pieces = iter(long)
    next(pieces)
    list(other)
    cancel.set()
    list(pieces)
    assert long.usage.finish_reason in ("cancelled", "stop")
    assert other.tokens == alone.tokens
    assert engine.scheduler.running == 0


def test_likelihoods_take_the_adapter_along(shelf: Path) -> None:
    engine = engine_of("int8", shelf)
    for form in ("dora", "prompt_tuning", "llama_adapter"):
        expected = trained_logits("int8", form, shelf).log_softmax(-1)
        [found] = engine.log_likelihoods([(IDS[:4], IDS[4:])], form)
        wanted = [expected[place, token].item() for place, token in enumerate(IDS[4:], 3)]
        assert found == pytest.approx(wanted, abs=0.01)
        assert found != pytest.approx(engine.log_likelihoods([(IDS[:4], IDS[4:])])[0], abs=0.02)


def test_an_adapter_is_loaded_once_and_again_when_it_changed(shelf: Path, tmp_path: Path) -> None:
    model, adapter = adapted("lora")
    shaken(model, adapter)
    save_adapter(tmp_path / "float32" / "mine", "lora", adapter, model, BASE)
    engine = engine_of("float32", tmp_path)
    first, again = (engine.next_logits(IDS, "mine") for _ in range(2))
    assert torch.equal(first, again)
    list(run(engine, "mine", IDS))
    shaken(model, adapter, seed=6)
    save_adapter(tmp_path / "float32" / "mine", "lora", adapter, model, BASE)
    assert (engine.next_logits(IDS, "mine") - first).abs().max() > 1e-3
    after = run(engine, "mine", IDS)
    list(after)
    assert after.usage.cached_tokens == 0, "what the old one computed is not the new one's"
    assert engine._adapters.loads == ["mine", "mine"]  # type: ignore[union-attr]


def test_a_replacement_that_cannot_be_used_harms_nobody_else(shelf: Path, tmp_path: Path) -> None:
    mine = tmp_path / "float32" / "mine"
    shutil.copytree(shelf / "float32" / "lora", mine)
    engine = engine_of("float32", tmp_path)
    for name in (None, "mine"):
        list(run(engine, name, IDS))
    (tensors,) = mine.glob("*.safetensors")
    tensors.write_bytes(tensors.read_bytes()[:-5])
    os.utime(mine / "paddock.json")
    with pytest.raises(FinetuneError, match="damaged"):
        engine.next_logits(IDS, "mine")
    after = run(engine, None, IDS)
    list(after)
    assert after.usage.cached_tokens > 0


def test_an_adapter_that_loads_delays_no_other(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of("float32", shelf)
    known, begun, goes_on = engine._adapters, threading.Event(), threading.Event()
    assert known is not None
    load = known.load

    def slow(name: str, model: Transformer) -> Serving:
        if name == "dora":
            begun.set()
            assert goes_on.wait(60)
        return load(name, model)

    monkeypatch.setattr(known, "load", slow)
    found: list[torch.Tensor] = []
    threads = [threading.Thread(target=lambda: found.append(engine.next_logits(IDS, "dora"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert begun.wait(60)
    other = threading.Thread(target=engine.next_logits, args=(IDS, "lora"))
    other.start()
    other.join(60)
    assert not other.is_alive()
    goes_on.set()
    for thread in threads:
        thread.join(60)
    assert torch.equal(*found)
    assert known.loads.count("dora") == 1  # type: ignore[attr-defined]


def test_of_many_adapters_those_asked_last_stay(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "MOST_ADAPTERS", 2)
    engine = engine_of("float32", shelf)
    first = weakref.ref(engine.variant("lora"))
    for name in ("lora", "dora", "lora", "llama_adapter", "lora"):
        list(run(engine, name, IDS))
    loads = engine._adapters.loads  # type: ignore[union-attr]
    assert loads == ["lora", "dora", "llama_adapter"]
    for name in ("dora", "llama_adapter"):
        list(run(engine, name, IDS))
    assert loads == ["lora", "dora", "llama_adapter", "dora", "llama_adapter"]
    list(run(engine, None, IDS))
    engine.log_likelihoods([(IDS, [1])])  # keeps nothing itself; the storing of those before is over by its end
    gc.collect()
    assert first() is None, "nothing holds what was let go"
    assert len(engine.scheduler.prefixes._roots) == 3, "of those loaded and of the bare model"


def test_a_fault_ends_the_requests_of_its_forward_alone(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of("int8", shelf)
    names = [None, "bottleneck", "lora", "llama_adapter", "bottleneck"]
    broken, forward = engine.variant("bottleneck"), Variant.forward

    def fail(variants: Sequence[Variant], *rest: Any) -> list[torch.Tensor]:
        if broken in variants:
            raise MemoryError("no room")
        return forward(variants, *rest)

    monkeypatch.setattr(Variant, "forward", staticmethod(fail))
    ended = dict(engine.generate_batch([IDS] * len(names), SamplingParams(max_tokens=4), adapters=names))
    assert [isinstance(ended[place].error, MemoryError) for place in range(5)] == [n == "bottleneck" for n in names]
    assert all(len(ended[place].tokens) > 0 for place in (0, 2, 3))
    assert engine.scheduler.running == 0


def test_what_cannot_share_a_forward_is_not_given_one(shelf: Path) -> None:
    engine = engine_of("float32", shelf)
    variants = [engine.plain, engine.variant("lora")]
    with pytest.raises(ValueError, match="cannot share"):
        engine.forward([IDS, IDS], [each.new_cache(1, 20) for each in variants], variants=variants)


def test_an_adapter_that_is_not_finite_is_refused(shelf: Path, tmp_path: Path) -> None:
    mine = tmp_path / "float32" / "mine"
    shutil.copytree(shelf / "float32" / "lora", mine)
    (path,) = mine.glob("*.safetensors")
    tensors = load_file(path)
    name = sorted(tensors)[3]
    tensors[name].view(-1)[5] = float("nan")
    save_file(tensors, path)
    with pytest.raises(FinetuneError, match=r"adapter 'mine' cannot be used: .* not finite"):
        engine_of("float32", tmp_path).next_logits(IDS, "mine")


def test_caches_of_answers_know_which_adapter_it_was(shelf: Path, tmp_path: Path) -> None:
    for name in ("lora", "dora"):
        shutil.copytree(shelf / "float32" / name, tmp_path / "float32" / name)
    chat = ChatLlama(engine=engine_of("float32", tmp_path), adapter="lora")
    before = chat._identifying_params
    assert before == chat._identifying_params
    shutil.rmtree(tmp_path / "float32" / "lora")
    shutil.move(tmp_path / "float32" / "dora", tmp_path / "float32" / "lora")
    assert chat._identifying_params != before, "another one of the same name"


def test_virtual_tokens_count_in_the_context(shelf: Path) -> None:
    engine = engine_of("float32", shelf)
    with pytest.raises(LlamaError, match="506 tokens beside 6 of the adapter and the model's context is 512"):
        engine.generate([1] * 506, SamplingParams(), adapter="prefix_tuning")
    request = engine.generate([1] * 505, SamplingParams(max_tokens=5), adapter="prefix_tuning")
    list(request)
    assert request.usage.answer_tokens <= 1


def test_an_engine_without_adapters_says_so() -> None:
    engine = Engine(tiny_model(), Tokenizer(VOCABULARY), None, "tiny")
    with pytest.raises(LlamaError, match="adapter 'x' cannot be used"):
        engine.generate(IDS, SamplingParams(), adapter="x")


@pytest.mark.parametrize("form", ["lora", "llama_pro", "prefix_tuning"])
def test_tensors_of_another_shape_are_refused_by_name(form: str, shelf: Path) -> None:
    with pytest.raises(FinetuneError, match=f"adapter '{form}' cannot be used: .*another"):
        serve_adapter(shelf / "int4" / form, tiny_model(), BASE)


def test_a_model_that_was_shared_keeps_its_own_weights(shelf: Path) -> None:
    model = tiny_model()
    before = {name: p.clone() for name, p in model.named_parameters()}
    for form in FORMS:
        serve_adapter(shelf / "float32" / form, model, BASE)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    with torch.no_grad():
        assert torch.equal(
            model(torch.tensor([IDS]), adaptation=NONE), tiny_model()(torch.tensor([IDS]), adaptation=NONE)
        )
