"""Our LLaMA against transformers on the same GGUF file, in fp32."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llama.cache import KVCache
from llama.engine import Engine
from llama.sampling import SamplingParams

from .texts import CHINESE, CODE, ENGLISH, QUESTIONS


def run(engine: Engine, ids: list[int], cache: KVCache | None = None) -> torch.Tensor:
    with torch.inference_mode():
        return engine.model(torch.tensor([ids]), cache)[0]  # type: ignore[no-any-return]


def new_cache(engine: Engine, capacity: int, rows: int = 1) -> KVCache:
    return KVCache(engine.model.config, rows, capacity)


@pytest.mark.parametrize("text", [ENGLISH, CHINESE, CODE], ids=["english", "chinese", "code"])
def test_logits_equal_transformers(engine: Engine, oracle: Any, text: str) -> None:
    ids = engine.tokenizer.encode(text)[:192]
    assert len(ids) >= 128
    expected = oracle(torch.tensor([ids])).logits[0]
    assert (run(engine, ids) - expected).abs().max() < 1e-3


@pytest.mark.parametrize("question", QUESTIONS)
def test_64_greedy_tokens_equal_transformers(engine: Engine, oracle: Any, question: str) -> None:
    ids = engine.tokenizer.encode(question)
    expected = oracle.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        max_new_tokens=64,
        do_sample=False,
        pad_token_id=2,
    )[0, len(ids) :].tolist()
    generation = engine.generate(ids, SamplingParams(max_tokens=64))
    text = "".join(generation)
    ends = [token for token in expected if token in engine.tokenizer.eos_ids]
    assert generation.tokens == [token for token in expected if token not in engine.tokenizer.eos_ids]
    assert len(generation.tokens) == 64 or ends, "fewer than 64 tokens only where the oracle ended too"
    assert text == engine.tokenizer.decode(generation.tokens)


def test_cached_equals_uncached(engine: Engine) -> None:
    ids = engine.tokenizer.encode(ENGLISH)[:48]
    cache = new_cache(engine, 48)
    one_by_one = torch.cat([run(engine, [token], cache) for token in ids])
    assert torch.allclose(one_by_one, run(engine, ids), atol=1e-3)


def test_chunked_prefill_equals_one_shot(engine: Engine) -> None:
    """Chunks of uneven sizes: each must see the cached columns before it (LLaMA 1's mask lacked them)."""
    ids = engine.tokenizer.encode(ENGLISH)[:96]
    cache = new_cache(engine, 96)
    pieces = [run(engine, ids[a:b], cache) for a, b in ((0, 33), (33, 34), (34, 80), (80, 96))]
    assert torch.allclose(torch.cat(pieces), run(engine, ids), atol=1e-3)
    assert cache.lengths == [96]


def test_ragged_batch_equals_single_rows(engine: Engine) -> None:
    """Rows of 5, 29 and 17 tokens in one right-padded batch, then two decoding steps, against each row alone."""
    rows = [engine.tokenizer.encode(ENGLISH)[a : a + n] for a, n in ((0, 5), (20, 29), (60, 17))]
    tokens = torch.zeros(3, 29, dtype=torch.long)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
    cache = new_cache(engine, 40, rows=3)
    with torch.inference_mode():
        logits = engine.model(tokens, cache, new=[len(row) for row in rows], last=True)[:, 0]
        for step in range(3):
            alone = torch.stack([run(engine, row)[-1] for row in rows])
            assert torch.allclose(logits, alone, atol=1e-3), f"step {step}"
            nexts = logits.argmax(-1)
            rows = [[*row, int(token)] for row, token in zip(rows, nexts, strict=True)]
            logits = engine.model(nexts[:, None], cache)[:, 0]


def test_position_8000(engine: Engine, oracle: Any) -> None:
    """The last tokens of an 8,020-token prompt see the right angles: the same logits as transformers."""
    ids = (engine.tokenizer.encode(ENGLISH) * 60)[:8020]
    assert len(ids) == 8020
    cache = new_cache(engine, 8020)
    for start in range(0, 8000, 500):
        run(engine, ids[start : start + 500], cache)
    ours = run(engine, ids[8000:], cache)
    expected = oracle(torch.tensor([ids]), logits_to_keep=20).logits[0]
    assert (ours - expected).abs().max() < 1e-3


def test_rotary_table_stays_fp32(engine: Engine) -> None:
    """bf16 cannot tell positions above 256 apart; a model cast to it must still turn them differently."""
    import copy

    half = copy.deepcopy(engine.model).to(torch.bfloat16)
    cos, _ = half.rope.at(torch.tensor([[7999, 8000]]))
    assert cos.dtype == torch.float32
    assert not torch.equal(cos[0, 0, 0], cos[0, 0, 1])
    ids = engine.tokenizer.encode(ENGLISH)[:64]
    with torch.inference_mode():
        close = torch.nn.functional.cosine_similarity(half(torch.tensor([ids]))[0].float(), run(engine, ids))
    assert close.min() > 0.99
