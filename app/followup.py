"""A follow-up question made into one that stands alone, so that it can be searched for without the conversation.

Three steps: a rule decides whether the question leans on what was said before; the model writes it anew, and what it
writes counts only if it keeps the question's words and adds none but the conversation's; else the conversation's terms
are put behind the question. Which of these is searched for, the question itself among them, the caller decides by what
each finds.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from langchain_core.documents import Document

from app.cite import words
from app.prompt import CHINESE, Turn, language_of
from llama.chat import Message

# Words that stand for something said before. "that" and "there" often do not ("that I booked", "is there"): only where
# they end a clause.
POINTERS_EN = re.compile(
    r"\b(it|its|they|them|their|theirs|he|him|his|she|her|hers|this|these|those|ones?|the (same|other|latter|former))\b"
    r"|\b(that|there|then)(?=\s*(?:[?.!,;]|$))|\b(of|about|for|with|from|in|on|to|is|was|does|did) that\b(?! \w+ed\b)",
    re.IGNORECASE,
)
# A beginning that continues something: "And the other one?", "What about ...?"
OPENERS_EN = re.compile(r"^\s*(and|but|or|also|so|then|what about|how about|why not|what else)\b", re.IGNORECASE)
POINTERS_ZH = re.compile(
    r"[它她]|他(?!人)|(?<!其)(?<!吉)(?<!排)他们|那(?:里|儿|边|个|些|位|种|时|天|次|么|条|家)|^那|这(?:里|儿|边|个|些|位|种|时|天|次|么|条|家)|其(?:中)?(?![他它实])|该(?=[^怎如])|上述|前者|后者"
)
OPENERS_ZH = re.compile(r"^\s*(那|还有|另外|然后|而且|不过|但是|为什么不)|呢\s*[?？]?\s*$")
SHORT = {
    "en": 2,
    "zh": 3,
}  # words that carry meaning (in Chinese pairs of characters): with fewer, a question is a piece
# A question that is whole however short: it asks of a thing that it names.
WHOLE_EN = re.compile(
    r"^\s*(?:who|what|when|where|why|which|how\s+\w+)(?:['’]s|\s+(?:is|are|was|were|do|does|did|has|have|can|will|must|should))"
    r"\s+(?:the|an?|my|our|your)\s+[a-z]{3,}",
    re.IGNORECASE,
)
WHOLE_ZH = re.compile(
    r"^\s*(?:谁|什么|哪里|哪儿)(?:是|有)[\u3400-\u9fff]{2,}|[\u3400-\u9fff]{2,}(?:是|在)(?:谁|什么|哪里|哪儿|多少|几)"
)
NAMED = re.compile(r"\b[A-Z][\w'’-]*(?:\s+[A-Z][\w'’-]*)*|\d[\d.,:/-]*\w*")
ROOT = 4  # letters of a word that another form of it, or a word of its family, begins with
MOST_TERMS = 10
MOST_CHARACTERS = 300  # of an earlier answer that terms are taken from, and that the model reads
LONGER = 200  # characters that a rewritten question may have more than the question
ASKED_ZH = re.compile(
    r"什么|多[少久长高大远深重]|怎么|怎样|如何|为什么|哪里|哪儿|哪[个些位种条家]|几[点个片头条天位]|谁|吗|呢|请问|可以|应该|需要|是|的|了|[?？,，。！!]"
)
TOKEN = re.compile(r"[^\W_\u3400-\u9fff][\w'’.:/-]*|[\u3400-\u9fff]+")

INSTRUCTION = {
    "en": (
        "Rewrite the last question so that it can be understood without the conversation. Replace words such as it, "
        "they and there by what they stand for. Write the question alone."
    ),
    "zh": "改写最后一个问题，使它不看对话也能明白。把“它”“他们”“那里”等词换成所指的内容。只写问题。",
}
EXAMPLES = {
    "en": (
        ("Q: How tall is the North Tower?\nA: 40 metres.\nLast question: When was it built?"),
        "When was the North Tower built?",
    ),
    "zh": ("问：北塔有多高？\n答：40米。\n最后一个问题：它是什么时候建的？", "北塔是什么时候建的？"),
}
SHOWN = {
    "en": ("Q: {question}\nA: {answer}\n", "Last question: {question}"),
    "zh": ("问：{question}\n答：{answer}\n", "最后一个问题：{question}"),
}


def stands_alone(question: str) -> bool:
    """Whether a question can be understood without what was said before."""
    if language_of(question) == "zh":
        piece = len(words(question)) <= SHORT["zh"] and not WHOLE_ZH.search(question)
        return not (POINTERS_ZH.search(question) or OPENERS_ZH.search(question) or piece)
    piece = len(words(question)) < SHORT["en"] and not WHOLE_EN.search(question)
    return not (POINTERS_EN.search(question) or OPENERS_EN.search(question) or piece)


def request(question: str, history: Sequence[Turn]) -> list[Message]:
    """What the model is asked, to write the question anew."""
    language = language_of(question)
    turn, last = SHOWN[language]
    said = "".join(turn.format(question=t.question, answer=t.answer[:MOST_CHARACTERS]) for t in history[-2:])
    asked, answered = EXAMPLES[language]
    return [
        {"role": "system", "content": INSTRUCTION[language]},
        {"role": "user", "content": asked},
        {"role": "assistant", "content": answered},
        {"role": "user", "content": said + last.format(question=question)},
    ]


def accepted(written: str, question: str, history: Sequence[Turn]) -> str | None:
    """What the model wrote, if it is the question with nothing lost and nothing made up; else None.

    Every word of the question that carries meaning and does not point back must be there, and every other word must
    stand in the conversation; something must have been added.
    """
    text = next((line.strip() for line in written.strip().splitlines() if line.strip()), "")
    said = " ".join(f"{turn.question} {turn.answer}" for turn in history)
    known, before, after = words(said), _meant(question), _meant(text)
    if not text or len(text) > len(question) + LONGER or not before <= after:
        return None
    # A pair of Chinese characters may be of two words that now stand side by side.
    letters = {letter for letter in said + question if CHINESE.match(letter)}
    added = after - before
    return text if added and all(term in known or letters.issuperset(term) for term in added) else None


def _meant(text: str) -> set[str]:
    """Words that carry meaning, without those that point back."""
    pointers, openers = (POINTERS_ZH, OPENERS_ZH) if language_of(text) == "zh" else (POINTERS_EN, OPENERS_EN)
    return words(pointers.sub(" ", openers.sub(" ", text)))


def expanded(question: str, history: Sequence[Turn]) -> str:
    """The question with the terms of the last exchange behind it, in brackets; as it is if there are none."""
    if not history:
        return question
    last = history[-1]
    there = words(question)
    found: list[str] = []
    # What was asked about comes first; of the answer, names and numbers.
    for term in [*_terms(last.question), *NAMED.findall(last.answer[:MOST_CHARACTERS])]:
        fresh = words(term) - there
        if fresh and len(found) < MOST_TERMS:
            found.append(term)
            there |= fresh
    return f"{question} ({' '.join(found)})" if found else question


def concerns(passages: Sequence[Document], question: str) -> bool:
    """Whether passages that a reading found have a word of the question itself, or it has none of its own.

    The conversation's words stand in the documents, so they alone would make any question look answerable.
    """
    own = _meant(question)
    return not own or any(_alike(one, other) for each in passages for other in words(each.page_content) for one in own)


def _alike(one: str, other: str) -> bool:
    """Whether two words are the same or one begins with the other, as "weigh" and "weight" do."""
    short, long = sorted((one, other), key=len)
    return one == other or (len(short) >= ROOT and short.isascii() and short.isalpha() and long.startswith(short))


def _terms(text: str) -> list[str]:
    if language_of(text) == "zh":
        return [token for token in TOKEN.findall(ASKED_ZH.sub(" ", text)) if words(token)]
    return [token for token in TOKEN.findall(text) if words(token)]
