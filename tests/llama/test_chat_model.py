"""The engine behind LangChain's BaseChatModel."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate

from llama.chat_model import ChatLlama
from llama.engine import Engine
from llama.errors import LlamaError
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
