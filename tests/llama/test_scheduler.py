"""Requests beside each other: each as if alone, within the memory, in fair turns."""

from __future__ import annotations

import gc
import random
import subprocess
import sys
import threading
import time
from collections.abc import Hashable
from pathlib import Path

import pytest
import torch

from llama.cache import KVCache
from llama.chat import Message
from llama.engine import Engine
from llama.errors import LlamaError
from llama.lookup import Lookup
from llama.prefix import PrefixTree
from llama.request import Request
from llama.sampling import Sampler, SamplingParams

FACTS = "The refuge stands at 2,450 metres and has 48 beds. Dinner is served at seven. Lights go out at ten. " * 6


def ask(engine: Engine, text: str, history: list[Message] | None = None) -> list[int]:
    return engine.encode_chat([*(history or []), {"role": "user", "content": text}])


def said(engine: Engine, prompt: list[int], params: SamplingParams) -> Request:
    request = engine.generate(prompt, params)
    assert "".join(request) == request.text or params.stop_loops
    return request


@pytest.fixture
def own(fast: Engine) -> Engine:
    """The model with a scheduler of its own, that nothing has run in."""
    return Engine(fast.model, fast.tokenizer, fast.template, fast.name)


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.9, "seed": 4}, {"temperature": 0.7, "top_p": 0.9}])
def test_a_draft_changes_nothing_but_the_time(own: Engine, sampling: dict[str, float]) -> None:
    prompt = ask(own, FACTS + "\nRepeat all of this.")
    with_, without = (
        said(own, prompt, SamplingParams(max_tokens=80, lookup=lookup, **sampling))  # type: ignore[arg-type]
        for lookup in (True, False)
    )
    assert (with_.text, with_.tokens) == (without.text, without.tokens)
    assert without.usage.drafted_tokens == 0
    if not sampling:
        assert with_.usage.accepted_tokens > 30
        assert with_.usage.accepted_tokens <= with_.usage.drafted_tokens


def test_drafts_continue_what_stood_before() -> None:
    random_ = random.Random(1)
    tokens = [random_.randrange(6) for _ in range(400)]
    lookup = Lookup(tokens[:50])
    for i in range(50, 400):
        draft = lookup.draft(4)
        assert len(draft) <= 4
        if draft:
            joined = [*tokens[i - 2 : i], *draft]
            assert any(tokens[j : j + len(joined)] == joined for j in range(i - 2)), "as it stood there"
        else:
            assert not any(tokens[j : j + 2] == tokens[i - 2 : i] for j in range(i - 2)), "none overlooked"
        lookup.extend(tokens[i : i + 1])
    assert lookup.draft(0) == []


def test_drafts_grow_while_they_hold() -> None:
    lookup = Lookup([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 1, 2])
    sizes = [len(lookup.draft(9))]
    for drafted, accepted in ((3, 3), (5, 5), (7, 7), (7, 2), (3, 0), (1, 0), (0, 0)):
        lookup.learn(drafted, accepted)
        sizes.append(len(lookup.draft(9)))
    assert sizes == [3, 5, 7, 7, 3, 1, 1, 1]


def test_a_prompt_is_not_read_twice(own: Engine) -> None:
    params = SamplingParams(max_tokens=24)
    question = ask(own, FACTS + "\nHow many beds are there?")
    first, second = said(own, question, params), said(own, question, params)
    assert first.usage.cached_tokens == 0
    assert second.usage.cached_tokens == len(question) - 1
    assert second.text == first.text
    # The conversation goes on: question and answer are known, but for the last token, which nothing followed.
    history: list[Message] = [
        {"role": "user", "content": FACTS + "\nHow many beds are there?"},
        {"role": "assistant", "content": first.text},
    ]
    further = ask(own, "And when is dinner?", history)
    third = said(own, further, params)
    assert third.usage.cached_tokens >= len(question) + len(first.tokens) - 1
    fresh = Engine(own.model, own.tokenizer, own.template, own.name)
    assert said(fresh, further, params).text == third.text, "as if everything had been computed"
    # Only the system prompt is common.
    other = said(own, ask(own, "Something else entirely."), params)
    assert 0 < other.usage.cached_tokens < 30


def test_memory_is_bounded(fast: Engine) -> None:
    per_token = fast.cache_bytes_per_token
    small = Engine(fast.model, fast.tokenizer, fast.template, fast.name, kv_memory=300 * per_token)
    prompts = [ask(small, f"Say something about the number {n}.") for n in range(12)]
    most = 0

    def watch(request: Request) -> None:
        nonlocal most
        for _ in request:
            running = [*small.scheduler._reading, *small.scheduler._writing]
            most = max(most, sum(each.bytes for each in running) + small.scheduler.prefixes.bytes)

    threads = [
        threading.Thread(target=watch, args=(small.generate(p, SamplingParams(max_tokens=30)),)) for p in prompts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert 150 * per_token < most <= 300 * per_token
    with pytest.raises(LlamaError, match="kv_memory_mb"):
        list(small.generate(prompts[0], SamplingParams(max_tokens=400)))
    assert said(small, prompts[0], SamplingParams(max_tokens=5)).text, "the refusal harms nobody"


def test_what_is_kept_leaves_room_for_what_it_is_copied_from(fast: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a prefix is stored the cache of its request is still there: both lie within the memory."""
    engine = Engine(fast.model, fast.tokenizer, fast.template, fast.name)
    prompt, params = ask(engine, FACTS), SamplingParams(max_tokens=4)
    needed = (len(prompt) + params.max_tokens) * engine.cache_bytes_per_token
    rooms: dict[PrefixTree, list[int]] = {}
    store = PrefixTree.store

    def watched(tree: PrefixTree, tokens: list[int], cache: KVCache, budget: int, of: Hashable) -> None:
        rooms.setdefault(tree, []).append(budget)
        store(tree, tokens, cache, budget, of)

    monkeypatch.setattr(PrefixTree, "store", watched)
    for share, kept in ((1.5, False), (2.5, True)):
        small = Engine(fast.model, fast.tokenizer, fast.template, fast.name, kv_memory=int(share * needed))
        said(small, prompt, params)
        said(small, ask(small, "Hello."), SamplingParams(max_tokens=1))  # the storing of the first is over by then
        assert rooms[small.scheduler.prefixes][0] <= small.scheduler.memory - needed
        assert (small.scheduler.prefixes.match(prompt, small.plain) > len(prompt) // 2) == kept


def test_a_long_prompt_does_not_keep_a_short_one_waiting(own: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts are read in turns, a piece each."""
    monkeypatch.setattr("llama.scheduler.PIECE", 32)
    long, short = (own.generate(ask(own, text), SamplingParams(max_tokens=2)) for text in (FACTS, "How many beds?"))
    assert len(long.prompt) > 3 * len(short.prompt)
    long._submitted = short._submitted = True
    own.scheduler.submit([long, short])
    assert all("".join(each) == each.text for each in (short, long))
    ends = [(each.begun or 0.0) + each.usage.prefill_s for each in (short, long)]
    assert ends == sorted(ends)


def test_users_take_turns(own: Engine) -> None:
    """One user's pile does not make another one wait for all of it."""
    own.scheduler.rows = 2
    ended: list[str] = []

    def run(request: Request) -> None:
        list(request)
        ended.append(str(request.user))

    pile = [own.generate(ask(own, f"Count to {n}."), SamplingParams(max_tokens=16), user="pile") for n in range(10)]
    threads = [threading.Thread(target=run, args=(request,)) for request in pile]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    run(own.generate(ask(own, "Hi"), SamplingParams(max_tokens=4), user="other"))
    assert ended.index("other") < 6
    for thread in threads:
        thread.join(60)
    assert len(ended) == 11


def test_no_more_run_at_once_than_there_are_rows(own: Engine) -> None:
    own.scheduler.rows = 2
    most = 0
    requests = [own.generate(ask(own, f"Count to {n}."), SamplingParams(max_tokens=6)) for n in range(5)]
    for request in requests:
        request._submitted = True
    own.scheduler.submit(requests)
    for request in requests:
        for _ in request:
            most = max(most, own.scheduler.running)
    assert most == 2
    assert all(request.usage.answer_tokens == 6 for request in requests)


def test_a_batch_lets_others_in(own: Engine) -> None:
    own.scheduler.rows = 2
    prompts = [ask(own, f"Count to {n}.") for n in range(12)]
    batch = own.generate_batch(prompts, SamplingParams(max_tokens=24), rows=12)
    next(batch)
    assert len(said(own, ask(own, "Hi"), SamplingParams(max_tokens=4)).tokens) > 0
    rest = [request for _, request in batch]
    assert len(rest) > 4, "the batch was far from its end"
    assert len({request.user for request in rest}) == 1, "for it is one user"


def test_whoever_gives_no_name_is_a_user_alone(own: Engine) -> None:
    one, other = (own.generate([5], SamplingParams()) for _ in range(2))
    assert one.user != other.user


def test_cancelled_and_left_requests_free_their_place(own: Engine) -> None:
    left = own.generate(ask(own, FACTS), SamplingParams(max_tokens=400))
    for _ in left:
        break
    cancelled = own.generate(ask(own, FACTS * 3), SamplingParams(max_tokens=400))
    pieces = iter(cancelled)
    threading.Timer(0.02, cancelled.cancel).start()
    assert len(list(pieces)) < 400
    assert cancelled.usage.finish_reason == "cancelled"
    end = time.monotonic() + 10
    while own.scheduler.running and time.monotonic() < end:
        time.sleep(0.01)
    assert own.scheduler.running == 0
    assert left.cache is None


def test_one_fault_ends_one_request(own: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    params = SamplingParams(max_tokens=12)
    good, bad = (own.generate(ask(own, text), params) for text in ("Hello.", "Bye."))

    def fail(logits: torch.Tensor, budget: int) -> str:
        raise ZeroDivisionError("of this request")

    monkeypatch.setattr(bad.decoding, "push", fail)
    results: dict[str, object] = {}

    def run(name: str, request: Request) -> None:
        try:
            results[name] = "".join(request)
        except ZeroDivisionError as error:
            results[name] = error

    threads = [threading.Thread(target=run, args=pair) for pair in (("good", good), ("bad", bad))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert isinstance(results["bad"], ZeroDivisionError)
    assert results["good"] == said(own, good.prompt, params).text


def test_a_fault_of_the_model_is_told_to_all(own: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:

        def fail(*args: object, **kwargs: object) -> list[torch.Tensor]:
            raise MemoryError("no room")

        patch.setattr(own, "forward", fail)
        with pytest.raises(MemoryError):
            list(own.generate(ask(own, "Hello."), SamplingParams()))
    assert said(own, ask(own, "Hello."), SamplingParams(max_tokens=5)).text


@pytest.mark.timeout(60)
def test_a_cache_that_cannot_be_made_is_told(own: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:

        def fail(rows: int, capacity: int) -> None:
            raise MemoryError("no room")

        patch.setattr(own.plain, "new_cache", fail)
        with pytest.raises(MemoryError):
            list(own.generate(ask(own, "Hello."), SamplingParams()))
    assert own.scheduler.held == 0
    assert said(own, ask(own, "Hello."), SamplingParams(max_tokens=5)).text


def test_log_probabilities(own: Engine) -> None:
    prompt = ask(own, "What is the capital of France?")
    request = said(own, prompt, SamplingParams(max_tokens=8, logprobs=True))
    assert len(request.logprobs) == len(request.tokens) > 0
    cache = own.plain.new_cache(1, len(prompt) + 8)
    rows = own.forward([[*prompt, *request.tokens[:-1]]], [cache], [len(request.tokens)])[0]
    wanted = torch.log_softmax(rows.float(), -1)[torch.arange(len(rows)), torch.tensor(request.tokens)]
    assert torch.allclose(torch.tensor(request.logprobs), wanted, atol=1e-3)
    assert said(own, prompt, SamplingParams(max_tokens=2)).logprobs == []


def test_what_is_sampled_from() -> None:
    logits = torch.tensor([2.0, 1.9, 0.0, -1.0])

    def drawn(**kwargs: float) -> set[int]:
        sampler = Sampler(SamplingParams(temperature=1.0, seed=1, **kwargs), prompt=[0])  # type: ignore[arg-type]
        return {sampler(logits) for _ in range(300)}

    assert drawn() == {0, 1, 2, 3}
    assert drawn(top_k=2) == {0, 1}
    assert drawn(top_k=1) == {0}
    assert drawn(min_p=0.5) == {0, 1}
    assert drawn(min_p=1.0) == {0}
    greedy = Sampler(SamplingParams(repetition_penalty=1.5), prompt=[0])
    assert greedy(logits) == 1, "token 0 was in the prompt"
    assert greedy(torch.tensor([-1.0, -1.1, -1.2, -9.0])) == 2, "below zero the penalty lowers too; 1 was drawn"


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", -1), ("temperature", float("inf")), ("top_k", -1), ("top_p", 0), ("top_p", 1.1), ("min_p", 2),
     ("repetition_penalty", 0), ("seed", -1), ("max_tokens", 0)],
)  # fmt: skip
def test_values_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(LlamaError, match=name):
        SamplingParams(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "seconds", [pytest.param(12.0, id="short"), pytest.param(600.0, id="ten-minutes", marks=pytest.mark.slow)]
)
@pytest.mark.timeout(900)
def test_soak(fast: Engine, seconds: float) -> None:
    """8 threads, mixed lengths, cancellations: every answer is that of its solo run, nobody starves, nothing leaks."""
    engine = Engine(fast.model, fast.tokenizer, fast.template, fast.name, kv_memory=64 << 20)
    kinds = [
        (ask(engine, FACTS[: 40 * n] + f" What about {n}?"), SamplingParams(
            max_tokens=4 + 5 * (n % 5), temperature=0.8 * (n % 2), seed=n, lookup=n % 3 > 0))
        for n in range(10)
    ]  # fmt: skip
    alone = [said(fast, prompt, params).tokens for prompt, params in kinds]
    faults: list[str] = []
    done = [0] * 8
    end = time.monotonic() + seconds

    def work(me: int) -> None:
        draw = random.Random(me)
        while time.monotonic() < end:
            n = draw.randrange(len(kinds))
            request = engine.generate(*kinds[n], user=me)
            if draw.random() < 0.2:
                for _, _ in zip(range(draw.randrange(3)), request, strict=False):
                    pass
                request.cancel()
                list(request)
                if request.tokens != alone[n][: len(request.tokens)]:
                    faults.append(f"{n}: cancelled, but said something else")
            else:
                list(request)
                if request.tokens != alone[n]:
                    faults.append(f"{n}: {request.text!r}")
            done[me] += 1

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + 120)
    assert not any(thread.is_alive() for thread in threads)
    assert faults == []
    assert min(done) > 0, "nobody starves"
    assert seconds < 60 or min(done) > 0.6 * max(done), "and over time all get alike"
    assert engine.scheduler.running == 0
    assert engine.scheduler.prefixes.bytes <= 64 << 20
    gc.collect()
    caches = [each for each in gc.get_objects() if type(each).__name__ == "KVCache"]
    assert len(caches) < 20, "caches are freed with their requests"


def test_prefixes_can_be_forgotten(engine: Engine) -> None:
    prompt = engine.tokenizer.encode("The refuge stands at 2,450 metres and has 48 beds.")
    for forget, known in ((True, 0), (False, len(prompt) - 1), (True, 0)):
        if forget:
            engine.scheduler.forget()
        request = engine.generate(prompt, SamplingParams(max_tokens=2))
        list(request)
        assert request.usage.cached_tokens == known


ENDING = """
import sys
from llama.engine import load_engine
from llama.sampling import SamplingParams
from pathlib import Path
engine = load_engine(Path(sys.argv[1]), "cpu", dtype="float32")
answer = iter(engine.generate(engine.tokenizer.encode("Once upon a time"), SamplingParams(max_tokens=400)))
print(next(answer))
"""


def test_a_process_ends_in_peace_while_an_answer_runs(gguf_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", ENDING, str(gguf_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
