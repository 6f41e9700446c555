"""A ragged batch gives each request what it gets alone."""

from __future__ import annotations

import threading

import pytest
import torch

from llama.cache import KVCache
from llama.config import ModelConfig
from llama.decoding import Decoding
from llama.engine import Engine
from llama.errors import LlamaError
from llama.model import Transformer
from llama.sampling import SamplingParams

QUESTIONS = [
    "What is the capital of France?",
    "羊驼吃什么？",
    "Hi",
    *(f"Explain number {n} to a child. " + "It matters. " * n for n in range(17)),
]


@pytest.fixture(scope="module")
def prompts(engine: Engine) -> list[list[int]]:
    return [engine.encode_chat([{"role": "user", "content": question}]) for question in QUESTIONS]


def alone(engine: Engine, prompt: list[int], params: SamplingParams) -> tuple[str, list[int], str]:
    generation = engine.generate(prompt, params)
    assert "".join(generation) == generation.text or params.stop_loops
    return generation.text, generation.tokens, generation.usage.finish_reason


@pytest.mark.parametrize(("model", "rows", "requests"), [("fast", 16, 20), ("engine", 3, 7)])
def test_equals_one_at_a_time(
    request: pytest.FixtureRequest, prompts: list[list[int]], model: str, rows: int, requests: int
) -> None:
    engine: Engine = request.getfixturevalue(model)
    prompts = prompts[:requests]
    params = SamplingParams(max_tokens=24, stop=("\n",), stop_loops=True)
    found = dict(engine.generate_batch(prompts, params, rows))
    assert sorted(found) == list(range(len(prompts))), "each once"
    for i, prompt in enumerate(prompts):
        assert (found[i].text, found[i].tokens, found[i].usage.finish_reason) == alone(engine, prompt, params), i
        assert found[i].usage.prompt_tokens == len(prompt)
        assert found[i].usage.answer_tokens >= len(found[i].tokens)
        assert found[i].usage.prefill_s > 0
    assert len({found[i].usage.answer_tokens for i in found}) > 2, "rows come free at different times"


def test_padding_may_lie_behind_the_end_of_the_context() -> None:
    """Row 0 takes its last token beside three of row 1."""
    torch.manual_seed(2)
    config = ModelConfig(
        dim=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, ffn_dim=48, vocab_size=50, context_length=16,
        norm_eps=1e-5, rope_theta=10000.0, tied=True,
    )  # fmt: skip
    model = Transformer(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.3)
    rows = [torch.randint(50, (1, 16)), torch.randint(50, (1, 7))]
    with torch.inference_mode():
        both, singles = KVCache(config, 2, 16), [KVCache(config, 1, 16) for _ in rows]
        first = torch.cat((rows[0][:, :15], torch.cat((rows[1][:, :4], torch.zeros(1, 11, dtype=torch.long)), 1)))
        model(first, both, new=[15, 4])
        second = torch.cat((torch.cat((rows[0][:, 15:], torch.zeros(1, 2, dtype=torch.long)), 1), rows[1][:, 4:]))
        found = model(second, both, new=[1, 3], last=True)
        for row, cache, logits in zip(rows, singles, found, strict=True):
            assert torch.allclose(model(row, cache, last=True)[0], logits, atol=1e-5)


def test_sampled_rows_keep_their_seed(engine: Engine, prompts: list[list[int]]) -> None:
    params = SamplingParams(max_tokens=12, temperature=0.8, seed=5)
    found = dict(engine.generate_batch(prompts[:4], params))
    for i in range(4):
        assert found[i].text == alone(engine, prompts[i], params)[0]


def test_results_come_as_they_end(engine: Engine, prompts: list[list[int]]) -> None:
    results = engine.generate_batch(prompts[:8], SamplingParams(max_tokens=40), rows=4)
    first, _ = next(results)
    assert first < 5, "long before the last request has begun"
    results.close()


def test_cancel_ends_all(engine: Engine, prompts: list[list[int]]) -> None:
    cancel = threading.Event()
    found = {}
    for i, result in engine.generate_batch(prompts, SamplingParams(max_tokens=200), 4, cancel):
        cancel.set()
        found[i] = result
    assert sorted(found) == list(range(len(prompts)))
    assert sum(result.usage.finish_reason == "cancelled" for result in found.values()) >= len(prompts) - 4


def test_nothing_runs_when_one_prompt_does_not_fit(engine: Engine, prompts: list[list[int]]) -> None:
    assert list(engine.generate_batch([], SamplingParams())) == []
    with pytest.raises(LlamaError, match="8192"):
        next(engine.generate_batch([*prompts, [5] * 8192], SamplingParams()))


def test_one_that_could_never_fit_is_told_and_the_rest_goes_on(fast: Engine, prompts: list[list[int]]) -> None:
    params = SamplingParams(max_tokens=8)
    small = Engine(fast.model, fast.tokenizer, fast.template, fast.name, kv_memory=100 * fast.cache_bytes_per_token)
    given = [[5] * 200, *prompts[:3], [5] * 300]
    found = dict(small.generate_batch(given, params, rows=2))
    assert sorted(found) == list(range(len(given))), "each once"
    for i in (0, 4):
        assert "kv_memory_mb" in str(found[i].error)
        assert isinstance(found[i].error, LlamaError)
    for i, prompt in enumerate(prompts[:3], 1):
        assert found[i].error is None
        assert (found[i].text, found[i].tokens, found[i].usage.finish_reason) == alone(fast, prompt, params)
    none = dict(small.generate_batch([[5] * 200] * 3, params, rows=2))
    assert [type(none[i].error) for i in range(3)] == [LlamaError] * 3, "though nothing ever runs"


def test_a_fault_in_one_leaves_the_others(
    fast: Engine, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    params = SamplingParams(max_tokens=8)
    push = Decoding.push

    def fail(self: Decoding, logits: torch.Tensor, budget: int) -> str:
        if self.usage.prompt_tokens == len(prompts[1]) and len(self.tokens) == 2:
            raise ZeroDivisionError("of this request")
        return push(self, logits, budget)

    monkeypatch.setattr(Decoding, "push", fail)
    lengths = [len(prompt) for prompt in prompts[:4]]
    assert lengths.count(len(prompts[1])) == 1
    found = dict(fast.generate_batch(prompts[:4], params))
    assert [type(found[i].error) for i in range(4)] == [type(None), ZeroDivisionError, type(None), type(None)]
    for i in (0, 2, 3):
        assert found[i].text == alone(fast, prompts[i], params)[0]
