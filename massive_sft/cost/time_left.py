"""The time that a run still takes: the estimate of its parts, corrected by what the parts done so far took."""

from __future__ import annotations

from collections.abc import Mapping

from massive_sft.cost.estimate import Estimator, runs_to_train
from massive_sft.planning.plan import Plan
from massive_sft.planning.trained import needs_retraining

# What an estimate counts for beside what was seen: until about as long has passed, it decides.
PRIOR_S = 30.0
GUESS_S = 60.0  # of a part of which nothing is known, where nothing is known of the others either


class TimeLeft:
    """The parts of a run, trainings and cells, with the seconds that each is estimated to take.

    A part that cannot be estimated counts as the mean of those that can. They are done side by side, so their seconds
    pass at another rate than those of the clock. That is taken from what was done since the first was begun, and from
    the estimate itself (one after another) as if it had been right for ``PRIOR_S``.

    Args:
        trainings, cells: estimated seconds by id; None for unknown.
    """

    def __init__(self, trainings: Mapping[str, float | None], cells: Mapping[str, float | None]):
        known = [seconds for seconds in (*trainings.values(), *cells.values()) if seconds is not None]
        mean = sum(known) / len(known) if known else GUESS_S
        parts = {("training", name): value for name, value in trainings.items()}
        parts |= {("cell", name): value for name, value in cells.items()}
        self._seconds = {part: mean if seconds is None else seconds for part, seconds in parts.items()}
        self._share = dict.fromkeys(parts, 0.0)

    @classmethod
    def of(cls, plan: Plan, retrain: bool = False) -> TimeLeft:
        """Return that of what a plan leaves to do; nothing can be done of cells whose snapshots were removed.

        Args:
            retrain: whether trainings whose snapshots were removed are done again.
        """
        estimator = Estimator(plan)
        estimates = {run.trajectory.id: estimator.training(run) for run in runs_to_train(plan, retrain)}
        cells = {cell.cell.id: estimator.cell(cell, None, cell.unmet).value for cell in plan.base if not cell.is_done}
        for run in plan.todo:
            for cell in run.cells:
                if not cell.is_done and (retrain or not needs_retraining(plan.storage, run.trajectory, [cell])):
                    cells[cell.cell.id] = estimator.cell(cell, run, cell.unmet).value
        trained = {name: None if seconds is None else seconds.value for name, seconds in estimates.items()}
        return cls(trained, {name: seconds or None for name, seconds in cells.items()})

    def trained(self, trajectory: str, share: float = 1.0) -> None:
        """Take note of how much of a training is done, from 0 to 1."""
        self._note(("training", trajectory), share)

    def recorded(self, cell: str) -> None:
        """Take note that a cell has its record."""
        self._note(("cell", cell), 1.0)

    def _note(self, part: tuple[str, str], share: float) -> None:
        if part in self._share:
            self._share[part] = max(self._share[part], min(1.0, share))

    def seconds(self, elapsed_s: float) -> float:
        """Return the seconds left, ``elapsed_s`` after the first part was begun; 0 when every part is done."""
        done = sum(self._seconds[part] * share for part, share in self._share.items())
        left = sum(self._seconds.values()) - done
        return left * (PRIOR_S + elapsed_s) / (PRIOR_S + done)
