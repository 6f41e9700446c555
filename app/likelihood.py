"""How likely the LLaMA finds a question behind a passage: a scorer for `vectorstore.rerank`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from langchain_core.documents import Document

from app.prompt import language_of
from llama.engine import Engine
from vectorstore.cross_encoder import text_of

# The words of Sachan et al. 2022, section 2.2; what all prompts share stands in front and is read once.
ASK = {
    "en": "Passage: {passage}\n\nPlease write a question based on this passage.",
    "zh": "段落：{passage}\n\n请根据这个段落写一个问题。",
}
MOST = 256  # tokens of a question that are scored


class QuestionLikelihood:
    """ln P(question | passage) of each passage, in nats."""

    def __init__(self, engine: Callable[[], Engine]) -> None:
        """`engine` is called at the first question: loading it takes seconds."""
        self._engine = engine

    def __call__(self, question: str, passages: Sequence[Document]) -> list[float] | None:
        """None for a question that the model's vocabulary spells in more tokens than it has characters: that is a
        language which it hardly learned. Raises LlamaError when the model cannot be used.
        """
        engine = self._engine()
        asked = engine.tokenizer.encode(question)
        if len(asked) > len(question):
            return None
        asked = asked[: min(MOST, engine.context_length // 4)]
        language = language_of(question)
        pairs = [(self._prompt(engine, text_of(each), language, len(asked)), asked) for each in passages]
        return [sum(found) for found in engine.log_likelihoods(pairs)]

    @staticmethod
    def _prompt(engine: Engine, text: str, language: str, room: int) -> list[int]:
        """The prompt of a passage, of less of it where it would not fit into the context beside the question."""
        while True:
            shown = ASK[language].format(passage=text)
            if engine.template is None:
                tokenizer = engine.tokenizer
                first = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
                ids = [*first, *tokenizer.encode(shown + "\n\n")]
            else:
                ids = engine.encode_chat([{"role": "user", "content": shown}])
            if len(ids) + room <= engine.context_length or not text:
                return ids
            text = text[: len(text) // 2]
