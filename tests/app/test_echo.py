"""What only repeats the question, and what looks so and is an answer."""

from __future__ import annotations

import pytest

from app.echo import echoes

CONFLICT = "If there is a conflict between EU law and national law, which law takes precedence?"
CONFLICT_ZH = "如果欧盟法律和国家法律冲突，哪项法律优先？"


@pytest.mark.parametrize(
    ("question", "sentence"),
    [
        ("What is the notice period?", "The notice period."),
        ("How long is the notice period?", "The notice period is."),
        ("What’s the code of the key box?", "The answer to the question is: the key box code."),
        ("What colour is the door?", "The door"),
        ("When are salt blocks changed?", "When are salt blocks changed?"),
        ("How many days' notice do I have to give?", "You have to give notice."),
        ("Which neighbourhoods lie west of route 41?", "The neighbourhood lie west of route 41."),
        ("Which entities had to develop principles?", "The entities that had to develop principles are:"),
        ("What is DECnet", "DECnet"),
        ("通知期是多久？", "通知期。"),
        ("退订通知期是几天？", "退订的通知期是："),
        ("羊驼什么时候剪毛？", "羊驼剪毛。"),
        ("门是什么颜色？", "门的颜色。"),
        ("营地无线网络的密码是什么?", "营地无线网络的密码是什么？"),
        ("羊駝的押金是多少？", "羊駝的押金。"),
        ("誰創辦了這個營地？", "創辦營地。"),
    ],
)
def test_echoes(question: str, sentence: str) -> None:
    assert echoes(sentence, question)


@pytest.mark.parametrize(
    ("question", "sentence"),
    [
        ("What is the notice period?", "The notice period is 30 days."),
        ("What is the notice period?", "30 days."),
        ("What is the notice period?", ""),
        ("What is the notice period?", "It is the."),
        ("Is the deposit 200 euros?", "Yes, the deposit is 200 euros."),
        ("Is the deposit 200 euros?", "The deposit is 200 euros."),
        ("When the bridge is closed, is the hut open?", "When the bridge is closed, the hut is open."),
        ("Which colour is the door, red or blue?", "red"),
        ("Which of Heron Ridge and Five Lakes is longer?", "Heron Ridge"),
        ("Who wrote the report of Ingrid Solvane?", "Ingrid Solvane"),
        ("What is allowed?", "It is not allowed."),
        ("Which llamas are shorn?", "All llamas are shorn."),
        (CONFLICT, "EU law"),
        (CONFLICT, "If there is a conflict between EU law and national law, EU law takes precedence."),
        ("What rainforest covers the Amazon basin?", "The Amazon rainforest covers the Amazon basin."),
        ("The deposit, please.", "The deposit."),
        ("押金是200欧元吗？", "押金是200欧元。"),
        ("押金是200欧元吗？", "是的，押金是200欧元。"),
        ("门是红色还是蓝色？", "红色"),
        ("能不能带狗？", "能带狗。"),
        ("通知期是几天？", "通知期是30天。"),
        ("通知期是几天？", "三十天。"),
        ("哪些羊驼要剪毛？", "羊驼都要剪毛。"),
        (CONFLICT_ZH, "欧盟法律"),
        (CONFLICT_ZH, "如果欧盟法律和国家法律冲突，欧盟法律优先。"),
        ("雅各書的作者有可能是誰？", "雅各"),
        ("任何人都能参加吗", "任何人都能参加"),
    ],
)
def test_answers_are_no_echoes(question: str, sentence: str) -> None:
    assert not echoes(sentence, question)
