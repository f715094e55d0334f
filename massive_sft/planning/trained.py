"""How far trajectories are trained by what is published of them, without verifying it: for plans and estimates."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from massive_sft.core.errors import Corrupt
from massive_sft.core.files import read_json
from massive_sft.ledger.record import Status
from massive_sft.ledger.storage import Root
from massive_sft.ledger.store import Ledger
from massive_sft.sweep.trajectory import Trajectory

if TYPE_CHECKING:
    from massive_sft.planning.plan import CellPlan


def needs_retraining(storage: Root, run: Trajectory, cells: Iterable[CellPlan]) -> bool:
    """Return whether some cell is trained, but lacks what needs its snapshot, which is gone."""
    return bool(epochs_to_retrain(storage, run, cells))


def epochs_to_retrain(storage: Root, run: Trajectory, cells: Iterable[CellPlan]) -> list[int]:
    """Return the epochs of the cells that are trained, but lack what needs their snapshot, which is gone."""
    lacking = [cell for cell in cells if cell.status in _MAY_BE_TRAINED and _lacks_snapshot_work(cell)]
    if not lacking:
        return []
    there = Ledger(storage).snapshots(run.id)
    gone = [cell for cell in lacking if f"epoch-{cell.cell.epoch}" not in there]
    # A training stands when only its scores failed or were invalidated.
    trained = trained_epochs(storage, run) if any(cell.status is Status.FAILED for cell in gone) else set()
    return [cell.cell.epoch for cell in gone if cell.status is not Status.FAILED or str(cell.cell.epoch) in trained]


_MAY_BE_TRAINED = frozenset({Status.FAILED, Status.COMPLETE, Status.PARTIAL})


def _lacks_snapshot_work(cell: CellPlan) -> bool:
    return any(item.needs_weights for item in cell.unmet)


def trained_epochs(storage: Root, run: Trajectory) -> set[str]:
    """Return the epochs (as text) up to which a trajectory is trained; what cannot be read counts nothing."""
    trained: set[str] = set()
    training = Ledger(storage).trajectory(run.id).at("training")
    for item in training.list():
        with suppress(OSError, Corrupt, KeyError, TypeError):
            trained |= set(read_json(training.fetch(item.name) / "training.json")["epochs"])
    return trained
