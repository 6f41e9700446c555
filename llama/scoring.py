"""Requests that write nothing: how likely a given text is behind a prompt."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from llama.request import Request
from llama.sampling import SamplingParams
from llama.serving import Variant

if TYPE_CHECKING:
    from llama.engine import Engine

SCORED_ROWS = 8  # at once: enough to fill a piece; more would only push kept prefixes out of the memory
SHORTEST_HEAD = 8  # tokens from which reading what prompts share ahead of them is worth a turn of its own


class Scoring(Request):
    """Reads a prompt and its continuation; `logprobs` has ln P of each of the continuation's tokens in the end."""

    scored = True

    def __init__(
        self,
        engine: Engine,
        prompt: Sequence[int],
        continuation: Sequence[int],
        user: Hashable,
        keep: bool,
        variant: Variant,
    ) -> None:
        """keep: whether the keys and values of prompt and continuation are kept for later requests."""
        # What would follow the continuation's last token is not asked, so that it is not read.
        super().__init__(engine, [*prompt, *continuation[:-1]], SamplingParams(), threading.Event(), user, variant)
        self.budget, self.bytes = 0, (variant.front + len(self.prompt)) * variant.bytes_per_token
        self.keep, self._start, self._continuation = keep, len(prompt) - 1, list(continuation)

    @property
    def reusable(self) -> list[int]:
        """Of the prompt, all but the last token: the first of the continuation is judged by what follows that."""
        return self.prompt[: self._start]

    def wanted(self, start: int, size: int) -> int:
        """The places that are followed by a token of the continuation."""
        return max(1, min(size, start + size - self._start))

    def hear(self, logits: Tensor) -> None:
        end = self.read
        if end <= self._start:
            return  # a piece of the prompt that nothing asked about follows
        known = len(self.logprobs)
        following = torch.tensor(self._continuation[known : end - self._start], device=logits.device)
        logits = logits[: len(following)].float()
        picked = logits.gather(1, following[:, None])[:, 0] - logits.logsumexp(1)
        self.logprobs.extend(picked.tolist())


def shared_heads(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """What several prompts begin with, the shorter first: what all have in common, and prompts that recur."""
    counts = Counter(map(tuple, prompts))
    columns = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*counts, strict=False))
    common = tuple(column[0] for column in columns) if len(prompts) > 1 else ()
    repeated = [prompt for prompt, count in counts.items() if count > 1]
    heads = dict.fromkeys([common, *repeated])
    return [list(head) for head in sorted(heads, key=len) if len(head) >= SHORTEST_HEAD]
