"""What waits to be mirrored: filled by the sweep, emptied by the mirror's thread."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from massive_sft.tracking.spool import Item

MAX_TRIES = 2
"""How often a refused item is tried: the second time on a new connection, for the store may have been replaced."""


@dataclass(frozen=True)
class Pending:
    """What is not mirrored: false when nothing is missing.

    Attributes:
        items: ids of cells, paths of files.
        reason: why, for people; without items nobody could look what is missing.
        unseen: whether nobody could look what else is missing.
    """

    items: tuple[Item, ...]
    reason: str
    unseen: bool = False

    def __bool__(self) -> bool:
        return bool(self.items or self.reason)

    def __str__(self) -> str:
        if not self.items:
            return f"what it lacks is not known ({self.reason})"
        cells = sum(isinstance(item, str) for item in self.items)
        more = ", and what else it lacks is not known" if self.unseen else ""
        return f"{cells} cells and {len(self.items) - cells} files are not there{more} ({self.reason})"


class Queue:
    """Items in order, each at most once; one of them is in hand. Safe between threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: dict[Item, None] = {}
        self._in_hand: Item | None = None
        self._refused: dict[Item, str] = {}
        self._refusals: Counter[Item] = Counter()
        self._closing = False

    @property
    def closing(self) -> bool:
        """Whether nothing more is waited for."""
        return self._closing

    @property
    def items(self) -> tuple[Item, ...]:
        """All that is not done: in hand, waiting, refused."""
        with self._changed:
            in_hand = () if self._in_hand is None else (self._in_hand,)
            return tuple(dict.fromkeys((*in_hand, *self._waiting, *self._refused)))

    @property
    def refused(self) -> dict[Item, str]:
        """The refused items and why."""
        with self._changed:
            return dict(self._refused)

    def put(self, items: Iterable[Item]) -> None:
        """Add items at the end; earlier refusals of them are forgotten."""
        with self._changed:
            for item in items:
                self._waiting[item] = None
                self._refused.pop(item, None)
                self._refusals.pop(item, None)
            self._changed.notify_all()

    def take(self) -> Item | None:
        """Take in hand what waited longest; wait for something. None when closing and nothing waits.

        It no longer waits then, so that one that is put again meanwhile is taken again.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            self._in_hand = next(iter(self._waiting), None)
            if self._in_hand is not None:
                del self._waiting[self._in_hand]
            return self._in_hand

    def done(self) -> None:
        """Let go of what is in hand."""
        with self._changed:
            self._in_hand = None

    def postpone(self) -> None:
        """Put what is in hand, if anything, back to the end, so that it holds up no other."""
        with self._changed:
            if self._in_hand is not None:
                self._waiting.setdefault(self._in_hand)
                self._in_hand = None

    def refuse(self, reason: str) -> bool:
        """Set what is in hand aside, or put it back for another try; return whether it was set aside."""
        with self._changed:
            item, self._in_hand = self._in_hand, None
            if item is None or item in self._waiting:
                return False
            self._refusals[item] += 1
            if self._refusals[item] < MAX_TRIES:
                self._waiting[item] = None
                return False
            self._refused[item] = reason
            return True

    def close(self) -> None:
        """Wait for nothing more."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def pause(self, seconds: float) -> None:
        """Sleep, but not beyond ``close``."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing, seconds)
