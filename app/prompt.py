"""Question, history and chunks to the messages that the model reads, within its context."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from langchain_core.documents import Document

from app.errors import AppError
from llama.chat import Message

CHINESE = re.compile(r"[\u3400-\u9fff]")

SYSTEM = {
    "en": (
        "You answer questions about the user's documents. Use only the passages given, and answer briefly. "
        "If they do not hold the answer, say exactly: {refusal}"
    ),
    "zh": "你根据用户的文档回答问题。只使用给出的段落，用中文简短作答。如果段落中没有答案，请只回答：{refusal}",
}
REFUSAL = {
    "en": "I could not find the answer in the documents.",
    "zh": "我在文档中没有找到答案。",
}
NOTHING_INDEXED = {
    "en": "The knowledge base '{kb}' holds no documents yet, so there is nothing to answer from.",
    "zh": "知识库“{kb}”中还没有文档，因此无法作答。",
}
SEARCHED = {
    "en": " The knowledge base '{kb}' was searched{nearest}.",
    "zh": "已搜索知识库“{kb}”{nearest}。",
}
NEAREST = {"en": "; what comes nearest is in {places}", "zh": "；最接近的内容在 {places}"}
PLACES = {"en": ", ", "zh": "、"}
PAGE = {"en": "page {page}", "zh": "第 {page} 页"}
# The question stands before and behind the passages: a small model reads them with it in mind, and has not lost it
# when it starts to answer (docs/experiments.md has what other orders gave).
ASK = {
    "en": (
        "Question: {question}\n\nPassages:\n{passages}\n\n"
        "Answer the question with words from the passages.\nQuestion: {question}\nAnswer:"
    ),
    "zh": "问题：{question}\n\n段落：\n{passages}\n\n用段落中的原话回答问题。\n问题：{question}\n回答：",
}

# The small model sometimes goes on to write the next question itself.
STOPS = ("\nQuestion:", "\nPassages:", "\n问题：", "\n段落：")


@dataclass(frozen=True)
class Turn:
    """One earlier exchange of a conversation."""

    question: str
    answer: str


@dataclass(frozen=True)
class Prompt:
    """What is given to the model, and the chunks that found room in it (a head of those retrieved)."""

    ids: list[int]
    messages: list[Message]
    chunks: list[Document]


def language_of(text: str) -> str:
    """'zh' where Chinese characters stand in the text, else 'en'. Decides the language of prompt and refusal."""
    return "zh" if CHINESE.search(text) else "en"


def passage(number: int, chunk: Document, language: str = "en") -> str:
    """A chunk as the model sees it: number, source, page and headings in one line, the text under it."""
    page = chunk.metadata.get("page")
    place = [chunk.metadata["source"]]
    if page is not None:
        place.append(PAGE[language].format(page=page))
    if chunk.metadata.get("headings"):
        place.append(chunk.metadata["headings"])
    return f"[{number}] {', '.join(place)}\n{chunk.page_content.strip()}"


def refusal_of(question: str, kb: str, nearest: Sequence[Document]) -> str:
    """That the answer was not found, with the knowledge base that was searched and the files that come nearest."""
    language = language_of(question)
    places = dict.fromkeys(_place(each, language) for each in nearest)
    told = NEAREST[language].format(places=PLACES[language].join(places)) if places else ""
    return REFUSAL[language] + SEARCHED[language].format(kb=kb, nearest=told)


def _place(chunk: Document, language: str) -> str:
    page = chunk.metadata.get("page")
    return str(chunk.metadata["source"]) + ("" if page is None else f" ({PAGE[language].format(page=page)})")


def messages_for(
    question: str, history: Sequence[Turn], chunks: Sequence[Document], best_last: bool = False
) -> list[Message]:
    """The conversation as the chat template takes it; the passages stand in the last turn, with the question."""
    language = language_of(question)
    ordered = reversed(chunks) if best_last else chunks
    shown = "\n\n".join(passage(number, chunk, language) for number, chunk in enumerate(ordered, 1))
    messages: list[Message] = [{"role": "system", "content": SYSTEM[language].format(refusal=REFUSAL[language])}]
    for turn in history:
        messages.append({"role": "user", "content": turn.question})
        messages.append({"role": "assistant", "content": turn.answer})
    messages.append({"role": "user", "content": ASK[language].format(question=question, passages=shown)})
    return messages


def follow_up(question: str) -> str:
    """A further question about passages that were read in an earlier turn: the last lines of the prompt alone."""
    return "\n".join(ASK[language_of(question)].splitlines()[-2:]).format(question=question)


def as_it_stands(answer: str, passages: Sequence[Document]) -> str:
    """An answer as a model that copies begins it: a word with the space before it where a passage has one.

    A vocabulary has a word with its space as one token and without it often as several others, so that the first word
    of an answer would have to be spelled anew: what was learned without it called Somerset House Somers House. Numbers
    are the same tokens either way, and a space before them may melt into the line feed that ends the prompt.
    """
    spaced = f" {answer}"
    return spaced if answer[:1].isalpha() and any(spaced in each.page_content for each in passages) else answer


def build(
    question: str,
    history: Sequence[Turn],
    chunks: Sequence[Document],
    encode: Callable[[Sequence[Message]], list[int]],
    budget: int,
    best_last: bool = False,
) -> Prompt:
    """The longest prompt of at most `budget` tokens, counted exactly by encoding it. `chunks` come best first, and
    stand in the prompt so or, with `best_last`, the other way round.

    What does not fit is left out whole: first the oldest turns, then chunks from the end (the least similar ones).
    Nothing is ever cut in the middle. Raises AppError when not even one chunk fits beside the question.
    """
    turns, kept = list(history), list(chunks)
    while True:
        messages = messages_for(question, turns, kept, best_last)
        ids = encode(messages)
        if len(ids) <= budget:
            return Prompt(ids, messages, kept)
        if turns:
            turns.pop(0)
        elif len(kept) > 1:
            kept.pop()
        else:
            raise AppError(
                f"the question and one passage take {len(ids)} tokens, but a prompt may have {budget}; "
                "shorten the question, or raise max_prompt_tokens if the model's context allows"
            )
