"""The chunk that makes a sentence likely: what the model would say less readily without it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from langchain_core.documents import Document

from app.prompt import as_it_stands, messages_for

if TYPE_CHECKING:
    from llama.engine import Engine

MOST_TOKENS = 96  # of a sentence that is judged; the rest follows from these
DROP = 0.5  # nats a token: by so much a sentence must be less likely without the chunk


class LikelihoodDrop:
    """For a question, tells which of the chunks that were read a sentence of the answer rests on.

    Each chunk is left out in turn, and the sentence's mean log-probability behind the prompt is taken (leave one out;
    Cohen-Wang et al., "ContextCite", 2024, section 2).
    """

    def __init__(self, engine: Engine, question: str, adapter: str | None = None) -> None:
        """adapter: what said the answer, if not the bare model."""
        self._engine, self._question, self._adapter = engine, question, adapter

    def __call__(self, sentence: str, chunks: Sequence[Document]) -> int | None:
        """Index of the chunk without which the sentence loses the most, if that is DROP or more."""
        if self._adapter is not None:  # which learned to begin so
            sentence = as_it_stands(sentence, chunks)
        said = self._engine.tokenizer.encode(sentence)[:MOST_TOKENS]
        sets = [list(chunks), *([*chunks[:i], *chunks[i + 1 :]] for i in range(len(chunks)))]
        prompts = [self._engine.encode_chat(messages_for(self._question, (), each)) for each in sets]
        if not said or max(map(len, prompts)) + len(said) > self._engine.context_length:
            return None
        found = self._engine.log_likelihoods([(p, said) for p in prompts], self._adapter)
        whole, *without = (sum(each) / len(each) for each in found)
        drops = [whole - each for each in without]
        best = max(range(len(drops)), key=drops.__getitem__)
        return best if drops[best] >= DROP else None
