"""Which cells of a run are waited for."""

from __future__ import annotations

from massive_sft.planning.plan import RunPlan
from massive_sft.running.trial import todo


class Expected:
    """The cells of trainings that have no record of this run yet.

    A cell may be recorded again: a trial that was killed begins anew, and hands over what it had handed over before.
    """

    def __init__(self) -> None:
        self._by_cell: dict[str, RunPlan] = {}
        self._left: dict[str, set[str]] = {}  # by trajectory

    def add(self, run: RunPlan) -> None:
        """Wait for what a training, and those that are trained with it, leave to do."""
        for one in (run, *run.grouped_with):
            self._by_cell.update({cell.cell.id: one for cell in one.cells})
            self._left[one.trajectory.id] = {cell.cell.id for cell in todo(one)}

    def recorded(self, cell: str) -> RunPlan | None:
        """Take note that a cell has a record; return its training where none of its cells is waited for any more."""
        run = self._by_cell.get(cell)
        if run is None:
            return None
        left = self._left[run.trajectory.id]
        left.discard(cell)
        return None if left else run
