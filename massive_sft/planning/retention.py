"""Which snapshots a sweep keeps for good (``storage.keep_snapshots``)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from massive_sft.ledger.record import Status
from massive_sft.ledger.store import Ledger
from massive_sft.planning.plan import Plan, RunPlan
from massive_sft.sweep.schema import KeepSnapshots


def is_kept(run: RunPlan, epoch: int, policy: KeepSnapshots) -> bool:
    """Return whether the retention policy keeps a run's snapshot of this epoch for good."""
    keep = policy.full if run.trajectory.recipe.setting.method == "full" else policy.lora
    return keep == "all" or (keep == "last" and epoch == run.trajectory.epochs)


def count_removed(plan: Plan, retrain: bool = False) -> Counter[str]:
    """Return how many of the cells to do lose their snapshots once they are scored, by method.

    Args:
        retrain: whether trainings whose snapshots were removed are done again; without, these are none.
    """
    policy = plan.sweep.file.storage.keep_snapshots
    return Counter(
        run.trajectory.recipe.setting.method
        for run in plan.runs
        for cell in run.cells
        if not cell.is_done and not is_kept(run, cell.cell.epoch, policy)
        if retrain or not (run.needs_retraining and cell.status is Status.PARTIAL)
    )


def count_gone(plan: Plan, cells: Collection[str]) -> dict[str, tuple[int, int]]:
    """Return, by method, how many of these cells that are COMPLETE have no snapshot any more, and how many they are.

    A method of which every cell has its snapshot is not there.
    """
    ledger = Ledger(plan.storage)
    complete, gone = Counter[str](), Counter[str]()
    for run in plan.runs:
        method = run.trajectory.recipe.setting.method
        for cell in run.cells:
            if cell.cell.id in cells and cell.status is Status.COMPLETE:
                complete[method] += 1
                gone[method] += not ledger.has_snapshot(run.trajectory.id, cell.cell.epoch)
    return {method: (count, complete[method]) for method, count in gone.items() if count}


def kept_cells(plan: Plan) -> list[str]:
    """Return the ids of the cells whose snapshots a sweep keeps."""
    policy = plan.sweep.file.storage.keep_snapshots
    return [cell.cell.id for run in plan.runs for cell in run.cells if is_kept(run, cell.cell.epoch, policy)]
