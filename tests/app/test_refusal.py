"""What a model says instead of an answer, and answers that look so."""

from __future__ import annotations

import pytest

from app.prompt import ASK, REFUSAL, SYSTEM
from app.refusal import is_refusal

WHO, WHO_ZH = "Who won in 2000?", "谁赢得了第 49 届超级碗？"


@pytest.mark.parametrize(
    "text",
    [
        "我在文档中没有找到答案",
        "I could not find the answer in the documents",
        "I could not find the answer in the documents. The key hangs behind the door.",
        # As the default model has said it.
        "No, I cannot find the answer in the document.",
        "No, the answer to the question is not provided.",
        "你在文档中没有找到答档！",
        "你在文档中没有找到答档。\n\n我在文档中没有找到答档。\n\n你",
        f"{WHO_ZH}\n\n我在文档中没有找到答档。\n\n回答：\n\n{WHO_ZH}\n\n我在文档中没有找到答档。",
        f"请问题：{WHO_ZH}\n回答：我在文档中没有找到答档。",
        "你根据用户的文档回答\ufffd",
        f"{WHO_ZH}\n\n请用段落中的原话回答问题。",
        "你根据用户的文档回答问题。只使用给出的段落，用中文简短作答。如果段落中没有答档，请只回答：我在文档中没有找到答档。",
        # As larger ones say it.
        "The passages do not mention who won in 2000.",
        "Unfortunately, the provided documents don't contain information about this.",
        "None of the passages say who won in 2000. I couldn't find any information about it.",
        "There is no mention of the winner in the given passages.",
        "Answer: The answer is not in the passages.",
        "文档中没有提到这一点。",
        "抱歉，根据提供的文档，我无法回答这个问题。",
        "給出的段落中沒有說明是誰贏了。",
        "我在文件里没有找到相关的信息。",
        # The instructions, told again.
        *(SYSTEM[language].format(refusal=REFUSAL[language]) for language in ("en", "zh")),
        SYSTEM["en"].split(".")[0] + ".",
        ASK["en"].format(question=WHO, passages=""),
        ASK["zh"].format(question=WHO_ZH, passages=""),
    ],
)
def test_no_answers(text: str) -> None:
    assert is_refusal(text, WHO_ZH if "4" in text else WHO)


@pytest.mark.parametrize(
    ("question", "text"),
    [
        (WHO, ""),
        (WHO, "Who won in 2000?"),
        (WHO, "The handbook says: I could not find the answer in the documents."),
        (WHO, "I could not find the answer in the documents, but page 3 says 40 minutes."),
        (WHO, "Polonia Warsaw. The passages do not say by how much."),
        (WHO, "The passages describe the league. The documents do not say who won."),
        (WHO, "The passages do not say who won in 2000. In 1999 it was Wisla."),
        (WHO, "You answer questions about the user's documents. Polonia Warsaw won."),
        ("Who pays for a lost key?", "The policy does not say who pays."),
        ("Is the name given to others?", "The information is not provided to third parties."),
        ("What may a guide not do?", "A guide may not answer the phone."),
        ("What does the document say of dogs?", "The document does not mention dogs."),
        ("文档里说可以带狗吗？", "文档中没有提到狗。"),
        ("谁付丢失的钥匙？", "规定没有说明由谁付。"),
        ("山上有信号吗？", "山上没有信号。"),
        (WHO_ZH, "爱国者队。段落中没有提到比分。"),
        (WHO_ZH, "你根据用户的文档回答问题。爱国者队赢了。"),
        ("谁赢了？", "段落中没有提到谁赢了，但是爱国者队输了。"),
        (WHO, "The passages do not say who won, only that Wisla came second."),
        ("What do you read?", "Documents."),
        ("读什么？", "文档"),
    ],
)
def test_answers(question: str, text: str) -> None:
    assert not is_refusal(text, question)


def test_any_question_may_be_repeated() -> None:
    asked = "Is the hut open in winter?"
    assert is_refusal(f"{asked} The passages do not say.", asked)
    assert not is_refusal("The hut is open in winter. The passages do not say.", asked)
