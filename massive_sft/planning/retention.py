"""Which snapshots a sweep keeps for good (``storage.keep_snapshots``)."""

from __future__ import annotations

from massive_sft.planning.plan import Plan, RunPlan
from massive_sft.sweep.schema import KeepSnapshots


def is_kept(run: RunPlan, epoch: int, policy: KeepSnapshots) -> bool:
    """Return whether the retention policy keeps a run's snapshot of this epoch for good."""
    keep = policy.full if run.trajectory.recipe.setting.method == "full" else policy.lora
    return keep == "all" or (keep == "last" and epoch == run.trajectory.epochs)


def kept_cells(plan: Plan) -> list[str]:
    """Return the ids of the cells whose snapshots a sweep keeps."""
    policy = plan.sweep.file.storage.keep_snapshots
    return [cell.cell.id for run in plan.runs for cell in run.cells if is_kept(run, cell.cell.epoch, policy)]
