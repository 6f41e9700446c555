"""What a dataset is like, before it is trained on."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from finetune.data.samples import Example, Faults, Sample

HAN = re.compile(r"[\u3400-\u9fff]")
LETTER = re.compile(r"[^\W\d_]")
EDGES = (64, 128, 256, 512, 1024, 2048, 4096, 8192)


@dataclass(frozen=True)
class Quality:
    """Counts of a dataset. `tokens` is a histogram: upper edge -> examples.

    moved: samples that are validated on because another table keeps their document for it.
    """

    samples: int
    examples: int
    left_out: int
    too_long: int
    empty: int
    duplicates: int
    same_prompt: int
    languages: dict[str, int]
    tokens: dict[str, int]
    total_tokens: int
    learned_tokens: int
    moved: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        """The report as text."""
        share = self.learned_tokens / max(1, self.total_tokens)
        moved = (
            f"{self.moved} samples of other tables were moved to validation: only_validate keeps their document for it",
        ) * bool(self.moved)
        return [
            f"{self.examples} examples of {self.samples} samples; {self.left_out} left out "
            f"({self.too_long} too long, {self.empty} empty)",
            *moved,
            f"{self.duplicates} are given twice, {self.same_prompt} more ask the same and answer otherwise",
            "languages: " + ", ".join(f"{name} {n}" for name, n in self.languages.items()),
            f"{self.total_tokens} tokens, {self.learned_tokens} of them learned ({100 * share:.1f}%)",
            "tokens of an example: " + ", ".join(f"{edge} {n}" for edge, n in self.tokens.items()),
        ]


def language(text: str) -> str:
    """zh, en or other, by what most letters are."""
    letters = LETTER.findall(text)
    han = sum(bool(HAN.match(letter)) for letter in letters)
    latin = sum(letter.isascii() for letter in letters)
    if not letters or 2 * max(han, latin) < len(letters):
        return "other"
    return "zh" if han >= latin else "en"


def quality(samples: Sequence[Sample], examples: Sequence[Example], faults: Faults, too_long: int) -> Quality:
    """The report of samples and what became of them."""
    prompts: dict[tuple[Any, ...], set[str]] = {}
    whole: Counter[tuple[Any, ...]] = Counter()
    for sample in samples:
        said = [(m["role"], m["content"].strip()) for m in sample.messages] or [("text", sample.text)]
        whole[(*said, sample.input, sample.unlearned)] += 1
        prompts.setdefault(tuple(said[:-1]) or ("text", sample.text), set()).add(said[-1][1])
    sizes = Counter(_edge(len(each.ids)) for each in examples)
    order = [*(f"to {edge}" for edge in EDGES), "more"]
    last = (sample.messages[-1]["content"] if sample.messages else sample.text[:2000] for sample in samples)
    return Quality(
        samples=len(samples),
        examples=len(examples),
        left_out=faults.count,
        too_long=too_long,
        empty=faults.empty,
        duplicates=sum(n - 1 for n in whole.values()),
        same_prompt=sum(len(answers) - 1 for answers in prompts.values()),
        languages=dict(Counter(map(language, last)).most_common()),
        tokens={name: sizes[name] for name in order if sizes[name]},
        total_tokens=sum(len(each.ids) for each in examples),
        learned_tokens=sum(each.supervised for each in examples),
    )


def _edge(size: int) -> str:
    return next((f"to {edge}" for edge in EDGES if size <= edge), "more")
