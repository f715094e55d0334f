"""Guesses at how an answer goes on, taken from another answer to the same request."""

from __future__ import annotations

from collections.abc import Sequence

FIRST_GUESSES = 8
MOST_GUESSES = 32  # of one forward pass: each costs what a token costs, wrong ones for nothing
_PLACED_BY = 2  # tokens by which an answer that went another way finds its place in the draft again


class Draft:
    """A text that an answer may repeat, in whole or in parts.

    It only proposes: a guess is taken where the model picks the same token, so the answer does not depend on it.

    Args:
        tokens: of the text.
    """

    def __init__(self, tokens: Sequence[int] = ()):
        self._tokens = tokens
        self._at: int | None = 0  # where the answer goes on; None: it went another way
        self._guesses = FIRST_GUESSES
        self._places: dict[tuple[int, ...], list[int]] = {}  # behind each sequence of tokens; made when first needed

    def propose(self, made: Sequence[int], most: int) -> list[int]:
        """Return up to ``most`` tokens that may follow those made."""
        if self._at is None:
            self._at = self._found(made)
        if self._at is None:
            return []
        return list(self._tokens[self._at : self._at + min(most, self._guesses)])

    def learn(self, guessed: int, right: int, taken: Sequence[int]) -> None:
        """Go on behind the tokens that the model took: the right guesses, and one of its own.

        Args:
            guessed: how many tokens were proposed.
            right: how many of them it took.
            taken: what it took.
        """
        if self._at is None:
            return
        if guessed:
            self._guesses = min(2 * self._guesses, MOST_GUESSES) if right == guessed else max(2, right)
        after = self._at + len(taken)
        self._at = after if list(self._tokens[self._at : after]) == list(taken) else None

    def _found(self, made: Sequence[int]) -> int | None:
        """Return the place behind the last made tokens in the draft, the one that is as far on as they are."""
        if not self._places:
            for end in range(_PLACED_BY, len(self._tokens)):
                self._places.setdefault(tuple(self._tokens[end - _PLACED_BY : end]), []).append(end)
        places = self._places.get(tuple(made[-_PLACED_BY:]), [])
        return min(places, key=lambda place: abs(place - len(made)), default=None)
