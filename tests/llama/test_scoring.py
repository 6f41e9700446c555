"""Log-likelihoods: those of the model, however many are asked together and whatever else runs."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from llama.engine import Engine
from llama.errors import LlamaError
from llama.sampling import SamplingParams
from llama.scoring import SHORTEST_HEAD, shared_heads

TEXT = "The refuge stands at 2,450 metres and has 48 beds. Dinner is served at seven. 山屋位于海拔2450米。 " * 3


@pytest.fixture
def own(fast: Engine) -> Engine:
    """The model with a scheduler of its own, that nothing has run in."""
    return Engine(fast.model, fast.tokenizer, fast.template, fast.name)


def pairs_of(engine: Engine, texts: list[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
    return [(engine.tokenizer.encode(a), engine.tokenizer.encode(b)) for a, b in texts]


MANY = [(TEXT + "Question " + str(n) * (n % 5) + ":", " How many beds are there?" * (1 + n % 3)) for n in range(20)]


def test_they_are_those_of_the_oracle(engine: Engine, oracle: Any) -> None:
    """Prompts of one token and of more than a piece, continuations of one token and of many."""
    ids = engine.tokenizer.encode(TEXT * 12)
    assert len(ids) > 1100
    pairs = [(ids[:1], ids[1:40]), (ids[:1050], ids[1050:1090]), (ids[:1000], ids[1000:1100]), (ids[:30], ids[30:31])]
    for (prompt, continuation), found in zip(pairs, engine.log_likelihoods(pairs), strict=True):
        logits = oracle(torch.tensor([[*prompt, *continuation]])).logits[0, len(prompt) - 1 : -1]
        wanted = torch.log_softmax(logits, -1)[torch.arange(len(continuation)), torch.tensor(continuation)]
        assert torch.allclose(torch.tensor(found), wanted, atol=2e-3)


def test_they_are_those_of_generation(own: Engine) -> None:
    prompt = own.encode_chat([{"role": "user", "content": "What is the capital of France?"}])
    request = own.generate(prompt, SamplingParams(max_tokens=8, logprobs=True))
    list(request)
    [found] = own.log_likelihoods([(prompt, request.tokens)])
    assert found == pytest.approx(request.logprobs, abs=1e-4)
    assert len(found) > 3


def test_each_is_as_if_alone(own: Engine) -> None:
    pairs = pairs_of(own, MANY)
    together = own.log_likelihoods(pairs)
    for pair, found in zip(pairs, together, strict=True):
        own.scheduler.prefixes.clear()
        assert own.log_likelihoods([pair]) == [found], "bit for bit"
    assert own.log_likelihoods([]) == []
    assert own.log_likelihoods([(pairs[0][0], [])]) == [[]]


def test_what_is_shared_is_read_once_and_nothing_else_is_kept(own: Engine) -> None:
    read: list[int] = []
    forward = own.forward

    def counted(tokens: Any, *rest: Any) -> Any:
        read.append(sum(map(len, tokens)))
        return forward(tokens, *rest)

    own.forward = counted  # type: ignore[method-assign]
    pairs = pairs_of(own, MANY)
    head = len(own.tokenizer.encode(TEXT + "Question"))
    own.log_likelihoods(pairs)
    distinct = sum(len(prompt) + len(continuation) - 1 - head for prompt, continuation in pairs)
    assert head <= sum(read) <= distinct + head + len(pairs)
    known = own.scheduler.prefixes.bytes // own.cache_bytes_per_token
    assert known >= head
    repeated = {tuple(prompt) for prompt, _ in pairs}  # of five kinds
    assert known <= head + sum(len(prompt) - head + 1 for prompt in repeated)
    read.clear()
    own.log_likelihoods(pairs)
    assert sum(read) <= distinct + 2 * len(pairs), "known from the time before"


def test_heads_are_what_several_prompts_begin_with() -> None:
    a, b = list(range(SHORTEST_HEAD)), list(range(90, 90 + SHORTEST_HEAD))
    assert shared_heads([]) == shared_heads([a]) == shared_heads([a, b]) == []
    assert shared_heads([[*a, 1], [*a, 2, 3], [*a, 2]]) == [a]
    assert shared_heads([a, [*a, 5]]) == [a]
    assert shared_heads([b, a, b]) == [b]
    assert shared_heads([[*a, 1], [*a, 2], [*a, 1]]) == [a, [*a, 1]]
    assert shared_heads([a[:-1], a[:-1]]) == [], "too short to be worth it"


def test_others_go_on_beside(own: Engine) -> None:
    prompt = own.encode_chat([{"role": "user", "content": "Count to thirty."}])
    params = SamplingParams(max_tokens=40)
    alone = own.generate(prompt, params)
    list(alone)
    pairs = pairs_of(own, MANY)
    wanted = own.log_likelihoods(pairs)
    own.scheduler.prefixes.clear()
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(own.log_likelihoods(pairs))) for _ in range(3)]
    for thread in threads:
        thread.start()
    beside = own.generate(prompt, params)
    list(beside)
    for thread in threads:
        thread.join(120)
    assert found == [wanted] * 3
    assert beside.tokens == alone.tokens
    assert own.scheduler.held == 0


def test_what_cannot_be_scored_is_refused_before_anything_runs(fast: Engine) -> None:
    with pytest.raises(LlamaError, match="empty"):
        fast.log_likelihoods([([1], [2]), ([], [3])])
    limit = fast.context_length
    with pytest.raises(LlamaError, match=f"{limit + 1} tokens"):
        fast.log_likelihoods([([5] * 10, [6] * (limit - 9))])
    small = Engine(fast.model, fast.tokenizer, fast.template, fast.name, kv_memory=50 * fast.cache_bytes_per_token)
    with pytest.raises(LlamaError, match="kv_memory_mb"):
        small.log_likelihoods([([5] * 20, [6]), ([5] * 60, [6])])
    assert len(small.log_likelihoods([([5] * 20, [6] * 4)])[0]) == 4, "the refusal harms nobody"
