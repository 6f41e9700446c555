"""The engine as LangChain's chat model: streaming, stop words, callbacks, usage."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ChatMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables.config import run_in_executor
from pydantic import ConfigDict, Field, InstanceOf

from llama.chat import Message
from llama.decoding import Usage
from llama.engine import Engine
from llama.errors import LlamaError
from llama.identity import weights_hash
from llama.request import Request
from llama.sampling import SamplingParams

ROLES = {"human": "user", "ai": "assistant", "system": "system"}


class ChatLlama(BaseChatModel):
    """A loaded LLaMA behind `BaseChatModel`. Safe to share among threads, as its engine is.

    `invoke`, `stream` and `batch` take SamplingParams' fields as keywords (max_tokens, temperature, top_p, seed), and
    `stop`; with `logprobs` they are in the message's response_metadata. The members of a batch run side by side.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    engine: InstanceOf[Engine] = Field(exclude=True)
    sampling: SamplingParams = SamplingParams()
    adapter: str | None = None  # by its name; None is the bare model

    @property
    def _llm_type(self) -> str:
        return "paddock-llama"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """Everything that an answer depends on, for LangChain's caches."""
        engine = self.engine
        known = {"model": engine.name, "weights": weights_hash(engine.model), "quant": engine.quant}
        which = None if self.adapter is None else f"{self.adapter} {engine.variant(self.adapter).stamp}"
        return {**known, "dtype": str(engine.dtype), "adapter": which, **dataclasses.asdict(self.sampling)}

    def _params(self, stop: list[str] | None, given: dict[str, Any]) -> SamplingParams:
        """The model's sampling with what a call changes. Raises LlamaError for a keyword that means nothing here."""
        known = {field.name for field in dataclasses.fields(SamplingParams)}
        if unknown := given.keys() - known:
            raise LlamaError(f"'{min(unknown)}' is no sampling parameter; there are: {', '.join(sorted(known))}")
        if stop:
            given = {**given, "stop": (stop,) if isinstance(stop, str) else tuple(stop)}
        return dataclasses.replace(self.sampling, **given)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return self._whole(messages, self._params(stop, kwargs), run_manager, threading.Event())

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        """As `_generate`, in a thread; whoever is no longer waited for, is cancelled and frees its place."""
        cancel, told = threading.Event(), run_manager.get_sync() if run_manager is not None else None
        try:
            params = self._params(stop, kwargs)
            return await run_in_executor(None, self._whole, messages, params, told, cancel)
        finally:
            cancel.set()

    def _whole(
        self,
        messages: Sequence[BaseMessage],
        params: SamplingParams,
        run_manager: CallbackManagerForLLMRun | None,
        cancel: threading.Event,
    ) -> ChatResult:
        generation = self._request(messages, params, cancel)
        try:
            for piece in generation:
                if run_manager is not None:
                    run_manager.on_llm_new_token(piece)
        finally:
            generation.cancel()  # whatever a callback raises, nobody waits for the rest
        message = AIMessage(
            content=generation.text,
            usage_metadata=_usage(generation.usage),
            response_metadata=self._metadata(generation),
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        """Pieces of text as they come; the last chunk is empty and has the usage. Leaving the loop ends the request."""
        generation = self._request(messages, self._params(stop, kwargs))
        try:
            for piece in generation:
                chunk = ChatGenerationChunk(message=AIMessageChunk(content=piece))
                if run_manager is not None:
                    run_manager.on_llm_new_token(piece, chunk=chunk)
                yield chunk
        finally:
            generation.cancel()
        yield ChatGenerationChunk(
            message=AIMessageChunk(
                content="",
                usage_metadata=_usage(generation.usage),
                response_metadata=self._metadata(generation),
                chunk_position="last",
            )
        )

    def _request(
        self, messages: Sequence[BaseMessage], params: SamplingParams, cancel: threading.Event | None = None
    ) -> Request:
        ids = self.engine.encode_chat([_plain(message) for message in messages])
        return self.engine.generate(ids, params, cancel, adapter=self.adapter)

    def _metadata(self, generation: Request) -> dict[str, Any]:
        """The model, the usage, and where they were asked for, each token's bytes and log-probability."""
        found = {"model_name": self.engine.name, **dataclasses.asdict(generation.usage)}
        if generation.params.logprobs:
            spelled = [self.engine.tokenizer.bytes_of(token) for token in generation.tokens]
            found["logprobs"] = {
                "content": [
                    {"token": each.decode(errors="replace"), "bytes": list(each), "logprob": logprob}
                    for each, logprob in zip(spelled, generation.logprobs, strict=False)
                ]
            }
        return found

    def get_token_ids(self, text: str) -> list[int]:
        """The model's own ids of a text; LangChain would fetch another model's vocabulary."""
        return self.engine.tokenizer.encode(text, first=False)


def _plain(message: BaseMessage) -> Message:
    """LangChain's message as the chat template takes it. Raises LlamaError for what a LLaMA cannot read."""
    role = message.role if isinstance(message, ChatMessage) else ROLES.get(message.type)
    if role is None:
        raise LlamaError(f"a message of type '{message.type}' cannot be given to this model; it takes text only")
    text = message.text
    if not isinstance(message.content, str) and any(
        not isinstance(part, str) and part.get("type") != "text" for part in message.content
    ):
        raise LlamaError("a message holds more than text (an image, perhaps), which this model cannot read")
    return {"role": role, "content": str(text)}


def _usage(usage: Usage) -> UsageMetadata:
    return UsageMetadata(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.answer_tokens,
        total_tokens=usage.prompt_tokens + usage.answer_tokens,
    )
