"""Many requests, one model: they join and leave while others run, within a budget of memory, and nobody waits long.

One thread runs the model. Each of its rounds gives every running request its next tokens in one forward and reads a
piece of the prompts that wait. Continuous batching: Yu et al. 2022 (Orca), section 3; prompts in pieces: Agrawal et al.
2023 (Sarathi), section 4.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import itertools
import threading
import time
import weakref
from collections.abc import Hashable, Iterator, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from llama.errors import LlamaError
from llama.prefix import PrefixTree
from llama.request import Request

if TYPE_CHECKING:
    from llama.engine import Engine

ROWS = 16  # requests that run at once
PIECE = 1024  # tokens of a prompt that are read at a time: a request can be cancelled in between
PIECE_BESIDE_OTHERS = 512  # the same while other requests wait for their next token
DRAFTED = 32  # tokens of all requests in one step, up to which drafts are worth their price
STOP_S = 10.0  # the longest that the end of the process waits for a round
IDLE_S = 2.0  # the thread ends when nothing came for so long; the next request starts another


_schedulers: weakref.WeakSet[Scheduler] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    """A thread that the end of the process meets inside PyTorch would take it down with an abort."""
    for scheduler in list(_schedulers):
        scheduler.stop()


class Scheduler:
    """Runs requests side by side. All methods may be called from any thread."""

    def __init__(self, engine: Engine, memory: int, rows: int = ROWS) -> None:
        """memory: bytes for keys and values of running requests and of the prefixes that are kept."""
        self.memory, self.rows, self.prefixes = memory, rows, PrefixTree()
        self._engine = engine
        # Users wait in a ring; each has the requests that it has not yet got in.
        self._waiting: collections.OrderedDict[Hashable, collections.deque[Request]] = collections.OrderedDict()
        self._reading: collections.deque[Request] = collections.deque()  # prompts that are being read, in turns
        self._writing: list[Request] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._forgotten: list[Hashable] = []  # whose prefixes are dropped before the next round; None is everybody
        self._stopped = False
        _schedulers.add(self)

    @property
    def running(self) -> int:
        """Requests that hold a cache now."""
        return len(self._reading) + len(self._writing)

    @property
    def held(self) -> int:
        """Bytes of the running requests' caches; the prefixes that are kept are not among them."""
        return sum(request.bytes for request in (*self._reading, *self._writing))

    def submit(self, requests: Sequence[Request]) -> None:
        """Queues requests. Raises LlamaError when one could never fit into the memory."""
        for request in requests:
            if request.bytes > self.memory:
                raise LlamaError(
                    f"the request needs {request.bytes / 2**20:.1f} MB for its keys and values, and "
                    f"{self.memory / 2**20:.1f} MB are allowed; ask for a shorter answer, shorten the prompt, or raise "
                    "kv_memory_mb"
                )
        with self._changed:
            for request in requests:
                self._waiting.setdefault(request.user, collections.deque()).append(request)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="paddock-llama", daemon=True)
                self._thread.start()
            self._changed.notify()

    def stop(self) -> None:
        """Ends the thread behind its present round, for the end of the process; what runs is left as it is."""
        with self._changed:
            self._stopped, thread = True, self._thread
            self._changed.notify()
        if thread is not None:
            thread.join(STOP_S)

    def forget(self, variant: Hashable = None) -> None:
        """Drops the prefixes kept of a variant, by default all, once the present round is over."""
        with self._changed:
            self._forgotten.append(variant)

    def _work(self) -> None:
        while True:
            with self._changed:
                busy = self._changed.wait_for(lambda: self._stopped or self._waiting or self.running, IDLE_S)
                if not busy or self._stopped:
                    self._thread = None
                    return
                while self._forgotten:
                    self.prefixes.clear(self._forgotten.pop())
                self._admit()
            try:
                self._round()
            except BaseException as error:  # whatever it is, those who wait must hear of it
                for request in [*self._reading, *self._writing]:
                    request.end(error)
                self._reading.clear()
                self._writing.clear()

    def _admit(self) -> None:
        """Lets waiting requests in, one user after the other, while rows and memory last."""
        for request in self._cancelled():
            request.decoding.finish("cancelled")
            request.end()
        while self._waiting and self.running < self.rows:
            user, theirs = next(iter(self._waiting.items()))
            if not self._fits(self.held + theirs[0].bytes):
                return  # whoever is next gets the room that comes free: a large request is not overtaken for ever
            request = theirs.popleft()
            self._waiting.move_to_end(user)
            if not theirs:
                del self._waiting[user]
            request.begun = time.perf_counter()
            request.usage.queue_s = request.begun - request.submitted
            with self._blamed(request):
                request.cache = request.variant.new_cache(1, len(request.prompt) + request.budget)
                known = self.prefixes.load(request.reusable, request.cache, request.variant)
                request.cache.lengths[0] -= known % request.variant.grid
                request.usage.cached_tokens = request.read
                self._reading.append(request)

    def _fits(self, needed: int) -> bool:
        return needed <= self.memory and self.prefixes.shrink(self.memory - needed)

    def _cancelled(self) -> list[Request]:
        """Takes waiting requests that nobody waits for any more out of the queue."""
        gone = []
        for user in list(self._waiting):
            theirs = self._waiting[user]
            gone += [request for request in theirs if request.decoding.cancelled]
            kept = collections.deque(request for request in theirs if not request.decoding.cancelled)
            if kept:
                self._waiting[user] = kept
            else:
                del self._waiting[user]
        return gone

    def _round(self) -> None:
        for request in [each for each in (*self._reading, *self._writing) if each.decoding.cancelled]:
            request.give(request.decoding.finish("cancelled"))
            self._leave(request)
        if self._writing:
            self._write()
        if self._reading:
            self._read()

    def _read(self) -> None:
        """Reads a piece of the waiting prompts, of several if they are short; the last piece brings the first token."""
        room, given = PIECE_BESIDE_OTHERS if self._writing else PIECE, []
        for request in self._reading:
            assert request.cache is not None
            start, grid = request.read, request.variant.grid
            most = room if grid == 1 else grid - start % grid
            if most > room:
                break
            given.append((request, request.cache, request.prompt[start : start + most]))
            room -= len(given[-1][2])
            if room == 0:
                break
        pieces = [piece for _, _, piece in given]
        wanted = [request.wanted(request.read, len(piece)) for request, _, piece in given]
        for place, logits in self._forward([request for request, _, _ in given], pieces, wanted):
            request = given[place][0]
            with self._blamed(request):
                assert request.begun is not None
                request.usage.prefill_s = time.perf_counter() - request.begun
                request.hear(logits)
                self._reading.remove(request)
                if request.read < len(request.prompt):
                    self._reading.append(request)
                else:
                    self._writing.append(request)
                    if request.scored:
                        self._leave(request)
                    else:
                        self._say(request, logits[-1:], [])

    def _write(self) -> None:
        """The next token of every running request, and as many more as were guessed right."""
        room = max(0, DRAFTED // len(self._writing) - 1)
        writing = list(self._writing)
        drafts = [self._draft(request, room) for request in writing]
        given = [[request.tokens[-1], *draft] for request, draft in zip(writing, drafts, strict=True)]
        for place, logits in self._forward(writing, given, [len(each) for each in given]):
            with self._blamed(writing[place]):
                self._say(writing[place], logits, drafts[place])

    def _forward(
        self, requests: Sequence[Request], tokens: Sequence[Sequence[int]], wanted: Sequence[int]
    ) -> Iterator[tuple[int, Tensor]]:
        """(a request's place, its logits), of those that can share a forward at once.

        A fault ends the requests of its forward; others have other adapters and go on.
        """
        groups: dict[Hashable, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(request.variant.together, []).append(place)
        for places in groups.values():
            share = [requests[place] for place in places]
            with self._blamed(*share):
                caches = [request.cache for request in share if request.cache is not None]
                variants = [request.variant for request in share]
                given, last = ([each[place] for place in places] for each in (tokens, wanted))
                found = self._engine.forward(given, caches, last, variants)  # type: ignore[arg-type]
                yield from zip(places, found, strict=True)

    def _draft(self, request: Request, room: int) -> list[int]:
        if request.variant.grid > 1:  # a draft would be judged by other sums than those without it
            return []
        left = request.budget - len(request.tokens) - 1
        return request.lookup.draft(min(left, room)) if request.lookup is not None and min(left, room) > 0 else []

    def _say(self, request: Request, logits: Tensor, draft: list[int]) -> None:
        """Takes tokens from logits [1 + drafted, V] while the model says what the draft guessed.

        Each token is drawn as it would be without the draft, from the same logits and the same random numbers: a draft
        decides only whether the next row of logits is of any use.
        """
        decoding, before = request.decoding, len(request.tokens)
        accepted = 0
        for row, guess in itertools.zip_longest(logits, draft):
            request.give(decoding.push(row, request.budget))
            if decoding.done or guess is None or decoding.tokens[-1] != guess:
                break
            accepted += 1
        assert request.cache is not None
        # What stands behind a wrong guess is forgotten; it is overwritten by the next forward.
        request.cache.lengths[0] -= len(draft) - accepted
        if request.lookup is not None:
            request.usage.drafted_tokens += len(draft)
            request.usage.accepted_tokens += accepted
            request.lookup.learn(len(draft), accepted)
            request.lookup.extend(decoding.tokens[before:])
        if decoding.done:
            self._leave(request)

    def _leave(self, request: Request) -> None:
        """Takes a request out, tells whoever waits for it, and keeps what it computed."""
        cache = request.cache
        assert cache is not None
        if request in self._reading:
            self._reading.remove(request)
        else:
            self._writing.remove(request)
        known, grid = [*request.prompt, *request.tokens][: request.read], request.variant.grid
        if grid > 1:
            known = known[: len(request.prompt) // grid * grid]
        request.end()  # nobody waits for the copying
        if request.keep and request.variant.current:  # its own cache is there until that is done
            self.prefixes.store(known, cache, self.memory - self.held - request.bytes, request.variant)

    @contextlib.contextmanager
    def _blamed(self, *requests: Request) -> Iterator[None]:
        """A fault in the work for some requests ends these alone."""
        try:
            yield
        except Exception as error:
            for request in requests:
                for place in (self._reading, self._writing):
                    with contextlib.suppress(ValueError):
                        place.remove(request)
                request.end(error)
