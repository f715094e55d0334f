"""Training one trajectory: what is checked and loaded before the first step, and let go of after the last."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch

from massive_sft.core.stop import never_stop
from massive_sft.cost.memory import chunk_targets
from massive_sft.data.samples import Samples
from massive_sft.models.configuration import length_borders
from massive_sft.models.device import device_of
from massive_sft.models.kept_base import KeptBase
from massive_sft.models.pretrained import quiet
from massive_sft.sweep.spec import TrainingSpec
from massive_sft.training import loading, micro_batch
from massive_sft.training.adapter_group import GroupMember, MemberSteps
from massive_sft.training.batches import steps_per_epoch
from massive_sft.training.checkpoints.disk import CheckpointStore
from massive_sft.training.checkpoints.manager import CheckpointManager
from massive_sft.training.deepspeed_engine import torch_restored
from massive_sft.training.divergence import DivergenceMonitor
from massive_sft.training.engine import free_memory, make_engine, warm_up
from massive_sft.training.events import Event
from massive_sft.training.kernels import COMPILED, PLAIN, choose_kernels
from massive_sft.training.layout import layout_problems
from massive_sft.training.loss import SummedLoss
from massive_sft.training.memory_probe import MemoryProbe
from massive_sft.training.ranks import broadcast_from_rank0, join_group
from massive_sft.training.recomputing import recompute_activations
from massive_sft.training.shares import full_shape
from massive_sft.training.snapshot_writer import SnapshotWriter
from massive_sft.training.step import StepRunner
from massive_sft.training.summary import Publish, TrainingSummary, publish_nothing
from massive_sft.training.trainer import TrajectoryTrainer


def train_trajectory(
    spec: TrainingSpec,
    samples: Samples,
    directory: Path,
    report: Callable[[Event], None],
    checkpoints: CheckpointStore | None = None,
    stop: Callable[[], bool] = never_stop,
    publish: Publish = publish_nothing,
    bases: KeptBase | None = None,
    member: GroupMember | None = None,
) -> TrainingSummary:
    """Train one trajectory to its last snapshot epoch.

    Writes ``directory/losses.jsonl`` line by line and ``directory/snapshots/epoch-<k>/``. Under torchrun, or in an
    existing process group, every rank calls it with the same arguments; rank 0 writes and reports.

    Args:
        spec: what to train and how.
        samples: the whole training set, tokenised for this model.
        directory: of this attempt; rank 0 must be able to write to it.
        report: called on rank 0 with every event.
        checkpoints: where to go on from and where to write on the way; without it a training begins at its start.
        stop: asked on rank 0 once a step; when true, training ends after that step with a checkpoint.
        publish: called on rank 0 with each epoch whose snapshot was just written, while the steps after it are taken
            (``summary.Publish``); the folder must stay as it is. What it raises ends the training on all ranks.
        bases: gives copies of the base model, which it keeps for the next training; without it, it is read from its
            files.
        member: of a group of trainings that share their passes and give it its base; None for one alone.

    Returns:
        The summary; a run that diverges is a result, not an error.

    Raises:
        InvalidInput: when spec, samples and model do not fit together.
        Unsupported: when the checkpoint is of a layout that cannot be loaded with this one.
        Interrupted: when it was stopped.
        LossJump: when the losses after a resume do not go on where they were.
        LeaseLost: when another attempt owns the trajectory.
        OutOfMemory: when the smallest micro-batch does not fit.
        TrainAgain: on a rank that ran out of memory among several. The others wait for it, so the processes must end;
            called in others with the same ``directory``, it goes on with half the micro-batch.
        Corrupt, OSError: when a snapshot cannot be written.
    """
    loading.require_no_problems(layout_problems(spec.setting, spec.layout) + loading.sample_problems(samples))
    warm_up(spec.layout)
    try:
        with quiet() if member is None else nullcontext(), torch_restored():  # threads leave it to their group
            return _load_and_train(spec, samples, directory, report, checkpoints, stop, publish, bases, member)
    finally:
        free_memory()  # here, where nothing holds the model any more


def _load_and_train(
    spec: TrainingSpec,
    samples: Samples,
    directory: Path,
    report: Callable[[Event], None],
    checkpoints: CheckpointStore | None,
    stop: Callable[[], bool],
    publish: Publish,
    bases: KeptBase | None,
    member: GroupMember | None,
) -> TrainingSummary:
    rank, ranks = join_group(spec.layout)
    model = loading.load_for_training(spec, samples, bases if member is None else member)
    vocabulary = full_shape(model.get_output_embeddings().weight)[0]
    loss = SummedLoss(model, chunk_targets(vocabulary, spec.layout))
    device = torch.device(device_of(spec.layout.gpus > 0))
    kernels = choose_kernels(loss, spec, samples, device) if member is None else PLAIN
    torch.manual_seed(spec.setting.seed * ranks + rank)  # dropout differs from rank to rank
    per_epoch = steps_per_epoch(len(samples), spec.setting.batch)
    monitor = DivergenceMonitor(spec.snapshots, per_epoch, vocabulary)
    probe = MemoryProbe(loss, spec, samples) if ranks > 1 else None
    engine = (make_engine if member is None else member.make_engine)(loss, spec.setting, spec.layout)
    try:
        if spec.layout.stage == 3 and spec.layout.packing:
            loading.require_clean_packing_at_stage_3(spec, model, engine)
        compiled = broadcast_from_rank0(lambda: kernels == COMPILED)  # a trial of kernels may fail on one rank alone
        trials = micro_batch.first_trials(spec, samples, engine, model, compiled)
        trial = trials[0]
        if probe is not None:
            trial = micro_batch.agreed(probe, engine, trials)
        elif spec.layout.gpus and member is None:  # a CPU lets a process take what is not there
            trial = micro_batch.tried(spec, samples, engine, model, trials)
        recompute_activations(model, trial.layout)
        spec = spec.model_copy(update={"layout": trial.layout})
        manager = (
            CheckpointManager(checkpoints, spec, samples, engine, rank, directory, report) if checkpoints else None
        )
        borders = length_borders(model.config)
        steps = (StepRunner if member is None else MemberSteps)(
            spec, samples, engine, rank, trial.limit, borders, directory
        )
        writer = SnapshotWriter(spec, engine, model, report, publish)
        trainer = TrajectoryTrainer(
            spec, samples, loss, kernels, engine, steps, monitor, manager, writer, directory, report, stop
        )
        return trainer.train()
    finally:
        loss.release()
        engine.close()
