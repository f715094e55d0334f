"""Where a run's trainings come from: a plan that is known at once, or searches that decide as scores come in."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Protocol

from massive_sft.planning.plan import RunPlan
from massive_sft.running.events import CellRecorded


class WorkSource(Protocol):
    """A source of trainings, which may grow while a run goes on. It is asked and told by one thread at a time.

    Attributes:
        grows: whether others may come than those that are ``known``. Then a trial ends only once the cells of its run
            are scored, and reports the scores to Tune.
    """

    grows: bool

    @property
    def known(self) -> Sequence[RunPlan]:
        """Trainings that are sure to come, before the first is asked for."""

    def next(self) -> tuple[RunPlan, float] | None:
        """Return the next training and its priority (higher goes first); None when there is none now."""

    def told(self, event: CellRecorded) -> None:
        """Take note of a cell that has its record, whatever its status."""

    def is_exhausted(self) -> bool:
        """Return whether no training will come any more."""


class FixedWork:
    """The trainings of a plan, in their order."""

    grows = False

    def __init__(self, runs: Iterable[RunPlan]):
        self.known: Sequence[RunPlan] = tuple(runs)
        self._left = deque(self.known)

    def next(self) -> tuple[RunPlan, float] | None:
        return (self._left.popleft(), 0.0) if self._left else None

    def told(self, event: CellRecorded) -> None:
        """Nothing that comes depends on it."""

    def is_exhausted(self) -> bool:
        return not self._left
