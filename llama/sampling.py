"""From logits to the next token, and when to stop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SamplingParams:
    """How one request is decoded. temperature 0 is greedy, and top_p and seed then have no effect."""

    max_tokens: int = 192
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    stop_loops: bool = False  # end when the text only repeats itself, and drop the repetitions


class Sampler:
    """Draws the tokens of one request; the same seed gives the same draws, whatever else runs."""

    def __init__(self, params: SamplingParams) -> None:
        self.params = params
        self._random = torch.Generator().manual_seed(params.seed)

    def __call__(self, logits: Tensor) -> int:
        """logits [V] -> a token id."""
        if self.params.temperature == 0:
            return int(logits.argmax())
        probabilities = torch.softmax(logits.float().cpu() / self.params.temperature, dim=-1)
        if self.params.top_p < 1:
            probabilities = nucleus(probabilities, self.params.top_p)
        return int(torch.multinomial(probabilities, 1, generator=self._random))


def nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Keeps the smallest set of tokens whose probability reaches top_p, renormalised (Holtzman et al. 2020, eq. 2)."""
    ordered, order = probabilities.sort(descending=True)
    before = ordered.cumsum(-1) - ordered
    kept = torch.where(before < top_p, ordered, 0.0)
    return torch.zeros_like(probabilities).scatter(-1, order, kept / kept.sum())


def looping(tokens: Sequence[int], times: int = 3, least: int = 18, longest: int = 64) -> int:
    """How many tokens at the end only say again what stands before them; 0 while the text still moves on.

    A small model under greedy decoding can fall into a cycle that it never leaves. A cycle is a sequence of at most
    `longest` tokens, said at least `times` times in a row and `least` tokens long in all.
    """
    for period in range(1, longest + 1):
        length = max(times * period, least)
        if length > len(tokens):
            continue
        tail = tokens[-length:]
        if tail[period:] == tail[:-period]:
            return length - period
    return 0


class StopText:
    """Ends a stream at the first stop string and never lets a part of one through.

    `push` gives the text that is safe to show: what could still grow into a stop string is held back.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.hit = False

    def push(self, text: str) -> str:
        if self.hit:
            return ""
        self._held += text
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.hit = True
            shown, self._held = self._held[: min(found)], ""
            return shown
        keep = max((self._overlap(stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def flush(self) -> str:
        """What was held back, once no more text comes."""
        shown, self._held = self._held, ""
        return shown

    def _overlap(self, stop: str) -> int:
        """Length of the longest end of the held text that is a beginning of `stop`."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)
