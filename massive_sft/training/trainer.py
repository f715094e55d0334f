"""The training of one trajectory, step by step: it goes on from a checkpoint, writes snapshots, says how it went."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from massive_sft.core.errors import Interrupted
from massive_sft.data.samples import Samples
from massive_sft.ledger.loss_curve import LOSSES, to_line
from massive_sft.models.attention import attention_of
from massive_sft.sweep.spec import TrainingSpec
from massive_sft.training import micro_batch
from massive_sft.training.batches import batches_between, steps_per_epoch
from massive_sft.training.checkpoints.manager import CheckpointManager
from massive_sft.training.checkpoints.policy import ResumePoint
from massive_sft.training.divergence import DivergenceMonitor
from massive_sft.training.engine import Engine
from massive_sft.training.events import Event, StepDone
from massive_sft.training.loss import SummedLoss
from massive_sft.training.packing import Limit
from massive_sft.training.ranks import broadcast_from_rank0, is_rank0
from massive_sft.training.snapshot_writer import SnapshotWriter
from massive_sft.training.step import Decision, StepRunner
from massive_sft.training.summary import TrainingSummary


@dataclass
class TrajectoryTrainer:
    """One training on this rank, from its start or its checkpoint to its last snapshot.

    Attributes:
        spec, samples: what is trained and how; its checkpointing is chosen.
        loss: the engine's module; its model gives the snapshots.
        kernels: that compute its layers.
        engine: before its first step.
        runner: takes the optimizer steps.
        monitor: judges the losses.
        checkpoints: read and written on the way; None for a training that cannot be resumed.
        writer: writes its snapshots and has them published.
        directory, report, stop: as of ``loop.train_trajectory``.
    """

    spec: TrainingSpec
    samples: Samples
    loss: SummedLoss
    kernels: str
    engine: Engine
    runner: StepRunner
    monitor: DivergenceMonitor
    checkpoints: CheckpointManager | None
    writer: SnapshotWriter
    directory: Path
    report: Callable[[Event], None]
    stop: Callable[[], bool]
    _step: int = 0  # done so far, like the next two
    _tokens: int = 0
    _trainable_tokens: int = 0
    _snapshots: dict[int, Path] = field(default_factory=dict)
    _since: float = 0.0  # when a training that was never interrupted would have begun, by ``time.perf_counter``

    @property
    def last_step(self) -> int:
        """Optimizer steps to the last snapshot."""
        return max(self.spec.snapshots) * steps_per_epoch(len(self.samples), self.spec.setting.batch)

    def train(self) -> TrainingSummary:
        """Train to the last snapshot, or until every snapshot still to come has diverged already.

        Raises what ``train_trajectory`` does but for InvalidInput.
        """
        start = self.checkpoints.restore() if self.checkpoints else None
        if start is not None:
            self._go_on_from(start)
        self.runner.limit = broadcast_from_rank0(lambda: micro_batch.read_limit(self.directory)) or self.runner.limit
        self._since = time.perf_counter() - (sum(done.seconds for done in start.steps) if start else 0.0)
        with self._open_losses(append=start is not None) as losses, closing(self.writer):
            self._take_steps(losses)
            self.writer.finish()
        return self.summary()

    def summary(self) -> TrainingSummary:
        """Return how the training went so far."""
        return TrainingSummary(
            diverged=dict(self.monitor.diverged),
            steps=self._step,
            first_loss=self.monitor.curve.start(),
            last_loss=self.monitor.curve.end(),
            tokens=self._tokens,
            trainable_tokens=self._trainable_tokens,
            seconds=time.perf_counter() - self._since,
            snapshots=dict(self._snapshots),
            parameters=self.engine.parameters,
            trained_parameters=self.engine.trained,
            micro_batch=micro_batch.as_dict(self.runner.limit),
            attention=attention_of(self.loss.model),
            kernels=self.kernels,
            gradient_checkpointing=self.spec.layout.gradient_checkpointing,
            head=self.loss.head,
            resumed=self.checkpoints.history if self.checkpoints else (),
        )

    def _go_on_from(self, start: ResumePoint) -> None:
        """Take the steps up to a checkpoint into account, as if they had been taken here."""
        for done in start.steps:
            self._count(done)
        if start.facts.layout == self.spec.layout.model_dump(mode="json"):
            self.runner.limit = Limit(**start.facts.limit)  # running out of memory may have halved it
        self._snapshots = {int(epoch): self._snapshot_folder(int(epoch)) for epoch in start.facts.snapshots}

    def _open_losses(self, append: bool) -> TextIO:
        if not is_rank0():
            return open(os.devnull, "w")
        self.directory.mkdir(parents=True, exist_ok=True)
        return (self.directory / LOSSES).open("a" if append else "w")

    def _take_steps(self, losses: TextIO) -> None:
        setting = self.spec.setting
        for batch in batches_between(self._step, self.last_step, len(self.samples), setting.batch, setting.seed):
            done, decision = self.runner.run(batch, self._decide)
            if self.checkpoints is not None:
                self.checkpoints.check(done, self.monitor.curve, self.runner.limit)
            if is_rank0():
                losses.write(to_line(done))
                losses.flush()
                self.report(done)
            reason = self._count(done)
            ends_snapshot = batch.ends_epoch and batch.epoch in self.spec.snapshots
            is_written = decision in (Decision.CHECKPOINT, Decision.STOP)
            if self.checkpoints is not None and (reason or ends_snapshot or is_written):
                self.checkpoints.confirm()
            if decision is not Decision.GO_ON:
                self.writer.finish()
            # Given up are the epochs to come: the one that ends here may be sound.
            if ends_snapshot and not (reason and self.monitor.diverged.get(batch.epoch)):
                self._begin_snapshot(batch.epoch)
            if reason:
                return
            if self._step == self.last_step:
                self._write_last_checkpoint()
            elif is_written:
                self._write_checkpoint(decision)

    def _count(self, done: StepDone) -> str | None:
        """Take a step into account; return why to stop now, or None."""
        self._step = done.step
        self._tokens += done.tokens
        self._trainable_tokens += done.trainable_tokens
        return self.monitor.add(done.loss, done.grad_norm)

    def _decide(self) -> Decision:
        if self.stop():
            return Decision.STOP
        is_due = self.checkpoints is not None and self.checkpoints.due(self._left_s())
        if is_due:
            return Decision.CHECKPOINT
        return Decision.SNAPSHOT if self.writer.has_ended else Decision.GO_ON

    def _left_s(self) -> float:
        """Return the seconds that the steps after the one in hand should take, by those so far."""
        taken = self._step + 1
        return (time.perf_counter() - self._since) * (self.last_step - taken) / taken

    def _write_checkpoint(self, decision: Decision) -> None:
        """Write a checkpoint, and end there when that was decided. Raises Interrupted."""
        self.writer.finish()  # a checkpoint counts the snapshots before it
        failure = "nothing keeps checkpoints here"
        if self.checkpoints is not None:
            failure = self.checkpoints.write(self._step, self.runner.limit, self._snapshots)
        if decision is Decision.STOP:
            lost = f"; what it did is lost ({failure})" if failure else ""
            raise Interrupted(f"training stopped after step {self._step} of {self.last_step}{lost}")

    def _write_last_checkpoint(self) -> None:
        """Write the state that a longer run goes on from, where one is kept."""
        if self.checkpoints is not None and self.checkpoints.keeps_state:
            self.writer.finish()
            self.checkpoints.write(self._step, self.runner.limit, self._snapshots)

    def _snapshot_folder(self, epoch: int) -> Path:
        return self.directory / "snapshots" / f"epoch-{epoch}"

    def _begin_snapshot(self, epoch: int) -> None:
        """Have the weights at the end of an epoch written and published while training goes on. All ranks call it."""
        folder = self._snapshots[epoch] = self._snapshot_folder(epoch)
        self.writer.begin(folder, epoch, self._step, self.summary())
