"""The engine behind LangChain's BaseChatModel."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate

from llama.chat_model import ChatLlama
from llama.engine import Engine
from llama.errors import LlamaError
from llama.request import Request
from llama.sampling import SamplingParams


@pytest.fixture
def model(engine: Engine) -> ChatLlama:
    return ChatLlama(engine=engine, sampling=SamplingParams(max_tokens=16))


QUESTION = "What is the capital of France?"


class Listener(BaseCallbackHandler):
    def __init__(self) -> None:
        self.tokens: list[str] = []
        self.ended = 0

    def on_llm_new_token(self, token: str, **kwargs: Any) -> None:
        self.tokens.append(token)

    def on_llm_end(self, response: Any, **kwargs: Any) -> None:
        self.ended += 1


def test_invoke_is_the_engine_s_answer(model: ChatLlama, engine: Engine) -> None:
    listener = Listener()
    reply = model.invoke(QUESTION, config={"callbacks": [listener]})
    generation = engine.generate(
        engine.encode_chat([{"role": "user", "content": QUESTION}]), SamplingParams(max_tokens=16)
    )
    assert reply.content == "".join(generation)
    assert "Paris" in reply.content
    assert reply.usage_metadata == {
        "input_tokens": generation.usage.prompt_tokens,
        "output_tokens": generation.usage.answer_tokens,
        "total_tokens": generation.usage.prompt_tokens + generation.usage.answer_tokens,
    }
    assert reply.response_metadata["finish_reason"] == generation.usage.finish_reason
    assert ("".join(listener.tokens), listener.ended) == (reply.content, 1)


def test_what_an_answer_depends_on_is_told_to_caches(engine: Engine, fast: Engine) -> None:
    """The same file in fp32 and quantized gives two sets of answers; so do other weights of the same name."""
    plain, packed = ChatLlama(engine=engine), ChatLlama(engine=fast)
    assert plain._identifying_params == ChatLlama(engine=engine)._identifying_params
    assert plain._identifying_params["quant"] != packed._identifying_params["quant"]
    assert plain._identifying_params["weights"] != packed._identifying_params["weights"]
    assert "adapter" in plain._identifying_params
    weight = engine.model.norm.weight
    before, first = plain._identifying_params, weight[0].item()
    try:
        weight.data[0] += 1
        assert plain._identifying_params != before
    finally:
        weight.data[0] = first
    assert plain._identifying_params == before


def test_a_stop_string_alone_is_one(model: ChatLlama) -> None:
    whole = str(model.invoke(QUESTION).content)
    assert model.invoke(QUESTION, stop="Paris").content == whole[: whole.index("Paris")]  # type: ignore[arg-type]


def test_a_keyword_that_means_nothing_is_refused(engine: Engine) -> None:
    with pytest.raises(ValueError, match="temperature"):
        ChatLlama(engine=engine, temperature=0.5)  # type: ignore[call-arg]


def test_nobody_who_gave_up_waiting_holds_a_place(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Request] = []
    generate = engine.generate

    def watched(*given: Any, **named: Any) -> Request:
        asked.append(generate(*given, **named))
        return asked[-1]

    monkeypatch.setattr(engine, "generate", watched)
    model = ChatLlama(engine=engine, sampling=SamplingParams(max_tokens=1500))

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(model.ainvoke("Count from one to one thousand."), 0.7)
        for _ in range(100):
            if engine.scheduler.running == 0:
                return
            await asyncio.sleep(0.05)

    asyncio.run(give_up())
    assert [request.usage.finish_reason for request in asked] == ["cancelled"]
    reply = asyncio.run(ChatLlama(engine=engine, sampling=SamplingParams(max_tokens=16)).ainvoke(QUESTION))
    assert "Paris" in reply.content


def test_stream_gives_pieces_and_the_usage_once(model: ChatLlama) -> None:
    listener = Listener()
    chunks = list(model.stream(QUESTION, config={"callbacks": [listener]}))
    assert len([chunk for chunk in chunks if chunk.content]) > 3
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert isinstance(whole, AIMessageChunk)
    reply = model.invoke(QUESTION)
    assert (whole.content, whole.usage_metadata) == (reply.content, reply.usage_metadata)
    assert "".join(listener.tokens).strip() == whole.content.strip()


def test_messages_of_a_conversation(model: ChatLlama, engine: Engine) -> None:
    seen: list[Any] = []
    encode = engine.encode_chat
    messages = [
        SystemMessage("Be brief."),
        HumanMessage("Hi"),
        AIMessage("Hello."),
        HumanMessage([{"type": "text", "text": "Bye"}]),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "encode_chat", lambda given: seen.extend(given) or encode(given))
        model.invoke(messages, max_tokens=1)
    assert [(m["role"], m["content"]) for m in seen] == [
        ("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello."), ("user", "Bye"),
    ]  # fmt: skip


def test_keywords_and_stop(model: ChatLlama) -> None:
    assert model.invoke(QUESTION, max_tokens=2).usage_metadata["output_tokens"] == 2  # type: ignore[index]
    whole = str(model.invoke(QUESTION).content)
    stop = whole[5:9]
    assert model.invoke(QUESTION, stop=[stop]).content == whole[: whole.index(stop)]
    drawn = [model.invoke(QUESTION, temperature=1.5, seed=seed).content for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    with pytest.raises(LlamaError, match="no sampling parameter"):
        model.invoke(QUESTION, heat=1)


def test_what_it_cannot_read_is_refused(model: ChatLlama) -> None:
    with pytest.raises(LlamaError, match="tool"):
        model.invoke([ToolMessage("x", tool_call_id="1")])
    picture = {"type": "image_url", "image_url": {"url": "http://localhost/x.png"}}
    with pytest.raises(LlamaError, match="more than text"):
        model.invoke([HumanMessage([picture])])


def test_in_a_chain_and_in_a_batch(model: ChatLlama) -> None:
    chain = (
        ChatPromptTemplate.from_messages([("human", "What is the capital of {country}?")]) | model | StrOutputParser()
    )
    asked = [{"country": "France"}, {"country": "Italy"}, {"country": "Peru"}]
    found = chain.batch(asked)
    assert found == [chain.invoke(each) for each in asked]
    assert len(set(found)) == 3


class Raising(BaseCallbackHandler):
    raise_error = True

    def on_llm_new_token(self, token: str, **kwargs: Any) -> None:
        raise ZeroDivisionError


def test_who_leaves_ends_the_request(model: ChatLlama, engine: Engine) -> None:
    for _ in model.stream(QUESTION, max_tokens=1500):
        break
    stream = model.stream(QUESTION, max_tokens=1500)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    with pytest.raises(ZeroDivisionError):
        model.invoke(QUESTION, config={"callbacks": [Raising()]}, max_tokens=1500)
    end = time.monotonic() + 20
    while engine.scheduler.running and time.monotonic() < end:
        time.sleep(0.01)
    assert engine.scheduler.running == 0


def test_log_probabilities_come_with_the_message(model: ChatLlama, engine: Engine) -> None:
    reply = model.invoke(QUESTION, logprobs=True)
    found = reply.response_metadata["logprobs"]["content"]
    assert b"".join(bytes(each["bytes"]) for each in found).decode().startswith(reply.text)
    request = engine.generate(engine.encode_chat([{"role": "user", "content": QUESTION}]),
                              SamplingParams(max_tokens=16, logprobs=True))  # fmt: skip
    list(request)
    assert [each["logprob"] for each in found] == request.logprobs
    assert "logprobs" not in model.invoke(QUESTION).response_metadata


def test_tokens_are_counted_by_the_model_s_own_vocabulary(model: ChatLlama, engine: Engine) -> None:
    assert model.get_token_ids("Llamas eat hay.") == engine.tokenizer.encode("Llamas eat hay.", first=False)
    assert model.get_num_tokens("羊驼吃干草") == len(engine.tokenizer.encode("羊驼吃干草", first=False))
