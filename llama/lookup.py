"""Drafts from what stands in the prompt already: answers copy from their context (Saxena 2023, prompt lookup)."""

from __future__ import annotations

from collections.abc import Sequence

LONGEST, SHORTEST = 4, 2  # n-grams, in tokens, that a draft may continue
FIRST, MOST = 3, 7  # tokens of a draft


class Lookup:
    """Guesses a request's next tokens from the last place where its latest ones stood before.

    A guess costs a few more rows in the next forward and is kept only where the model says the same, so the text never
    depends on it. Guesses grow while they hold and shrink when they fail.
    """

    def __init__(self, prompt: Sequence[int]) -> None:
        self._tokens: list[int] = []
        self._ends: dict[tuple[int, ...], int] = {}  # n-gram -> where its latest occurrence but the present one ends
        self._size = FIRST
        self.extend(prompt)

    def extend(self, tokens: Sequence[int]) -> None:
        """Takes in further tokens of the request."""
        for token in tokens:
            # What ended at the last token becomes findable only now that something follows it.
            end = len(self._tokens)
            for n in range(SHORTEST, LONGEST + 1):
                if end >= n:
                    self._ends[tuple(self._tokens[end - n :])] = end
            self._tokens.append(token)

    def draft(self, room: int) -> list[int]:
        """At most `room` tokens that may come next; empty when nothing like the latest tokens was there before."""
        end = len(self._tokens)
        for n in range(LONGEST, SHORTEST - 1, -1):
            if end >= n and (found := self._ends.get(tuple(self._tokens[end - n :]))) is not None:
                return self._tokens[found : found + min(self._size, room)]
        return []

    def learn(self, drafted: int, accepted: int) -> None:
        """Adapts the length of drafts to how the last one fared."""
        if drafted:
            self._size = min(MOST, self._size + 2) if accepted == drafted else max(1, accepted + 1)
