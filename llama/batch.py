"""Many requests through one forward: a ragged batch whose rows are refilled as soon as they come free."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llama.decoding import Decoding
from llama.sampling import SamplingParams

if TYPE_CHECKING:
    from llama.engine import Engine

ROWS = 16
CACHE_BYTES = 2 << 30


@dataclass
class _Row:
    """A request that is running in a row of the cache."""

    request: int
    decoding: Decoding
    budget: int


def generate_batch(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    rows: int = ROWS,
    cancel: threading.Event | None = None,
) -> Iterator[tuple[int, Decoding]]:
    """Decodes all prompts, up to `rows` of them at once, and yields (index of the prompt, its result) as each ends.

    Under greedy decoding in fp32 every result equals that of the request alone; sampled ones keep their seed. Fewer
    rows run where the key/value cache would exceed CACHE_BYTES. Setting `cancel` ends every request at its next token.
    Raises LlamaError when a prompt is empty or leaves no room in the context, before anything is computed.
    """
    for prompt in prompts:
        engine.check_prompt(prompt)
    if not prompts:
        return
    yield from _Batch(engine, prompts, params, rows, cancel or threading.Event()).run()


class _Batch:
    def __init__(
        self,
        engine: Engine,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        rows: int,
        cancel: threading.Event,
    ) -> None:
        self.engine, self.prompts, self.params, self.cancel = engine, prompts, params, cancel
        capacity = max(len(prompt) + engine.answer_budget(len(prompt), params) for prompt in prompts)
        fitting = max(1, CACHE_BYTES // (capacity * engine.cache_bytes_per_token))
        self.cache = engine.new_cache(min(rows, len(prompts), fitting), capacity)
        self.running: list[_Row] = []  # row i of the cache belongs to running[i]

    def run(self) -> Iterator[tuple[int, Decoding]]:
        waiting = list(range(len(self.prompts)))[::-1]
        while waiting or self.running:
            while waiting and len(self.running) < len(self.cache.lengths):
                row = self._start(waiting.pop())
                if row.decoding.done:
                    yield row.request, row.decoding
                else:
                    self.running.append(row)
            if self.running:
                yield from self._step()

    def _start(self, request: int) -> _Row:
        """Runs a prompt through the model, in the row behind those that run."""
        prompt = self.prompts[request]
        decoding = Decoding(self.engine.tokenizer, self.params, len(prompt), self.cancel)
        place = len(self.running)
        part = self.cache.rows(place, place + 1)
        part.reset()
        row = _Row(request, decoding, self.engine.answer_budget(len(prompt), self.params))
        logits = self.engine.prefill(prompt, part, decoding.usage, self.cancel)
        if logits is not None:
            decoding.push(logits, row.budget)
        self.cache.lengths[place] = part.lengths[0]
        return row

    def _step(self) -> Iterator[tuple[int, Decoding]]:
        """One token for every running row; yields those that end."""
        part = self.cache.rows(0, len(self.running))
        logits = self.engine.forward_batch([[row.decoding.tokens[-1]] for row in self.running], part)
        self.cache.lengths[: len(self.running)] = part.lengths
        for row, scores in zip(self.running, logits, strict=True):
            row.decoding.push(scores, row.budget)
        for place in reversed(range(len(self.running))):
            if self.running[place].decoding.done:
                yield self._leave(place)

    def _leave(self, place: int) -> tuple[int, Decoding]:
        """Takes a row out; the last one moves into its place, so that the rows that run stand together."""
        gone, last = self.running[place], len(self.running) - 1
        if place != last:
            self.cache.move_row(last, place)
            self.running[place] = self.running[last]
        self.running.pop()
        return gone.request, gone.decoding
