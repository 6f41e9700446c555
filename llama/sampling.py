"""From logits to the next token, and when to stop."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real

import torch
from torch import Tensor

from llama.errors import LlamaError


@dataclass(frozen=True)
class SamplingParams:
    """How one request is decoded. temperature 0 is greedy; top_k, top_p, min_p and seed then have no effect.

    Raises LlamaError for a value out of its range.
    """

    max_tokens: int = 192
    temperature: float = 0.0
    top_k: int = 0  # only the k likeliest tokens; 0 takes all
    top_p: float = 1.0
    min_p: float = 0.0  # only tokens at least this likely in relation to the likeliest
    repetition_penalty: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    stop_loops: bool = False  # end when the text only repeats itself, and drop the repetitions
    logprobs: bool = False  # keep each token's log-probability
    lookup: bool = True  # draft from the prompt's own words; the same text, sooner

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, kind = getattr(self, field.name), KINDS[type(field.default)]
            if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
                raise LlamaError(f"{field.name} cannot be {value!r}; {RANGES.get(field.name, 'give true or false')}")
        if not all(isinstance(each, str) for each in self.stop):
            raise LlamaError(f"stop cannot be {self.stop!r}; {RANGES['stop']}")
        for name, right in (
            ("max_tokens", self.max_tokens >= 1),
            ("temperature", self.temperature == 0 or COLDEST <= self.temperature < float("inf")),
            ("top_k", self.top_k >= 0),
            ("top_p", 0 < self.top_p <= 1),
            ("min_p", 0 <= self.min_p <= 1),
            ("repetition_penalty", 0 < self.repetition_penalty < float("inf")),
            ("seed", 0 <= self.seed < 1 << 63),
        ):
            if not right:
                raise LlamaError(f"{name} cannot be {getattr(self, name)}; {RANGES[name]}")


RANGES = {
    "max_tokens": "give 1 or more",
    "temperature": "give 0 (greedy), or 0.0001 and more",
    "top_k": "give 0 (all tokens) or more",
    "top_p": "give more than 0 and at most 1",
    "min_p": "give 0 to 1",
    "repetition_penalty": "give more than 0; 1 changes nothing",
    "seed": "give a whole number from 0",
    "stop": "give a tuple of texts",
}
KINDS: dict[type, type] = {int: Integral, float: Real, bool: bool, tuple: tuple}
COLDEST = 1e-4  # logits divided by less would overflow


class Sampler:
    """Draws the tokens of one request; the same seed gives the same draws, whatever else runs."""

    def __init__(self, params: SamplingParams, prompt: Sequence[int] = ()) -> None:
        self.params = params
        self.logprob = 0.0  # of the last token, by the model alone; kept when the parameters ask for it
        self._random = torch.Generator().manual_seed(params.seed)
        self._seen = set(prompt) if params.repetition_penalty != 1 else None

    def __call__(self, logits: Tensor) -> int:
        """logits [V] -> a token id."""
        params = self.params
        token = self._choose(self._penalized(logits))
        if params.logprobs:
            self.logprob = float(torch.log_softmax(logits.float(), dim=-1)[token])
        if self._seen is not None:
            self._seen.add(token)
        return token

    def _penalized(self, logits: Tensor) -> Tensor:
        """Logits of tokens that were seen are divided by the penalty, or multiplied below 0 (Keskar et al. 2019)."""
        if not self._seen:
            return logits
        seen = torch.tensor(sorted(self._seen), device=logits.device)
        known = logits[seen]
        penalty = self.params.repetition_penalty
        return logits.index_copy(0, seen, torch.where(known > 0, known / penalty, known * penalty))

    def _choose(self, logits: Tensor) -> int:
        params = self.params
        if params.temperature == 0:
            return int(logits.argmax())
        probabilities = torch.softmax(logits.float().cpu() / params.temperature, dim=-1)
        if 0 < params.top_k < len(probabilities):
            kept = probabilities.topk(params.top_k)
            probabilities = torch.zeros_like(probabilities).scatter(-1, kept.indices, kept.values)
        if params.min_p > 0:  # Nguyen et al. 2024, section 3
            probabilities = probabilities.where(probabilities >= params.min_p * probabilities.max(), 0.0)
        probabilities = probabilities / probabilities.sum()
        if params.top_p < 1:
            probabilities = nucleus(probabilities, params.top_p)
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
