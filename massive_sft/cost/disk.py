"""Bytes that a sweep holds on the disk at its peak, by its retention policy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from massive_sft.core.files import parse_size
from massive_sft.cost.inputs import CostInputs
from massive_sft.cost.memory import bytes_per_number, trained_weights
from massive_sft.cost.shapes import ModelShape
from massive_sft.planning.plan import RunPlan
from massive_sft.sweep.schema import Setting

STATE_BYTES = 12  # bytes that a resume checkpoint holds of a trained weight beside it: master copy and two moments


@dataclass(frozen=True)
class Disk:
    """Bytes on the disk; of snapshots in the object store, where ``storage.snapshots`` names one.

    Attributes:
        kept: snapshots that stay, by ``storage.keep_snapshots``.
        states: what longer trainings go on from, by ``storage.keep_state``.
        waiting: of those that are removed once they are scored, the most at a time, by ``storage.max_waiting``.
        resume: the largest resume checkpoint; each run that trains has one.
        sure: whether every model's shape was read from its own files.
    """

    kept: int
    waiting: int
    resume: int
    sure: bool
    states: int = 0

    @property
    def peak(self) -> int:
        return self.kept + self.states + self.waiting + self.resume


def peak_disk(inputs: CostInputs, todo: Iterable[RunPlan]) -> Disk | None:
    """Return what a plan holds at its peak; None where a model's shape is not known.

    Args:
        todo: the runs that are still to train.
    """
    keep, kept, sure = inputs.plan.sweep.file.storage.keep_snapshots, 0, True
    left = {run.trajectory.id for run in todo}
    waiting, resume, states = [0], [0], 0
    for run in inputs.plan.runs:
        setting, shape = run.trajectory.recipe.setting, inputs.shape(run.trajectory.recipe.model)
        if shape is None:
            return None
        sure &= shape.source == "config"
        snapshot, count = snapshot_bytes(shape, setting), len(run.trajectory.snapshots)
        stay = {"none": 0, "last": 1, "all": count}[getattr(keep, setting.method)]
        kept += stay * snapshot
        states += run.keeps_state * checkpoint_bytes(shape, setting)
        if run.trajectory.id in left:
            waiting.append((count - stay) * snapshot)
            resume.append(checkpoint_bytes(shape, setting))
    allowed = parse_size(inputs.plan.sweep.file.storage.max_waiting)
    return Disk(kept, int(min(sum(waiting), max(allowed, max(waiting)))), max(resume), sure, states)


def snapshot_bytes(shape: ModelShape, setting: Setting) -> int:
    """Return what one snapshot of a training takes."""
    return bytes_per_number(setting.precision) * trained_weights(shape, setting)


def checkpoint_bytes(shape: ModelShape, setting: Setting) -> int:
    """Return what one resume checkpoint of a training takes."""
    return (bytes_per_number(setting.precision) + STATE_BYTES) * trained_weights(shape, setting)
