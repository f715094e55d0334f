"""Trainings that are longer than what was trained of them: what they go on from, and what is trained again without."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from massive_sft.cost.duration import ZERO, Quantity
from massive_sft.ledger.resume_state import find_resume_states
from massive_sft.ledger.storage import Root
from massive_sft.ledger.store import Ledger
from massive_sft.planning.plan import RunPlan
from massive_sft.planning.trained import trained_epochs


@dataclass(frozen=True)
class Extensions:
    """Trainings that are left and of which a part was trained before.

    Attributes:
        resumed: those that go on from a checkpoint or a state that was kept.
        repeated: those of which epochs are published and nothing was kept, so that they are trained again.
        epochs: those epochs, of all of them.
        again: seconds of training them again.
    """

    resumed: int = 0
    repeated: int = 0
    epochs: int = 0
    again: Quantity = ZERO

    def resuming(self) -> Extensions:
        """Return them with one more that goes on from a state."""
        return replace(self, resumed=self.resumed + 1)

    def repeating(self, epochs: int, again: Quantity) -> Extensions:
        """Return them with one more that trains so many epochs again."""
        return replace(self, repeated=self.repeated + 1, epochs=self.epochs + epochs, again=self.again + again)


def trained_part(storage: Root, run: RunPlan) -> tuple[float, int]:
    """Return how many epochs of a run are trained: by the state it goes on from, and by what is published.

    The first is 0 where there is no state; it is judged by its name alone.
    """
    trained = trained_epochs(storage, run.trajectory)
    published = min(max(map(int, trained), default=0), run.trajectory.epochs)
    return _epochs_resumed(storage, run, trained), published


def resumed_shares(storage: Root, runs: Iterable[RunPlan]) -> dict[str, float]:
    """Return how much of each run that goes on from a state is trained, from 0 to 1, by trajectory id."""
    begun = set(Ledger(storage).ids("trajectories"))
    known = [run for run in runs if run.trajectory.id in begun]
    shares = {run.trajectory.id: trained_part(storage, run)[0] / run.trajectory.epochs for run in known}
    return {trajectory: share for trajectory, share in shares.items() if share}


def _epochs_resumed(storage: Root, run: RunPlan, trained: Collection[str]) -> float:
    states = find_resume_states(Ledger(storage).trajectory(run.trajectory.id))
    if not states or not run.steps_per_epoch:
        return 0.0
    missing = min((epoch for epoch in run.trajectory.snapshots if str(epoch) not in trained), default=0)
    # A checkpoint holds the snapshots that it is past, as long as they were asked for then.
    usable = (state.step for state in states if not state.is_kept or state.step <= missing * run.steps_per_epoch)
    return min(max(usable, default=0) / run.steps_per_epoch, float(run.trajectory.epochs))
