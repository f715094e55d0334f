"""Training one trajectory: load, go on from a checkpoint, train step by step, write snapshots, say how it went."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np
import torch

from massive_sft.core.errors import Interrupted, MassiveSFTError, TrainAgain
from massive_sft.core.stop import never
from massive_sft.data.samples import Samples
from massive_sft.models import pretrained
from massive_sft.models.out_of_memory import out_of_memory
from massive_sft.sweep.spec import TrainingSpec
from massive_sft.training import batches, loading, packing, snapshot
from massive_sft.training.checkpoints.disk import LOSSES, Checkpoints
from massive_sft.training.checkpoints.manager import CheckpointManager
from massive_sft.training.checkpoints.policy import Start
from massive_sft.training.divergence import Verdicts
from massive_sft.training.engine import Engine, free_memory, layout_problems, quiet, warm_up
from massive_sft.training.events import Event, SnapshotWritten, StepDone
from massive_sft.training.loss import SummedLoss
from massive_sft.training.probe import Probe
from massive_sft.training.ranks import broadcast_from_rank0, join_group, sum_over_ranks
from massive_sft.training.schedule import learning_rate

# What rank 0 decides in a step; the others learn of it with the sum of the loss.
GO_ON, SAVE, STOP = 0, 1, 2
ONE_SAMPLE = "one sample does not fit: lower max_length"
REMEDIES = "or use gradient_checkpointing, offload or more GPUs with zero: 3"


@dataclass(frozen=True)
class TrainingSummary:
    """How a trajectory went, to its end or so far; equal on every rank but for ``seconds``.

    Attributes:
        diverged: by snapshot epoch, why the run had diverged by then; empty when it had not. So far: those judged.
        steps: optimizer steps done.
        first_loss, last_loss: mean loss over the first and last 5 % of steps (at least 5), nats per token.
        tokens, trainable_tokens: seen in all, without padding.
        seconds: from the first step to the end, snapshots included; of what was done before a resume, the steps.
        snapshots: folder by epoch.
        parameters, trained_parameters: numbers of weights.
        micro_batch: the final limit of a micro-batch, such as ``{"samples": 4}`` or ``{"tokens": 4096}``.
        attention: the implementation that computed it.
        resumed: what ``resume.Resumption`` says of each time that it went on from a checkpoint or began again.
    """

    diverged: dict[int, str]
    steps: int
    first_loss: float
    last_loss: float
    tokens: int
    trainable_tokens: int
    seconds: float
    snapshots: dict[int, Path]
    parameters: int
    trained_parameters: int
    micro_batch: dict[str, int]
    attention: str
    resumed: tuple[Mapping[str, Any], ...] = ()

    @property
    def reason(self) -> str:
        """Why the whole run diverged; empty when it did not."""
        return self.diverged[max(self.diverged)]

    @property
    def status(self) -> Literal["COMPLETE", "DIVERGED"]:
        return "DIVERGED" if self.reason else "COMPLETE"


# Told on rank 0 of a training so far, right after the snapshot of an epoch was written.
Publish = Callable[[int, TrainingSummary], None]


def keep_here(epoch: int, summary: TrainingSummary) -> None:
    """A ``Publish`` for trainings whose snapshots stay in their directory."""


class OutOfMemory(MassiveSFTError):
    """Not even the smallest possible micro-batch fits."""


@dataclass
class _Run:
    """What changes while a trajectory trains."""

    spec: TrainingSpec
    samples: Samples
    engine: Engine
    model: Any
    rank: int
    limit: packing.Limit
    verdicts: Verdicts
    steps_per_epoch: int
    directory: Path
    report: Callable[[Event], None]
    stop: Callable[[], bool]
    publish: Publish
    numbers: tuple[int, int]
    keeper: CheckpointManager | None
    step: int = 0
    tokens: int = 0
    trainable_tokens: int = 0
    since: float = 0.0
    snapshots: dict[int, Path] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Optimizer steps to the last snapshot."""
        return max(self.spec.snapshots) * self.steps_per_epoch

    def count(self, done: StepDone) -> str | None:
        """Take a step into account; return why to stop now, or None."""
        self.step = done.step
        self.tokens += done.tokens
        self.trainable_tokens += done.trainable_tokens
        return self.verdicts.add(done.loss, done.grad_norm)


def train_trajectory(
    spec: TrainingSpec,
    samples: Samples,
    directory: Path,
    report: Callable[[Event], None],
    checkpoints: Checkpoints | None = None,
    stop: Callable[[], bool] = never,
    publish: Publish = keep_here,
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
        publish: called on rank 0 with each epoch whose snapshot was just written; the folder must stay as it is. What
            it raises ends the training on all ranks.

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
    loading.refuse(layout_problems(spec.setting, spec.layout) + loading.sample_problems(samples))
    warm_up(spec.layout)
    try:
        with quiet():
            return _train_one(spec, samples, directory, report, checkpoints, stop, publish)
    finally:
        free_memory()  # here, where nothing holds the model any more


def _train_one(
    spec: TrainingSpec,
    samples: Samples,
    directory: Path,
    report: Callable[[Event], None],
    checkpoints: Checkpoints | None,
    stop: Callable[[], bool],
    publish: Publish,
) -> TrainingSummary:
    rank, ranks = join_group(spec.layout)
    model = loading.load_trained(spec, samples)
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    numbers = sum(n for n, _ in sizes), sum(n for n, trained in sizes if trained)
    loss = SummedLoss(model)
    torch.manual_seed(spec.setting.seed * ranks + rank)  # dropout differs from rank to rank
    per_epoch = batches.steps_per_epoch(len(samples), spec.setting.batch)
    verdicts = Verdicts(spec.snapshots, per_epoch, model.get_output_embeddings().weight.shape[0])
    probe = Probe(loss, spec, samples) if ranks > 1 else None
    engine = Engine(loss, spec.setting, spec.layout)
    try:
        limit = loading.first_limit(spec, samples, engine, model)
        if probe is not None:
            limit = _agreed(probe, engine, limit)
        keeper = CheckpointManager(checkpoints, spec, samples, engine, rank, directory, report) if checkpoints else None
        run = _Run(
            spec, samples, engine, model, rank, limit, verdicts, per_epoch, directory, report, stop, publish, numbers,
            keeper,
        )  # fmt: skip
        _train(run)
        summary = _summary(run)
    finally:
        loss.release()
        engine.close()
    return summary


def _agreed(probe: Probe, engine: Engine, limit: packing.Limit) -> packing.Limit:
    """Return the micro-batch that fits on every rank. Raises OutOfMemory on all of them when none does."""
    fits = probe.agree(engine, limit)
    if fits is None:
        raise OutOfMemory(f"out of memory before the first step: {ONE_SAMPLE}, {REMEDIES}")
    return fits


def _summary(run: _Run) -> TrainingSummary:
    """Return how a run went so far."""
    parameters, trained = run.numbers
    return TrainingSummary(
        diverged=dict(run.verdicts.diverged),
        steps=run.step,
        first_loss=run.verdicts.last.start(),
        last_loss=run.verdicts.last.end(),
        tokens=run.tokens,
        trainable_tokens=run.trainable_tokens,
        seconds=time.perf_counter() - run.since,
        snapshots=dict(run.snapshots),
        parameters=parameters,
        trained_parameters=trained,
        micro_batch=_as_dict(run.limit),
        attention=pretrained.attention_of(run.model),
        resumed=run.keeper.history if run.keeper else (),
    )


def _as_dict(limit: packing.Limit) -> dict[str, int]:
    return {name: value for name, value in asdict(limit).items() if value is not None}


def _train(run: _Run) -> None:
    """Train to the last snapshot, or until every snapshot still to come has diverged already."""
    start = run.keeper.begin() if run.keeper else None
    if start is not None:
        _go_on(run, start)
    run.limit = broadcast_from_rank0(lambda: loading.noted_limit(run.directory)) or run.limit
    run.since = time.perf_counter() - (sum(done.seconds for done in start.steps) if start else 0.0)
    with _losses_file(run, "a" if start else "w") as losses:
        _take_steps(run, losses)


def _go_on(run: _Run, start: Start) -> None:
    """Take the steps up to a checkpoint into account, as if they had been taken here."""
    for done in start.steps:
        run.count(done)
    if start.facts.layout == run.spec.layout.model_dump(mode="json"):
        run.limit = packing.Limit(**start.facts.limit)  # running out of memory may have halved it
    run.snapshots = {int(epoch): _snapshot_folder(run, int(epoch)) for epoch in start.facts.snapshots}


def _losses_file(run: _Run, mode: Literal["a", "w"]) -> TextIO:
    if run.rank != 0:
        return open("/dev/null", "w")
    run.directory.mkdir(parents=True, exist_ok=True)
    return (run.directory / LOSSES).open(mode)


def _take_steps(run: _Run, losses: TextIO) -> None:
    order = np.empty(0, dtype=np.int64)
    for step in range(run.step, run.steps):
        epoch, index = step // run.steps_per_epoch + 1, step % run.steps_per_epoch
        if index == 0 or not len(order):
            order = batches.epoch_order(len(run.samples), run.spec.setting.seed, epoch)
        done, decision = _step(run, epoch, batches.batch_of(order, run.spec.setting.batch, index))
        if run.keeper is not None:
            run.keeper.check(done, run.verdicts.last)
        if run.rank == 0:
            losses.write(_line(done))
            losses.flush()
            run.report(done)
        if run.count(done):
            return
        if index == run.steps_per_epoch - 1 and epoch in run.spec.snapshots:
            _snapshot(run, epoch)
        if decision != GO_ON and run.step < run.steps:
            _checkpoint(run, decision)


def _checkpoint(run: _Run, decision: int) -> None:
    """Write a checkpoint, and end there when that was asked for. Raises Interrupted."""
    failure = run.keeper.write(run.step, run.limit, run.snapshots) if run.keeper else "nothing keeps checkpoints here"
    if decision == STOP:
        lost = f"; what it did is lost ({failure})" if failure else ""
        raise Interrupted(f"training stopped after step {run.step} of {run.steps}{lost}")


def _decide(run: _Run) -> int:
    """Return what happens after this step; asked on rank 0."""
    if run.stop():
        return STOP
    return SAVE if run.keeper is not None and run.keeper.due() else GO_ON


def _line(done: StepDone) -> str:
    """One line of ``losses.jsonl``; JSON has no NaN, so a number that is not finite is written as a string."""
    values = {name: value if math.isfinite(value) else str(value) for name, value in asdict(done).items()}
    return json.dumps(values, allow_nan=False) + "\n"


def _step(run: _Run, epoch: int, batch: np.ndarray) -> tuple[StepDone, int]:
    """One optimizer step, and what rank 0 decides in it. A loss that is not finite is told without an update."""
    began = time.perf_counter()
    spec = run.spec
    spans = [run.samples[int(index)] for index in batch]
    tokens = sum(len(span[0]) for span in spans)
    targets = int(sum(span[1].sum() for span in spans))
    horizon = spec.horizon * run.steps_per_epoch
    lr = learning_rate(spec.schedule, spec.setting.lr, run.step, horizon, spec.setting.warmup_steps)
    summed = _accumulate(run, batch, targets)
    decision = float(_decide(run) if run.rank == 0 else 0)
    total, decision = sum_over_ranks(torch.stack([summed, summed.new_tensor(decision)]))
    loss = total / targets
    grad_norm = run.engine.step(lr) if math.isfinite(loss) else math.nan
    seconds = time.perf_counter() - began
    return StepDone(run.step + 1, epoch, loss, lr, grad_norm, tokens, targets, seconds), int(decision)


def _accumulate(run: _Run, batch: np.ndarray, targets: int) -> torch.Tensor:
    """Gradients of one batch; a micro-batch that does not fit is halved and the batch begun again."""
    layout = run.spec.layout
    while True:
        plan = packing.plan_step(batch, run.samples.lengths, run.engine.ranks, run.limit, layout.packing)
        micro = [packing.collate(run.samples, indices, layout.packing) for indices in plan[run.rank]]
        try:
            return run.engine.accumulate(micro, targets)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            smaller = run.limit.halved(int(run.samples.lengths.max()))
            told = f"out of memory at step {run.step + 1} with a micro-batch of {_as_dict(run.limit)}"
            if smaller is None:
                raise OutOfMemory(f"{told}; {ONE_SAMPLE}, {REMEDIES}") from error
            if run.engine.ranks > 1:
                loading.note_limit(run.directory, smaller)
                raise TrainAgain(told) from error
        # Outside the handler, so that the broken pass's tensors are no longer held by its traceback.
        run.limit = smaller
        run.engine.discard_gradients()


def _snapshot_folder(run: _Run, epoch: int) -> Path:
    return run.directory / "snapshots" / f"epoch-{epoch}"


def _snapshot(run: _Run, epoch: int) -> None:
    folder = _snapshot_folder(run, epoch)
    weights = snapshot.gather(run.engine, run.model, run.rank)
    if run.rank == 0:
        facts = {
            "trajectory": run.spec.trajectory,
            "epoch": epoch,
            "step": run.step,
            "method": run.spec.setting.method,
            "precision": run.spec.setting.precision,
        }
        snapshot.write(folder, run.model, weights, facts)
        run.report(SnapshotWritten(epoch, folder))
    run.snapshots[epoch] = folder
    broadcast_from_rank0(lambda: run.publish(epoch, _summary(run)))
