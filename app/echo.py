"""Telling an answer that only repeats its question from one that says something."""

from __future__ import annotations

import re
from collections import Counter

# What asks, and what it asks for (how long, what colour): that, an echo may leave out.
ASKS = re.compile(
    r"\b(?:how\s+(?:(?:many|much)\s+)?\w+|(?:what|which|whose)(?:['’]s\b|\s+\w+)|wh(?:at|ich|ose|om?|en|ere|y)|how)\b"
    r"|(?:什[么麼]|甚[么麼]|哪(?:[个個些里裡儿兒])?|[几幾](?!乎)|多少)[\u3400-\u9fff]{0,2}"
    r"|[谁誰]|多[久长長大远遠高重深快宽寬早晚]|怎[么麼]?[样樣]?|(?<!任)何[时時处處]?|如何|[为為]何",
    re.IGNORECASE,
)
# A yes or no, or one of two, is wanted: there, the question's own words are an answer.
CHOICE = re.compile(
    r"(?:^|[,;:])\s*(?:and\s+|but\s+|so\s+|or\s+)?(?:am|is|are|was|were|do|does|did|can|could|will|would|shall|should|may"
    r"|might|must|has|have|had)(?:n['’]t)?\b|\bor\b|\bwhether\b"
    r"|[吗嗎]|是否|[还還]是|或|有[没沒]有|([\u3400-\u9fff])不\1",
    re.IGNORECASE,
)
TOKEN = re.compile(r"[\u3400-\u9fff]|\d+(?:[.,:/-]\d+)*|[^\W\d_\u3400-\u9fff]+")
# Words that say nothing by themselves. "not", "no", "all", "only" and their like do.
FILLERS = frozenset(
    """a an the it its this that these those there here is are was were be been being am do does did has have had will
    would can could of in on at to for from by with as and s i you we my your our me us
    please tell answer question
    是 的 在 了 会 會 要 有 为 為 吗 嗎 呢 请 請 问 問 我 你 您 们 們 这 這 那 个 個""".split()  # noqa: SIM905  read as prose
)


def echoes(sentence: str, question: str) -> bool:
    """Whether a sentence says what its question says and no more: "What is the notice period?" "The notice period."

    All of its words stand in the question, none more often than there, and all of the question's words in it, but for
    what asks. A part of the question alone may be the answer ("Which law goes first, where EU law and national law
    differ?" "EU law"), and so may a part said once more ("EU law goes first where EU law and national law differ");
    of a question that is answered by yes or no, or gives a choice, all of it may.
    """
    asked, hits = ASKS.subn(" ", question)
    if not hits or CHOICE.search(question):
        return False
    said = _tokens(sentence)
    return bool(said) and said <= _tokens(question) and set(_tokens(asked)) <= set(said)


def _tokens(text: str) -> Counter[str]:
    """How often a text has words without a plural s, numbers, Chinese characters; without the fillers."""
    found = (token for token in TOKEN.findall(text.lower()) if token not in FILLERS)
    return Counter(token.removesuffix("s") if len(token) > 3 else token for token in found)
