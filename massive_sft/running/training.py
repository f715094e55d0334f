"""The training stage: from a planned run to published snapshots and the outcome that says so."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from massive_sft.core.errors import Corrupt, InvalidInput, Unsupported
from massive_sft.core.stop import never_stop
from massive_sft.ledger.attempt import Attempt
from massive_sft.ledger.manifest import verify_folder
from massive_sft.ledger.storage import Folder
from massive_sft.ledger.store import Ledger
from massive_sft.models import peak_memory
from massive_sft.models.device import device_name
from massive_sft.models.kept_base import KeptBase
from massive_sft.planning.plan import RunPlan
from massive_sft.running.outcome import has_spent_checkpoint
from massive_sft.running.publishing import Publisher, outcome_place
from massive_sft.running.samples import samples_of
from massive_sft.sweep.cell import Recipe
from massive_sft.sweep.spec import TrainingSpec
from massive_sft.sweep.unchanged_files import require_same_model
from massive_sft.training.adapter_group import GroupMember
from massive_sft.training.checkpoints.disk import CheckpointStore
from massive_sft.training.engine import warm_up
from massive_sft.training.events import Begun, Event
from massive_sft.training.loop import train_trajectory
from massive_sft.training.ranks import all_ranks, broadcast_from_rank0, is_rank0


def training_spec(run: RunPlan) -> TrainingSpec:
    """Return what the training of a planned run needs to know."""
    recipe = run.trajectory.recipe
    return TrainingSpec(
        trajectory=run.trajectory.id,
        model=recipe.model,
        mixture=recipe.mixture,
        setting=recipe.setting,
        schedule=recipe.schedule,
        horizon=recipe.horizon,
        snapshots=run.trajectory.snapshots,
        layout=run.layout,
    )


def _cost_meter(gpu: bool) -> Callable[[], dict[str, Any]]:
    """Begin to count; return what returns the time and the peak of memory since."""
    began = time.perf_counter()
    peak_memory.begin(gpu)

    def cost() -> dict[str, Any]:
        seconds = time.perf_counter() - began
        return {"wall_seconds": seconds, "peak_bytes": peak_memory.peak_bytes(gpu), "device": device_name(gpu)}

    return cost


def train(
    run: RunPlan,
    ledger: Ledger,
    attempt: Attempt,
    report: Callable[[Event], None],
    stop: Callable[[], bool] = never_stop,
    bases: KeptBase | None = None,
    member: GroupMember | None = None,
) -> None:
    """Train a run under an attempt, on from its last checkpoint or the state that was kept of it.

    Each snapshot is published while training goes on, then the outcome.

    In a process group every rank calls it with the same arguments; rank 0 writes, reports and publishes. It may be
    called again with an attempt whose process was killed.

    Args:
        run: what is trained.
        ledger: where it is published.
        attempt: the right to.
        report: called on rank 0 with every event.
        stop: asked on rank 0 once a step; when true, training ends there with a checkpoint.
        bases: keeps the base model for the trainings to come; without it, it is read from its files.
        member: of a group of trainings that take their steps together; None for one alone.

    Raises:
        Interrupted: it was stopped; called again, under any attempt, it goes on.
        LeaseLost: another attempt owns the trajectory; what it publishes counts.
        InvalidInput: the base model or the data are no longer those that were planned; and as ``train_trajectory``.
        Unsupported, LossJump, OutOfMemory, TrainAgain, OSError: as ``train_trajectory``.
    """
    if broadcast_from_rank0(lambda: _is_published(attempt)):
        return
    require_shared_folder(attempt)
    if is_rank0():
        report(Begun())
    warm_up(run.layout)
    cost = _cost_meter(run.layout.gpus > 0)
    samples, counts = samples_of(run, ledger)
    checkpoints = CheckpointStore(attempt.storage, attempt.claim, run.resume_every_s, run.keeps_state, run.settled)
    publisher = Publisher(run, ledger, attempt, counts, cost)
    with _requiring_planned_base(run.trajectory.recipe, attempt):
        publish, spec, folder = publisher.publish_epoch, training_spec(run), attempt.folder
        summary = train_trajectory(spec, samples, folder, report, checkpoints, stop, publish, bases, member)
    if is_rank0():
        if run.keeps_state:
            checkpoints.keep(summary.steps)  # before the outcome, after which nobody would come back to it
        publisher.publish_outcome(summary)
        _clean_up(attempt)


@contextmanager
def _requiring_planned_base(recipe: Recipe, attempt: Attempt) -> Iterator[None]:
    """Hold a training to the base model that was planned: before it begins, and before anything of it counts."""
    broadcast_from_rank0(lambda: require_same_model(recipe.model, recipe.parts["base"]))
    try:
        yield
    finally:
        if is_rank0():
            try:
                require_same_model(recipe.model, recipe.parts["base"])
            except InvalidInput:
                attempt.remove_checkpoint()  # nothing may go on from other weights
                raise


def require_shared_folder(attempt: Attempt) -> None:
    """Make the folder of an attempt. All ranks call it.

    Under a root in an object store it is of one machine. Raises Unsupported when not all ranks are on that.
    """
    broadcast_from_rank0(lambda: attempt.folder.mkdir(parents=True, exist_ok=True))
    if not isinstance(attempt.storage, Folder) and not all_ranks(attempt.folder.is_dir()):
        rule = "the workers of a training must be on one machine where storage.root is in an object store"
        raise Unsupported(f"{rule}: they write one checkpoint together, and {attempt.folder} is not on all of theirs")


def _is_published(attempt: Attempt) -> bool:
    """Return whether this attempt published its outcome before its process was killed; finish what comes after."""
    try:
        verify_folder(attempt.storage.fetch(outcome_place(attempt)))
    except Corrupt:
        return False
    _clean_up(attempt)
    return True


def _clean_up(attempt: Attempt) -> None:
    """Remove what a finished training needs no more; a checkpoint beyond what was asked for stays."""
    if has_spent_checkpoint(attempt.storage):
        attempt.remove_checkpoint()
    attempt.clean_up()
