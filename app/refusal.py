"""Telling what a model says instead of an answer: that it found none, or its own instructions."""

from __future__ import annotations

import itertools
import re

from app.cite import spans
from app.echo import echoes
from app.prompt import ASK, REFUSAL, SYSTEM
from vectorstore.analyze import fold

TOKEN = re.compile(r"[\u3400-\u9fff]|[^\W_\u3400-\u9fff]+(?:['’][^\W_]+)?")
LABEL = re.compile(r"^\W*(?:(?:question|answer|passages?|请?问题|回答|段落)\s*[:：]\s*)+", re.IGNORECASE)
INSTRUCTED = 0.8  # share of a sentence's pairs of words that stand in the instructions; small models misspell them
FEWEST = 4  # pairs that a sentence must have to be known by them

# "The passages do not say", in a model's own words. All of these speak of the answer, or of passages and documents as
# such: that "the policy does not say" something is an answer.
_PLACE = r"(?:(?:given|provided)\s)?(?:passages?|documents?|texts?|context)(?:\s(?:given|provided))?"
_TELL = (
    r"(?:(?:say|mention|specify|state|answer|tell)\b"
    r"|(?:hold|contain|provide|give|include)\s(?:the\s|an\s|any\s|enough\s)?(?:answer|information)\b)"
)
DECLINES = re.compile(
    rf"""(?:(?:no|sorry|unfortunately)\b\W*)?(?:
    i\s(?:can\s?not|can['’]t|could\snot|couldn['’]t|did\snot|didn['’]t)\sfind\s(?:the|an|any)\s(?:answer|information)\b
    |the\sanswer\s(?:to\s(?:the|this|your)\squestion\s)?(?:is|was)\snot\s
        (?:in|provided|given|mentioned|specified|stated|found)\b
    |(?:the|these|your)\s{_PLACE}\s(?:do|does|did)(?:\snot|n['’]t)\s{_TELL}
    |none\sof\s(?:the|these|your)\s{_PLACE}\s{_TELL}
    |there\sis\sno\s(?:answer|information|mention)\b.*\bin\s(?:the|these|your)\s{_PLACE}
    )
    |(?:(?:抱歉|对不起|很遗憾)[，,]?)?(?:根据[^，,]{{0,12}}[，,])?(?:
    我?(?:在[^，,]{{0,8}})?(?:无法|不能|没能|没有|未能?)(?:[在从][^，,]{{0,10}})?(?:找到|回答|确定).{{0,20}}(?:答案|信息|资料|问题)
    |(?:给出的|提供的|这些)?(?:文[档中]|段落|资料|上下文)[中里内]?[并也]?(?:没有?|未)(?:提到|提及|说明|给出|提供|写明|回答|找到|相关)
    |答案(?:没有|未)(?:给出|提供|提到)
    )""",
    re.IGNORECASE | re.VERBOSE,
)
BUT = re.compile(r"\b(?:but|however|although|though|only|except)\b|但|不过|然而|只", re.IGNORECASE)  # something follows
OF_DOCUMENTS = re.compile(r"passage|document|\btext|context|文[档中]|段落|资料|上下文", re.IGNORECASE)


def is_refusal(text: str, question: str = "") -> bool:
    """Whether the model found no answer: the text begins with the refusal that it was told to give, as a sentence of
    its own; or nothing is left of it without refusals (also misspelled, or in other words), sentences of the
    instructions, and repetitions of the question.

    A refusal behind a sentence that says something is a remark, and the text an answer.
    """
    said = text.strip().lower()
    if any(said.startswith(whole := refusal.lower()) or said == whole[:-1] for refusal in REFUSAL.values()):
        return True
    parts = [part for start, end in spans(text) if _tokens(part := LABEL.sub("", text[start:end]))]
    known = [_instructed(part) or _declines(part, question) for part in parts]
    return any(known) and all(
        found or _left_over(part) or echoes(part, question) or _tokens(part) == _tokens(question)
        for found, part in zip(known, parts, strict=True)
    )


def _tokens(text: str) -> list[str]:
    return TOKEN.findall(text.lower())


def _pairs(text: str) -> list[tuple[str, str]]:
    return list(itertools.pairwise(_tokens(text)))


_TOLD = [
    form[language].format(refusal=REFUSAL[language], question="", passages="")
    for form in (SYSTEM, ASK)
    for language in REFUSAL
]
_TOLD_PAIRS = frozenset(pair for text in _TOLD for pair in _pairs(text))
_TOLD_TOKENS = frozenset(token for text in _TOLD for token in _tokens(text))


def _instructed(sentence: str) -> bool:
    """Whether a sentence is one of the instructions, or the refusal in them."""
    pairs = _pairs(sentence)
    return len(pairs) >= FEWEST and sum(pair in _TOLD_PAIRS for pair in pairs) >= INSTRUCTED * len(pairs)


def _left_over(sentence: str) -> bool:
    """Whether a sentence may be the beginning of another of the instructions."""
    return len(_pairs(sentence)) < FEWEST and all(token in _TOLD_TOKENS for token in _tokens(sentence))


def _declines(sentence: str, question: str) -> bool:
    """Whether a sentence says in other words that there is no answer. Of a question about documents it may be one."""
    said = fold(sentence).strip()
    return bool(DECLINES.match(said)) and not BUT.search(said) and not OF_DOCUMENTS.search(fold(question))
