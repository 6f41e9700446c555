"""Sampling, stopping, streaming and cancelling."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from llama.decoding import Decoding
from llama.engine import Engine, choose_device
from llama.errors import LlamaError
from llama.sampling import Sampler, SamplingParams, StopText, nucleus


def ask(engine: Engine, text: str = "Name three animals that live in the Andes.") -> list[int]:
    return engine.encode_chat([{"role": "user", "content": text}])


def test_answers_and_ends_by_itself(engine: Engine) -> None:
    generation = engine.generate(ask(engine, "What is the capital of France?"), SamplingParams(max_tokens=50))
    assert "Paris" in "".join(generation)
    usage = generation.usage
    assert usage.finish_reason == "stop"
    assert usage.answer_tokens == len(generation.tokens) < 50
    assert usage.prefill_s > 0
    assert usage.decode_s > 0


def test_maximum_tokens(engine: Engine) -> None:
    generation = engine.generate(ask(engine), SamplingParams(max_tokens=5))
    assert len(list(generation)) <= 5
    assert (generation.usage.answer_tokens, generation.usage.finish_reason) == (5, "length")


def test_seed_decides_the_draws(engine: Engine) -> None:
    def drawn(seed: int) -> str:
        params = SamplingParams(max_tokens=24, temperature=1.2, top_p=0.95, seed=seed)
        return "".join(engine.generate(ask(engine), params))

    assert drawn(1) == drawn(1)
    assert len({drawn(seed) for seed in (1, 2, 3)}) > 1


def test_stop_string_is_not_shown(engine: Engine) -> None:
    plain = "".join(engine.generate(ask(engine), SamplingParams(max_tokens=40)))
    stop = plain[20:26]
    generation = engine.generate(ask(engine), SamplingParams(max_tokens=40, stop=(stop,)))
    assert "".join(generation) == plain[: plain.index(stop)]
    assert generation.usage.finish_reason == "stop"


def test_cancel_from_another_thread(engine: Engine) -> None:
    cancel = threading.Event()
    generation = engine.generate(ask(engine), SamplingParams(max_tokens=400), cancel)
    said = []
    for piece in generation:
        said.append(piece)
        if len(said) == 3:
            threading.Thread(target=cancel.set).start()
            cancel.wait()
    assert generation.usage.finish_reason == "cancelled"
    assert generation.usage.answer_tokens < 10


def test_cancel_before_the_first_token(engine: Engine) -> None:
    generation = engine.generate(ask(engine), SamplingParams())
    generation.cancel()
    assert list(generation) == []
    assert generation.usage.finish_reason == "cancelled"


def test_two_requests_at_once_do_not_mix(engine: Engine) -> None:
    prompts = [ask(engine, "What is the capital of France?"), ask(engine, "用中文介绍一下羊驼。")]
    params = SamplingParams(max_tokens=16)
    alone = ["".join(engine.generate(prompt, params)) for prompt in prompts]
    together = [""] * 2

    def work(i: int) -> None:
        together[i] = "".join(engine.generate(prompts[i], params))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


def test_prompts_that_do_not_fit_are_refused(engine: Engine) -> None:
    with pytest.raises(LlamaError, match="empty"):
        engine.generate([], SamplingParams())
    with pytest.raises(LlamaError, match="8192"):
        engine.generate([5] * 8192, SamplingParams())


def test_an_answer_ends_where_the_context_does(engine: Engine) -> None:
    config = engine.model.config
    assert config.context_length == 8192
    short = Engine(engine.model, engine.tokenizer, engine.template, "short")
    prompt = ask(engine)
    object.__setattr__(config, "context_length", len(prompt) + 3)
    try:
        generation = short.generate(prompt, SamplingParams(max_tokens=100))
        list(generation)
    finally:
        object.__setattr__(config, "context_length", 8192)
    assert (generation.usage.answer_tokens, generation.usage.finish_reason) == (3, "length")


def test_nucleus_keeps_the_smallest_set_that_reaches_p() -> None:
    kept = nucleus(torch.tensor([0.1, 0.5, 0.25, 0.15]), 0.7)
    assert torch.allclose(kept, torch.tensor([0.0, 2 / 3, 1 / 3, 0.0]))
    assert torch.allclose(nucleus(torch.tensor([0.6, 0.4]), 0.1), torch.tensor([1.0, 0.0]))


def test_draws_follow_the_temperature() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0])
    sampler = Sampler(SamplingParams(temperature=0.5, seed=7))
    drawn = torch.bincount(torch.tensor([sampler(logits) for _ in range(4000)]), minlength=3) / 4000
    assert torch.allclose(drawn, torch.softmax(logits / 0.5, -1), atol=0.03)
    assert Sampler(SamplingParams())(logits) == 0


@pytest.mark.parametrize(
    ("pieces", "shown"),
    [
        (["ab", "c", "END", "more"], "abc"),
        (["abE", "N", "Dx"], "ab"),
        (["abE", "N", "x"], "abENx"),
        (["EN", "END"], "EN"),
        (["no stop", " E"], "no stop E"),
    ],
)
def test_stop_text(pieces: list[str], shown: str) -> None:
    stop = StopText(["END", ""])
    out = [stop.push(piece) for piece in pieces]
    assert "".join(out) + stop.flush() == shown
    assert not any("EN" in "".join(out[: i + 1]).removesuffix("EN") for i in range(len(out))) or not stop.hit
    assert stop.hit == (shown in ("abc", "ab", "EN"))


@pytest.mark.parametrize(
    ("stops", "pieces", "shown"),
    [
        (["aab"], ["xaa", "b"], ["x", ""]),  # what is held back is the longest that may become one
        (["aab"], ["xaa", "ab"], ["x", "a"]),
        (["CD", "B"], ["xABCD"], ["xA"]),  # the first in the text, not in the list
        (["B", "CD"], ["xCDAB"], ["x"]),
    ],
)
def test_stop_texts_that_overlap(stops: list[str], pieces: list[str], shown: list[str]) -> None:
    stop = StopText(stops)
    assert [stop.push(piece) for piece in pieces] == shown
    assert (stop.hit, stop.flush()) == (True, "")


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(LlamaError, match="--device"):
        choose_device("cuda:77")
    with pytest.raises(LlamaError, match="--device"):
        choose_device("toaster")


def test_a_loop_is_cut_out_of_the_text(engine: Engine) -> None:
    """What was streamed cannot be taken back, but text and tokens hold the sentence once."""
    start, cycle = engine.tokenizer.encode("Well:"), engine.tokenizer.encode(" again and again")
    params = SamplingParams(stop_loops=True, logprobs=True)
    decoding = Decoding(engine.tokenizer, params, [1], threading.Event())
    streamed = ""
    for token in start + cycle * 20:
        if decoding.done:
            break
        logits = torch.zeros(engine.tokenizer.vocab_size)
        logits[token] = 1.0
        streamed += decoding.push(logits, 500)
    assert decoding.usage.finish_reason == "stop"
    assert decoding.text == "Well: again and again"
    assert decoding.tokens == start + cycle
    assert len(decoding.logprobs) == len(decoding.tokens)
    assert streamed.startswith("Well: again and again again and again")
    assert decoding.usage.answer_tokens > len(decoding.tokens)


def test_what_was_held_back_for_a_stop_string_is_given_at_the_end(engine: Engine) -> None:
    whole = engine.generate(ask(engine), SamplingParams(max_tokens=8))
    assert "".join(whole) == whole.text
    waiting = SamplingParams(max_tokens=8, stop=(whole.text[-5:] + " and not this",))
    request = engine.generate(ask(engine), waiting)
    assert "".join(request) == request.text == whole.text


def test_half_a_character_is_no_text(engine: Engine) -> None:
    """An answer that reaches its limit between the bytes of a character ends before it."""
    ids = engine.tokenizer.encode("好𓀀")
    assert len(ids) > 3
    decoding = Decoding(engine.tokenizer, SamplingParams(), [1], threading.Event())
    streamed = ""
    for token in ids[:-1]:
        logits = torch.zeros(engine.tokenizer.vocab_size)
        logits[token] = 1.0
        streamed += decoding.push(logits, len(ids) - 1)
    assert decoding.usage.finish_reason == "length"
    assert streamed == decoding.text == "好"


def test_log_probabilities_are_the_model_s_own() -> None:
    """Whatever the draw did with the logits."""
    logits = torch.tensor([1.0, 3.0, 2.0, -1.0])
    for changed in ({"temperature": 0.3}, {"repetition_penalty": 2.0}, {"temperature": 2.0, "top_k": 1}):
        sampler = Sampler(SamplingParams(logprobs=True, **changed), prompt=[1])  # type: ignore[arg-type]
        token = sampler(logits)
        assert sampler.logprob == pytest.approx(float(logits.log_softmax(-1)[token]))


@pytest.mark.parametrize(
    "wrong",
    [{"seed": 1.5}, {"max_tokens": 2.5}, {"max_tokens": "5"}, {"top_k": True}, {"temperature": 1e-40},
     {"temperature": None}, {"stop": "abc"}, {"stop": (1,)}, {"lookup": 1}],
)  # fmt: skip
def test_values_that_mean_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(LlamaError, match=f"{next(iter(wrong))} cannot be"):
        SamplingParams(**wrong)
