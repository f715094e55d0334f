"""Whether the disk holds what the next training writes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

from massive_sft.core.errors import Problem
from massive_sft.core.files import format_bytes
from massive_sft.cost.disk import checkpoint_bytes, snapshot_bytes
from massive_sft.cost.inputs import CostInputs
from massive_sft.ledger.store import Ledger
from massive_sft.planning.plan import Plan, RunPlan, storage_place
from massive_sft.running.trial import trainings_left


def disk_space_problems(plan: Plan) -> Iterator[Problem]:
    """Say of the largest training that is left whether one snapshot and one checkpoint of it fit on the disk.

    That much every training needs at once, whatever is removed meanwhile; `plan` estimates what a whole sweep holds.
    """
    known = CostInputs(plan)
    largest: tuple[int, int, RunPlan] | None = None
    for run in trainings_left(plan, Ledger(plan.storage)):
        setting, shape = run.trajectory.recipe.setting, known.shape(run.trajectory.recipe.model)
        if shape is None or shape.source == "name":
            continue
        sizes = (snapshot_bytes(shape, setting), checkpoint_bytes(shape, setting))
        if largest is None or sum(sizes) > largest[0] + largest[1]:
            largest = (*sizes, run)
    if largest is None:
        return
    snapshot, checkpoint, run = largest
    free = shutil.disk_usage(plan.root).free
    if snapshot + checkpoint > free:
        recipe = run.trajectory.recipe
        rule = (
            f"has {format_bytes(free)} free, but a snapshot of {recipe.model_name} {recipe.setting_name} takes about "
        )
        rule += (
            f"{format_bytes(snapshot)} and a checkpoint {format_bytes(checkpoint)}; make room, or name a larger disk"
        )
        yield Problem(storage_place(plan.sweep), rule, str(plan.root))
