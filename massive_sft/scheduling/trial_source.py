"""How Tune gets a trial for each training that a source of work gives."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

from ray.tune.search import Searcher

from massive_sft.planning.plan import RunPlan
from massive_sft.running.events import CellRecorded
from massive_sft.running.work import WorkSource
from massive_sft.scheduling.nodes import Shape


class Assigner(Searcher):
    """Has Tune begin a trial for each training that a source gives, as many at a time as are useful.

    Args:
        work: the source.
        shape_of: returns the shape of a training's lane.
        assign: called with a training, its shape, its priority and whether it was unexpected, before its trial begins.
        close: called once, when the source is exhausted.
        most: returns how many trials may be there at a time.
    """

    def __init__(
        self,
        work: WorkSource,
        shape_of: Callable[[RunPlan], Shape],
        assign: Callable[[RunPlan, Shape, float, bool], None],
        close: Callable[[], None],
        most: Callable[[], int],
    ):
        super().__init__(metric=None, mode=None)
        self._work = work
        self._shape_of = shape_of
        self._assign = assign
        self._close = close
        self._most = most
        self._expected = Counter(shape_of(run) for run in work.known)
        self._live: dict[str, str] = {}  # trajectory by trial
        self._held: list[tuple[RunPlan, float]] = []  # until the trial before of their trajectory is over
        self._is_closed = False
        self._lock = threading.Lock()

    def suggest(self, trial_id: str) -> Any:
        """Return a trial's configuration, which is its trajectory; None when there is none now, FINISHED at the end."""
        with self._lock:
            given = self._next() if len(self._live) < self._most() else None
            if given is not None:
                run, priority = given
                shape = self._shape_of(run)
                is_unexpected = self._expected[shape] == 0
                if not is_unexpected:
                    self._expected[shape] -= 1
                self._assign(run, shape, priority, is_unexpected)
                self._live[trial_id] = run.trajectory.id
            if self._work.is_exhausted() and not self._held and not self._is_closed:
                self._is_closed = True
                self._close()
        if given is not None:
            return {"trajectory": given[0].trajectory.id}
        return Searcher.FINISHED if self._is_closed else None

    def _next(self) -> tuple[RunPlan, float] | None:
        """Return what can begin now: not more of a trajectory, as a promotion asks for, beside its earlier trial."""
        live = set(self._live.values())
        for held in self._held:
            if held[0].trajectory.id not in live:
                self._held.remove(held)
                return held
        while (given := self._work.next()) is not None and given[0].trajectory.id in live:
            self._held.append(given)
        return given

    def told(self, event: CellRecorded) -> None:
        """Tell the source of a record."""
        with self._lock:
            self._work.told(event)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing: the source is told by records, which are there after a killed trial too."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Take note that a trial is over."""
        with self._lock:
            self._live.pop(trial_id, None)

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune stores searchers; the ledger is what a run goes on from

    def save(self, checkpoint_path: str) -> None:
        """Nothing, as above."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, as above."""
