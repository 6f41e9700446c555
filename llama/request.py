"""One request, from whoever asks it to the scheduler that runs it."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Hashable, Iterator
from typing import TYPE_CHECKING

from torch import Tensor

from llama.cache import KVCache
from llama.decoding import Decoding, Usage
from llama.lookup import Lookup
from llama.sampling import SamplingParams
from llama.serving import Variant

if TYPE_CHECKING:
    from llama.engine import Engine


class Request:
    """One request on its way. Iterating gives its pieces of text as they come, and raises what went wrong (`error`).

    Leaving the iteration early cancels the request.
    """

    def __init__(
        self,
        engine: Engine,
        prompt: list[int],
        params: SamplingParams,
        cancel: threading.Event,
        user: Hashable = None,
        variant: Variant | None = None,
    ) -> None:
        """user: whose request it is, by default nobody else's. variant: whom it asks, by default the bare model."""
        self.prompt, self.params, self.user = prompt, params, self if user is None else user
        self.variant = variant or engine.plain
        self.decoding = Decoding(engine.tokenizer, params, prompt, cancel)
        self.budget = engine.answer_budget(len(prompt), params, self.variant)
        self.bytes = (self.variant.front + len(prompt) + self.budget) * self.variant.bytes_per_token
        self.cache: KVCache | None = None
        self.lookup = Lookup(prompt) if params.lookup else None
        self.submitted = time.perf_counter()
        self.begun: float | None = None
        self.done: queue.SimpleQueue[Request] | None = None  # is told when the request has ended
        self.error: BaseException | None = None
        self._cancel, self._pieces = cancel, queue.SimpleQueue[str | None]()
        self._scheduler, self._submitted, self._told = engine.scheduler, False, False

    @property
    def usage(self) -> Usage:
        return self.decoding.usage

    @property
    def tokens(self) -> list[int]:
        return self.decoding.tokens

    @property
    def logprobs(self) -> list[float]:
        """Log-probability of each token, where the parameters asked for them."""
        return self.decoding.logprobs

    @property
    def text(self) -> str:
        """What was given out so far; without its repetitions when the model ran in circles."""
        return self.decoding.text

    @property
    def read(self) -> int:
        """Tokens of prompt and answer whose keys and values its cache holds."""
        return 0 if self.cache is None else self.cache.lengths[0] - self.cache.front

    scored = False  # whether it only reads, and ends with its prompt
    keep = True  # whether what it computes is kept for later ones

    @property
    def reusable(self) -> list[int]:
        """The tokens that may be taken over from earlier requests: not the last, for what follows it is not kept."""
        return self.prompt[:-1]

    def wanted(self, start: int, size: int) -> int:
        """Behind how many of the last tokens of a piece of the prompt logits are wanted; 1 or more."""
        return 1

    def hear(self, logits: Tensor) -> None:
        """Takes the logits [wanted, V] of a piece of the prompt."""

    def cancel(self) -> None:
        """Ends the request at its next token; what was generated stays."""
        self._cancel.set()

    def __iter__(self) -> Iterator[str]:
        # A generator that nobody but the loop holds: it is closed when the loop is left.
        if not self._submitted:
            self._submitted = True
            self._scheduler.submit([self])
        try:
            while not self._told and (piece := self._pieces.get()) is not None:
                yield piece
        except GeneratorExit:
            self.cancel()
            raise
        self._told = True
        if self.error is not None:
            raise self.error

    def give(self, piece: str) -> None:
        if piece:
            self._pieces.put(piece)

    def end(self, error: BaseException | None = None) -> None:
        self.error, self.cache = error, None
        self._pieces.put(None)
        if self.done is not None:
            self.done.put(self)
