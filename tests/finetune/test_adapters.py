"""Every method: where it starts, what it computes with open gates, what trains, how it merges."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from finetune.adapters import METHODS, method
from finetune.adapters.base import Adapter, products, unmerge
from finetune.adapters.lora import Lora
from finetune.adapters.prompt_tuning import PromptTuning
from finetune.errors import FinetuneError
from finetune.learner import Batch, Learner
from finetune.nf4 import NF4Linear, code
from llama.adaptation import NONE
from llama.cache import KVCache, PackedCache
from llama.config import ModelConfig
from llama.errors import LlamaError
from llama.model import Attention, Transformer, rotate

from .conftest import FORMS, SMALL, TINY, adapted, encode, examples, shaken, tiny_model

IDS = torch.tensor([[7, 3, 90, 41, 5, 5, 62, 18, 33, 2]])
SEVEN = ModelConfig(
    dim=4096, n_layers=32, n_heads=32, n_kv_heads=32, head_dim=128, ffn_dim=11008, vocab_size=32000,
    context_length=2048, tied=False,
)  # fmt: skip
AT_BASE = [form for form in FORMS if form not in ("qlora", "prefix_tuning", "prefix by a network", "prompt_tuning",
                                                  "p-tuning mlp", "p-tuning lstm")]  # fmt: skip


def logits(model: Transformer, adapter: Adapter | None = None, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        return model(ids, adaptation=adapter or NONE)  # type: ignore[no-any-return]


def count(name: str, config: ModelConfig = SEVEN, **options: object) -> tuple[int, int]:
    """(trained, all) parameters of the model that the method runs in, on the meta device."""
    with torch.device("meta"):
        made = METHODS[name].make(config, METHODS[name].options(**options))
        model = made.enter(Transformer(config))
    return sum(p.numel() for p in made.trained(model).values()), sum(p.numel() for p in model.parameters())


def test_counts_on_7b() -> None:
    """The research table's numbers, the LLaMA-Adapter paper's 1.2M among them."""
    assert count("lora", lora_rank=8, lora_target=["q_proj", "v_proj"])[0] == 4_194_304
    assert count("lora", lora_rank=8)[0] == 19_988_480
    assert count("llama_adapter") == (1_229_760, 6_738_415_616)
    assert count("prefix_tuning")[0] == 5_242_880
    assert count("prompt_tuning")[0] == 81_920
    assert count("bottleneck")[0] == 33_820_672
    assert count("freeze")[0] == 404_766_720
    assert count("freeze", freeze_trainable_layers=-2)[0] == 404_766_720
    assert count("llama_pro") == (1_619_066_880, 8_357_482_496)
    assert count("full") == (6_738_415_616, 6_738_415_616)


def test_prefix_on_llama_3_8b_counts_key_heads() -> None:
    grouped = ModelConfig(
        dim=4096, n_layers=32, n_heads=32, n_kv_heads=8, head_dim=128, ffn_dim=14336, vocab_size=128256,
        context_length=8192, tied=False,
    )  # fmt: skip
    assert count("prefix_tuning", grouped)[0] == 1_310_720


def test_qlora_packs_products_and_trains_what_lora_does() -> None:
    trained, left = count("qlora", lora_rank=8)
    assert trained == 19_988_480
    assert left == 2 * 32_000 * 4096 + 65 * 4096  # embeddings and norms alone stay in full precision


@pytest.mark.parametrize("form", AT_BASE)
def test_step_0_is_the_base(form: str) -> None:
    base = logits(tiny_model())
    assert (logits(*adapted(form)) - base).abs().max() < 1e-5


@pytest.mark.parametrize("form", FORMS)
def test_gradients_reach_all_that_trains_and_nothing_else(form: str) -> None:
    """Two steps: some parts (A of LoRA, the prompts behind a closed gate) have no gradient before the first."""
    model, adapter = adapted(form)
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if n not in adapter.trained(model)}
    codes = {n: b.clone() for n, b in model.named_buffers()}
    learner, batch = Learner(model, adapter, torch.float32, recompute=False), Batch.of(examples(4))
    trained = adapter.trained(model)
    assert {id(p) for p in learner.parameters() if p.requires_grad} == {id(p) for p in trained.values()}
    start = {n: p.detach().clone() for n, p in trained.items()}
    optimizer = torch.optim.SGD(trained.values(), lr=0.1)
    for step in range(2):
        optimizer.zero_grad()
        loss, _ = learner(batch)
        (loss / len(batch.labels)).backward()
        if step:
            silent = [n for n, p in trained.items() if p.grad is None or not p.grad.abs().max() > 0]
            assert silent == []
        optimizer.step()
    assert [n for n, p in trained.items() if torch.equal(p, start[n])] == []
    now = dict(model.named_parameters())
    assert [n for n, p in frozen.items() if not torch.equal(p, now[n])] == []
    assert all(torch.equal(b, codes[n]) for n, b in model.named_buffers())


@pytest.mark.parametrize("form", FORMS)
def test_recomputing_blocks_gives_the_same_gradients(form: str) -> None:
    """Checkpointing beside frozen weights, virtual tokens and prefixes, grouped queries (peft #1142, #869, #2449)."""
    found = []
    for recompute in (False, True):
        model, adapter = adapted(form)
        shaken(model, adapter)
        loss, _ = Learner(model, adapter, torch.float32, recompute)(Batch.of(examples(4)))
        loss.backward()
        found.append({n: p.grad for n, p in adapter.trained(model).items()})
    plain, again = found
    assert plain.keys() == again.keys()
    for name, grad in plain.items():
        other = again[name]
        assert grad is not None
        assert other is not None
        assert torch.allclose(grad, other, atol=1e-6), name


@pytest.mark.parametrize("form", FORMS)
def test_cache_packing_and_batches_agree(form: str) -> None:
    """With everything moved off its start: whole, token by token, ragged, and several sequences in a row."""
    model, adapter = adapted(form)
    shaken(model, adapter)
    adapter.eval()
    whole = logits(model, adapter)[0]
    cache = KVCache(model.config, 1, 40)
    with torch.no_grad():
        pieces = [model(IDS[:, a:b], cache, adaptation=adapter)[0] for a, b in ((0, 3), (3, 4), (4, 10))]
        assert torch.allclose(torch.cat(pieces), whole, atol=1e-4)
        two = torch.cat((IDS, IDS[:, 2:6]), 1)
        packed = model(two, adaptation=adapter, documents=[10, 4])[0]
        assert torch.allclose(packed[:10], whole, atol=1e-4)
        assert torch.allclose(packed[10:], logits(model, adapter, IDS[:, 2:6])[0], atol=1e-4)
        caches = [KVCache(model.config, 1, 40), KVCache(model.config, 1, 40)]
        first = model(two, PackedCache(caches, [10, 4]), adaptation=adapter)[0]
        assert torch.allclose(first, packed, atol=1e-4)
        following = torch.tensor([[8, 9]])
        after = model(following, PackedCache(caches, [1, 1]), adaptation=adapter)[0]
        alone = logits(model, adapter, torch.cat((IDS, following[:, :1]), 1))[0, -1]
        assert torch.allclose(after[0], alone, atol=1e-4)
        ragged = torch.stack((IDS[0], F.pad(IDS[0, 2:6], (0, 6))))
        rows = model(ragged, new=[10, 4], adaptation=adapter)
        assert torch.allclose(rows[0], whole, atol=1e-4)
        assert torch.allclose(rows[1, :4], packed[10:], atol=1e-4)
        last = model(ragged, KVCache(model.config, 2, 40), new=[10, 4], last=True, adaptation=adapter)
        assert torch.allclose(last[:, 0], torch.stack((whole[-1], packed[-1])), atol=1e-4)


def test_rows_that_begin_and_go_on_are_refused_beside_virtual_tokens() -> None:
    model, adapter = adapted("prompt_tuning")
    cache = KVCache(model.config, 2, 40)
    cache.lengths = [0, 3]
    with pytest.raises(LlamaError, match="cannot share a batch"):
        model(torch.stack((IDS[0], IDS[0])), cache, adaptation=adapter)


# -- with gates open, against the mathematics written out --------------------------------------------------------------


def naive_attention(model: Transformer, x: Tensor, layer: int, more: Callable[[Attention, Tensor], Tensor]) -> Tensor:
    """One layer's attention, head by head."""
    attention = model.layers[layer].self_attn
    config = model.config
    size, width = x.shape[0], config.head_dim
    cos, sin = model.rope.at(torch.arange(size)[None])

    def heads(linear: torch.nn.Module, number: int) -> Tensor:
        return linear(x).view(1, size, number, width).transpose(1, 2)  # type: ignore[no-any-return]

    q = rotate(heads(attention.q_proj, config.n_heads), cos, sin)[0]
    k = rotate(heads(attention.k_proj, config.n_kv_heads), cos, sin)[0]
    v = heads(attention.v_proj, config.n_kv_heads)[0]
    outs = []
    for head in range(config.n_heads):
        group = head // (config.n_heads // config.n_kv_heads)
        scores = q[head] @ k[group].T / math.sqrt(width)
        scores = scores.masked_fill(torch.ones(size, size).triu(1).bool(), -math.inf)
        outs.append(scores.softmax(-1) @ v[group])
    out = torch.stack(outs) + more(attention, q)
    return attention.o_proj(out.transpose(0, 1).reshape(size, -1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("form", ["llama_adapter", "scalar gates"])
def test_llama_adapter_is_its_equation(form: str) -> None:
    """out = softmax(q k^T) v + tanh(g) softmax(q a_k^T) a_v: two softmaxes, scaled alike, no rotation of a_k."""
    model, adapter = adapted(form)
    shaken(model, adapter, by=0.5)
    trained = adapter.trained(model)
    size, config = 5, model.config

    def more(layer: int) -> Callable[[Attention, Tensor], Tensor]:
        def found(attention: Attention, q: Tensor) -> Tensor:
            if layer < 1:  # 3 of 4 layers
                return torch.zeros_like(q)
            prompt = trained["prompt"][(layer - 1) * size : layer * size]
            gates = trained["gate"][layer - 1].expand(config.n_heads)
            gates = gates.tanh() if form == "llama_adapter" else gates
            outs = []
            for head in range(config.n_heads):
                group = slice((head // 2) * config.head_dim, (head // 2 + 1) * config.head_dim)
                keys = prompt @ attention.k_proj.weight[group].T
                values = prompt @ attention.v_proj.weight[group].T
                scores = q[head] @ keys.T / math.sqrt(config.head_dim)
                outs.append(gates[head] * (scores.softmax(-1) @ values))
            return torch.stack(outs)

        return found

    with torch.no_grad():
        x = model.embed_tokens(IDS[0])
        for layer, block in enumerate(model.layers):
            x = x + naive_attention(model, block.input_layernorm(x), layer, more(layer))
            inner = block.post_attention_layernorm(x)
            mlp = block.mlp
            x = x + mlp.down_proj(F.silu(mlp.gate_proj(inner)) * mlp.up_proj(inner))
        expected = model.lm_head(model.norm(x))
    assert (logits(model, adapter)[0] - expected).abs().max() < 1e-4
    assert (expected - logits(model)[0]).abs().max() > 0.05


def test_llama_adapter_learns_its_gates_before_its_prompts() -> None:
    model, adapter = adapted("llama_adapter")
    loss, _ = Learner(model, adapter, torch.float32, False)(Batch.of(examples(2)))
    loss.backward()
    trained = adapter.trained(model)
    assert trained["prompt"].grad is not None
    assert trained["prompt"].grad.abs().max() == 0
    assert trained["gate"].grad is not None
    assert (trained["gate"].grad != 0).all()


@pytest.mark.parametrize(("form", "scale"), [("lora", 32 / 4), ("rslora", 32 / 2), ("dora", 8.0)])
def test_lora_is_its_equation(form: str, scale: float) -> None:
    """A product of the weights written out, trained and not, and its gradients against autograd's own."""
    model, adapter = adapted(form)
    shaken(model, adapter)
    assert isinstance(adapter, Lora)
    pair, linear = adapter.pair(1, "v_proj"), model.layers[1].self_attn.v_proj
    weight = linear.weight + scale * pair.B @ pair.A
    if pair.magnitude is not None:
        weight = pair.magnitude[:, None] * weight / weight.norm(dim=1, keepdim=True).detach()
    x = torch.randn(2, 5, TINY.dim, requires_grad=True)
    expected = x @ weight.T
    for found in (adapter.project(1, "v_proj", linear, x), adapter.eval().project(1, "v_proj", linear, x)):
        assert torch.allclose(found, expected, atol=1e-5)
        ours = torch.autograd.grad(found.square().sum(), (x, pair.A, pair.B), retain_graph=True)
        theirs = torch.autograd.grad(expected.square().sum(), (x, pair.A, pair.B), retain_graph=True)
        for a, b in zip(ours, theirs, strict=True):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-3)
    with torch.no_grad():
        assert torch.allclose(adapter.project(1, "v_proj", linear, x), expected, atol=1e-5)


def test_lora_drops_out_in_training_only() -> None:
    torch.manual_seed(0)
    adapter = METHODS["lora"].make(TINY, METHODS["lora"].options(lora_rank=4, lora_dropout=0.5))
    model = adapter.enter(tiny_model())
    shaken(model, adapter)
    assert not torch.equal(logits(model, adapter.train()), logits(model, adapter))
    assert torch.equal(logits(model, adapter.eval()), logits(model, adapter))


def test_bottleneck_is_its_equation() -> None:
    model, adapter = adapted("bottleneck")
    shaken(model, adapter)
    t, x = adapter.trained(model), torch.randn(1, 3, TINY.dim)
    inner = F.gelu(x @ t["layers.2.mlp_down.weight"].T + t["layers.2.mlp_down.bias"])
    expected = x + inner @ t["layers.2.mlp_up.weight"].T + t["layers.2.mlp_up.bias"]
    assert torch.allclose(adapter.branch(2, "mlp", x), expected, atol=1e-6)


def test_bottleneck_stands_before_both_residual_additions() -> None:
    """x + f(attention), then x + f(feed-forward), f(y) = y + W2 GELU(W1 y + b1) + b2, through the whole model."""
    model, adapter = adapted("bottleneck")
    shaken(model, adapter, by=0.3)
    trained = adapter.trained(model)

    def f(layer: int, place: str, y: Tensor) -> Tensor:
        w1, b1, w2, b2 = (
            trained[f"layers.{layer}.{place}_{end}.{part}"] for end in ("down", "up") for part in ("weight", "bias")
        )
        inner = y @ w1.T + b1
        return y + (inner * (1 + torch.erf(inner / math.sqrt(2))) / 2) @ w2.T + b2

    with torch.no_grad():
        x = model.embed_tokens(IDS[0])
        for layer, block in enumerate(model.layers):
            attended = naive_attention(model, block.input_layernorm(x), layer, lambda _, q: torch.zeros_like(q))
            x = x + f(layer, "self_attn", attended)
            inner, mlp = block.post_attention_layernorm(x), block.mlp
            x = x + f(layer, "mlp", mlp.down_proj(F.silu(mlp.gate_proj(inner)) * mlp.up_proj(inner)))
        expected = model.lm_head(model.norm(x))
    assert (logits(model, adapter)[0] - expected).abs().max() < 1e-4
    assert (expected - logits(model)[0]).abs().max() > 0.05


# -- virtual tokens ----------------------------------------------------------------------------------------------------


def test_a_prompt_of_a_text_is_that_text() -> None:
    """Initialised from a text, both methods give the logits of the text put in front."""
    model, text = tiny_model(), "abcdef"
    expected = logits(model, ids=torch.cat((torch.tensor([encode(text)]), IDS), 1))[:, 6:]
    for kind, key in (("prompt_tuning", "prompt_text"), ("prefix_tuning", "prefix_text")):
        made = METHODS[kind]
        adapter = made.make(TINY, made.options(num_virtual_tokens=6, **{key: text}))
        adapter.enter(model)
        adapter.begin(model, encode)
        assert torch.allclose(logits(model, adapter), expected, atol=1e-4), kind


@pytest.mark.parametrize("form", ["prefix by a network", "p-tuning mlp", "p-tuning lstm"])
def test_a_network_and_what_it_collapses_to_are_the_same(form: str) -> None:
    model, adapter = adapted(form)
    shaken(model, adapter)
    stored = adapter.stored(model)
    assert list(stored) == ["table"]
    _, other = adapted(form, seed=9)
    other.restore(model, stored)
    assert torch.allclose(logits(model, other), logits(model, adapter), atol=1e-5)
    assert sum(p.numel() for p in other.trained(model).values()) == stored["table"].numel()


def test_a_prefix_of_zeros_is_seen() -> None:
    """It only takes attention away: the reason to begin with a text or a warm-up."""
    made = METHODS["prefix_tuning"]
    adapter = made.make(TINY, made.options(num_virtual_tokens=6, prefix_init="zero"))
    model = adapter.enter(tiny_model())
    assert (logits(model, adapter) - logits(model)).abs().max() > 1e-3


def test_vocabulary_and_random_starts_differ() -> None:
    model, made = tiny_model(), METHODS["prompt_tuning"]
    tables = []
    for init in ("vocabulary", "random"):
        adapter = made.make(TINY, made.options(prompt_init=init))
        adapter.begin(model, encode)
        assert isinstance(adapter, PromptTuning)
        tables.append(adapter.table)
    rows = {tuple(row) for row in model.embed_tokens.weight.tolist()}
    assert all(tuple(row) in rows for row in tables[0].tolist())
    assert not any(tuple(row) in rows for row in tables[1].tolist())


@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_kept_between_forwards(form: str) -> None:
    """A validation without gradients before training must not leave values behind (litgpt #1287)."""
    model, adapter = adapted(form)
    learner, batch = Learner(model, adapter, torch.float32, False), Batch.of(examples(2))
    trained = adapter.trained(model)
    before = logits(model, adapter.eval())
    with torch.no_grad():
        learner.eval()(batch)
    optimizer = torch.optim.SGD(trained.values(), lr=0.5)
    for step in range(2):  # in the first, gates are closed and B is zero
        learner.train()
        optimizer.zero_grad()
        (learner(batch)[0] / len(batch.labels)).backward()
        assert step == 0 or all(p.grad is not None and p.grad.abs().max() > 0 for p in trained.values())
        optimizer.step()
        after = logits(model, adapter.eval())
    fresh_model, fresh = adapted(form)
    with torch.no_grad():
        for name, parameter in fresh.trained(fresh_model).items():
            parameter.copy_(trained[name])
    assert torch.allclose(after, logits(fresh_model, fresh.eval()), atol=1e-5)
    assert (after - before).abs().max() > 1e-2


# -- weights of its own ------------------------------------------------------------------------------------------------


def test_llama_pro_is_deeper_and_the_same() -> None:
    base = tiny_model()
    model, adapter = adapted("llama_pro", base)
    assert model.config.n_layers == 6
    assert torch.allclose(logits(model), logits(base), atol=1e-5)
    assert torch.equal(model.layers[2].mlp.up_proj.weight, base.layers[1].mlp.up_proj.weight)
    assert model.layers[3].mlp.up_proj.weight.data_ptr() == base.layers[2].mlp.up_proj.weight.data_ptr()
    Learner(model, adapter, torch.float32, False)(Batch.of(examples(2)))[0].backward()
    loud = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert loud == {f"layers.{n}.{part}.weight" for n in (2, 5) for part in ("self_attn.o_proj", "mlp.down_proj")}


def test_llama_pro_wants_a_divisor() -> None:
    with pytest.raises(FinetuneError, match="does not divide the model's 4 blocks; give one of 1, 2, 4"):
        METHODS["llama_pro"].make(TINY, METHODS["llama_pro"].options(num_new_layers=3))


@pytest.mark.parametrize("count", [0, 5, -5])
def test_freeze_wants_blocks_that_are_there(count: int) -> None:
    with pytest.raises(FinetuneError, match="give 1 to 4"):
        METHODS["freeze"].make(TINY, METHODS["freeze"].options(freeze_trainable_layers=count))


# -- merging -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["lora", "rslora", "dora"])
def test_merged_is_unmerged_and_back(form: str) -> None:
    model, adapter = adapted(form)
    shaken(model, adapter)
    base, with_it = logits(model), logits(model, adapter.eval())
    weights = {n: p.clone() for n, p in model.named_parameters()}
    before = adapter.merge(model)
    assert torch.allclose(logits(model), with_it, atol=1e-4)
    assert (with_it - base).abs().max() > 0.01
    unmerge(model, before)
    assert all(torch.equal(p, weights[n]) for n, p in model.named_parameters())


@pytest.mark.parametrize("form", ["llama_adapter", "prefix_tuning", "prompt_tuning", "bottleneck"])
def test_what_cannot_merge_says_so(form: str) -> None:
    model, adapter = adapted(form)
    with pytest.raises(FinetuneError, match="cannot be merged into the weights; serve it beside"):
        adapter.merge(model)


@pytest.mark.parametrize("form", FORMS)
def test_stored_and_restored(form: str) -> None:
    model, adapter = adapted(form)
    shaken(model, adapter)
    stored = {n: t.clone() for n, t in adapter.stored(model).items()}
    other_model, other = adapted(form, seed=8)
    other.restore(other_model, stored)
    assert torch.allclose(logits(other_model, other.eval()), logits(model, adapter.eval()), atol=1e-5)
    with pytest.raises(FinetuneError, match="lacks"):
        other.restore(other_model, {})
    with pytest.raises(FinetuneError, match="does not know"):
        other.restore(other_model, {**other.stored(other_model), "foreign": torch.zeros(1)})
    name, value = next(iter(stored.items()))
    with pytest.raises(FinetuneError, match="made for another model"):
        other.restore(other_model, {**other.stored(other_model), name: value[..., :-1]})


# -- four bits ---------------------------------------------------------------------------------------------------------


def test_nf4_values_are_the_papers() -> None:
    """Dettmers et al. 2023, appendix E."""
    paper = [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634,
        0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ]  # fmt: skip
    assert torch.allclose(code(), torch.tensor(paper), atol=2e-6)


def test_nf4_rounds_to_the_nearest() -> None:
    weight = torch.randn(48, 100) * torch.logspace(-2, 1, 48)[:, None]
    linear = NF4Linear(weight)
    found = linear.dense()
    flat = F.pad(weight.flatten(), (0, -weight.numel() % 64)).view(-1, 64)
    scale = flat.abs().amax(1, keepdim=True)
    best = (flat[..., None] - code() * scale[..., None]).abs().amin(-1)
    ours = (F.pad(found.flatten(), (0, -weight.numel() % 64)).view(-1, 64) - flat).abs()
    # The scales themselves are rounded to 8 bits, by groups of 256.
    assert (ours <= best + scale * 0.02 + flat.abs().max() / 254).all()
    bits = sum(b.numel() * b.element_size() * 8 for b in linear.buffers()) / weight.numel()
    assert bits < 4.2
    assert NF4Linear(torch.zeros(4, 64)).dense().abs().max() == 0


def test_qlora_is_lora_on_what_the_four_bits_stand_for() -> None:
    model, adapter = adapted("qlora")
    shaken(model, adapter)
    packed = model.layers[0].self_attn.q_proj
    assert isinstance(packed, NF4Linear)
    x = torch.randn(1, 4, TINY.dim, requires_grad=True)
    assert isinstance(adapter, Lora)
    pair = adapter.pair(0, "q_proj")
    expected = x @ (packed.dense() + 8 * pair.B @ pair.A).T
    found = adapter.project(0, "q_proj", packed, x)
    assert torch.allclose(found, expected, atol=1e-5)
    ours, theirs = (torch.autograd.grad(y.square().sum(), x)[0] for y in (found, expected))
    assert torch.allclose(ours, theirs, atol=1e-3)
    with_it = logits(model, adapter.eval())
    adapter.merge(model)
    assert torch.allclose(logits(model), with_it, atol=1e-4)


def test_qlora_keeps_no_full_weight_for_the_backward_pass() -> None:
    model, adapter = adapted("qlora")
    shapes = {(TINY.ffn_dim, TINY.dim), (TINY.dim, TINY.ffn_dim)}
    saved: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(tuple(t.shape)), t)[1], lambda t: t):
        Learner(model, adapter, torch.float32, False)(Batch.of(examples(2)))
    assert saved
    assert not [shape for shape in saved if shape in shapes or shape[::-1] in shapes]


# -- the registry ------------------------------------------------------------------------------------------------------


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(FinetuneError, match="no method 'loraa'; did you mean 'lora'"):
        method("loraa")


def test_unknown_products_name_the_nearest() -> None:
    with pytest.raises(FinetuneError, match="no 'qproj'; did you mean 'q_proj'"):
        METHODS["lora"].options(lora_target=["qproj"])
    assert METHODS["lora"].options(lora_target="all") == METHODS["lora"].options()


@pytest.mark.parametrize("given", [5, None, [["q_proj"]], [5], {"q_proj": 1}])
def test_products_are_names(given: object) -> None:
    with pytest.raises(FinetuneError, match="lora_target"):
        METHODS["lora"].options(lora_target=given)


@pytest.mark.parametrize("form", FORMS)
def test_options_know_what_the_method_takes_up_of_the_context(form: str) -> None:
    model, adapter = adapted(form)
    tensors = {name: tensor.clone() for name, tensor in adapter.stored(model).items()}
    name, options = FORMS[form]
    made = METHODS[name].make(TINY, METHODS[name].options(**options)).serve(tiny_model(), tensors)
    assert adapter.options.front == (0 if made.front is None else made.front[0].shape[2])


def test_every_method_has_a_small_form_here() -> None:
    assert SMALL.keys() == METHODS.keys()


def test_a_magnitude_near_1_counts_in_bf16() -> None:
    """bf16 has no number between 1 and 1.0078: as a factor of its own it would count as 1."""
    model = tiny_model()
    adapter = Lora(model.config, METHODS["lora"].options(lora_rank=2, use_dora=True))  # type: ignore[arg-type]
    adapter.begin(model, encode)
    (linear,) = (each for layer, name, each, _ in products(model, ["up_proj"]) if layer == 0)
    x = torch.randn(1, 400, model.config.dim)
    with torch.no_grad():
        magnitude = adapter.pair(0, "up_proj").magnitude
        assert magnitude is not None
        magnitude.mul_(1.003)
        with torch.autocast("cpu", torch.bfloat16):
            more = adapter.eval().project(0, "up_proj", linear, x).float().abs().sum() / linear(x).float().abs().sum()
    assert abs(more.item() - 1.003) < 0.001


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_settings_are_finite(value: float) -> None:
    with pytest.raises(ValidationError, match="finite"):
        METHODS["lora"].options(lora_alpha=value)
