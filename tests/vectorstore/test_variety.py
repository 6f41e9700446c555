"""Near-duplicates are found once; diversity brings what is different."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from langchain_core.documents import Document

from vectorstore.variety import SAME, distinct, diverse, resemblance, shingles, standings

HAY = "Llamas eat hay in the morning and grass in the afternoon, and they drink a lot of water from the stream."
VET = "The vet comes on Mondays. She looks at the teeth, the feet and the wool of every animal in the paddock."
ZH = "羊驼早上吃干草，下午吃青草，每天都要从小溪里喝很多水。兽医每周一来检查它们的牙齿。"


def passages(texts: Sequence[str], relevances: Sequence[float] | None = None) -> list[Document]:
    given = relevances or [1 - i / 10 for i in range(len(texts))]
    return [
        Document(text, id=str(i), metadata={"relevance": relevance, "score": relevance})
        for i, (text, relevance) in enumerate(zip(texts, given, strict=True))
    ]


def names(found: Sequence[Document]) -> list[str]:
    return [str(each.id) for each in found]


@pytest.mark.parametrize("text", [HAY, ZH])
def test_copies_are_found_once(text: str) -> None:
    copies = [text, text.upper(), text.replace(" ", "\n"), text + " !", VET, text[: len(text) // 2]]
    assert names(distinct(passages(copies), 6)) == ["0", "4", "5"], "half a passage is another one"
    assert names(distinct(passages(copies), 2)) == ["0", "4"]
    assert distinct([], 3) == []


@pytest.mark.parametrize(
    ("old", "new"), [("12", "15"), ("Mondays", "Fridays"), ("At most", "No more than"), ("每天", "隔天")]
)
def test_versions_of_a_rule_are_two(old: str, new: str) -> None:
    """The one that is out of date must not hide the other."""
    rule = f"{HAY} {VET} At most 12 kilograms are carried, by animals of 4 years and more. {ZH}"
    assert old in rule
    assert names(distinct(passages([rule, rule.replace(old, new), rule]), 3)) == ["0", "1"]


def test_neighbours_that_overlap_are_two() -> None:
    assert names(distinct(passages([HAY + VET, VET + ZH]), 2)) == ["0", "1"]


def test_resemblance_is_the_share_of_shingles() -> None:
    assert resemblance(shingles(HAY), shingles(HAY)) == 1
    assert resemblance(shingles(HAY), shingles(ZH)) == 0
    assert 0.3 < resemblance(shingles(HAY), shingles(HAY + VET)) < SAME
    assert resemblance(shingles(""), shingles("")) == 1


def test_diversity_brings_what_is_different() -> None:
    texts = [HAY, HAY.replace("water", "tea"), HAY.replace("hay", "straw"), VET]
    given = passages(texts, [1.0, 0.99, 0.98, 0.6])
    assert names(diverse(given, 2, 0.5)) == ["0", "3"]
    assert names(diverse(given, 4, 0.0)) == [*"0123"]
    assert sorted(names(diverse(given, 9, 1.0))) == [*"0123"]
    assert diverse([], 4, 0.5) == []


def test_an_order_that_was_changed_is_not_undone() -> None:
    """A reranker put the third first."""
    given = passages(["c", "a", "b"], [0.2, 1.0, 0.6])
    assert standings(given) == [1.0, 1.0, 0.6]
    assert names(diverse(given, 3, 0.1)) == [*"012"]
