"""Keeps one training resumable: goes on from its checkpoint, writes the next ones, watches that the losses go on."""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from massive_sft.data.samples import Samples
from massive_sft.ledger.loss_curve import LOSSES
from massive_sft.sweep.spec import TrainingSpec
from massive_sft.training.batches import steps_per_epoch
from massive_sft.training.checkpoints import policy, random_states
from massive_sft.training.checkpoints.continuity import Continuity, Resumption
from massive_sft.training.checkpoints.disk import STATE, CheckpointFacts, CheckpointStore, link_folder
from massive_sft.training.checkpoints.policy import Interval, ResumePoint
from massive_sft.training.deepspeed_engine import convert_checkpoint
from massive_sft.training.divergence import LossCurve
from massive_sft.training.engine import Engine
from massive_sft.training.events import CheckpointFailed, CheckpointWritten, Event, Resumed, StartedOver, StepDone
from massive_sft.training.packing import Limit
from massive_sft.training.ranks import all_ranks, broadcast_from_rank0


class CheckpointManager:
    """The checkpoints of one training, on every rank; rank 0 writes what there is one of, and reports.

    Args:
        store: where they lie.
        spec, samples: what is trained.
        engine: before its first step.
        rank: of this process.
        directory: of this attempt, where losses and snapshots are.
        report: called with what is read and written.
    """

    def __init__(
        self,
        store: CheckpointStore,
        spec: TrainingSpec,
        samples: Samples,
        engine: Engine,
        rank: int,
        directory: Path,
        report: Callable[[Event], None],
    ):
        self._store = store
        self._spec = spec
        self._engine = engine
        self._rank = rank
        self._directory = directory
        self._report = report if rank == 0 else lambda event: None
        self._identity = policy.identity(spec, samples) if rank == 0 else ""
        self._steps_per_epoch = steps_per_epoch(len(samples), spec.setting.batch)
        self._continuity: Continuity | None = None
        self._past: tuple[Mapping[str, Any], ...] = ()
        cost_s = policy.first_cost_s(engine.trained, engine.ranks)
        self._interval = Interval(store.interval_s, time.perf_counter(), cost_s)

    def restore(self) -> ResumePoint | None:
        """Go on from what lies there: load weights, optimizer and random states, bring losses and snapshots here.

        Returns None where a training begins at its start.

        Raises:
            Unsupported: the state cannot be loaded with this layout.
            LeaseLost: another attempt owns the trajectory.
        """
        number = self._store.claim.number
        point = broadcast_from_rank0(
            lambda: policy.find_resume_point(self._store, self._spec, self._steps_per_epoch, self._identity)
        )
        if isinstance(point, StartedOver):
            self._past = (asdict(Resumption(number, None, 0, notes=(point.reason,))),)
            self._report(point)
        if not isinstance(point, ResumePoint):
            return None
        self._load(point)
        broadcast_from_rank0(lambda: self._link_progress(point))
        saved_states = point.folder / STATE / f"rank-{self._rank}.pt"
        if saved_states.exists():  # not for a rank that the writer did not have
            random_states.read(saved_states, self._engine.device)
        self._past = point.facts.history
        self._continuity = Continuity(point, number)
        self._report(Resumed(point.facts.step, point.facts.attempt, point.notes, point.passed_over))
        self._interval.since = time.perf_counter()
        return point

    def _load(self, point: ResumePoint) -> None:
        state = point.folder / STATE
        if not point.convert:
            self._engine.load(state)
            return
        converted = self._directory / "converted"
        broadcast_from_rank0(lambda: convert_checkpoint(state, converted))
        self._engine.load(converted, universal=True)
        all_ranks(True)  # have read it
        if self._rank == 0:
            shutil.rmtree(converted)

    def _link_progress(self, point: ResumePoint) -> None:
        """Bring the losses and snapshots up to the checkpoint into this attempt; hard links, so the others' stay."""
        self._directory.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(point.folder / STATE / LOSSES, self._directory / LOSSES)
        for epoch in point.facts.snapshots:
            name = f"snapshots/epoch-{epoch}"
            link_folder(point.folder / name, self._directory / name)

    def check(self, done: StepDone, curve: LossCurve, limit: Limit) -> None:
        """Judge whether the losses go on as they should; arguments as of ``Continuity.check``. Raises LossJump."""
        if self._continuity is not None:
            self._continuity.check(done, curve, limit)

    def confirm(self) -> None:
        """Make sure that something may rest on the steps since a resume. Raises LossJump."""
        if self._continuity is not None:
            self._continuity.confirm()

    @property
    def keeps_state(self) -> bool:
        """Whether a training writes a checkpoint after its last step."""
        return self._store.keeps_state

    def due(self, left_s: float) -> bool:
        """Return whether it is time for a checkpoint, with so many seconds left to train; asked on rank 0."""
        return self._interval.due(time.perf_counter(), left_s)

    def write(self, step: int, limit: Limit, snapshots: Mapping[int, Path]) -> str:
        """Write a checkpoint after ``step``. All ranks call it.

        Returns why it could not be written; empty when it was. What counted before still does then. With several ranks
        that is raised instead: those in a collective operation would wait for the one that failed.

        Raises:
            LeaseLost: another attempt owns the trajectory.
        """
        began = time.perf_counter()
        reason = ""
        try:
            size = self._write(step, limit, snapshots)
        except (OSError, RuntimeError) as error:  # torch.save tells of a full disk by either
            if self._engine.ranks > 1:
                raise
            with suppress(OSError):  # half of one must not fill the disk until the next
                self._store.clear()
            reason = f"{type(error).__name__}: {error}"
            self._report(CheckpointFailed(step, reason))
        else:
            self._report(CheckpointWritten(step, time.perf_counter() - began, size))
        self._interval.since = time.perf_counter()
        self._interval.cost_s = self._interval.since - began
        return reason

    def _write(self, step: int, limit: Limit, snapshots: Mapping[int, Path]) -> int:
        number, token = self._store.claim.number, secrets.token_hex(3)
        name = broadcast_from_rank0(lambda: self._store.begin(step, token))
        state = self._store.folder / name / STATE
        self._engine.save(state)
        random_states.write(state / f"rank-{self._rank}.pt", self._engine.device)
        all_ranks(True)  # have written their part
        facts = CheckpointFacts(
            attempt=number,
            step=step,
            identity=self._identity,
            layout=self._spec.layout.model_dump(mode="json"),
            limit=asdict(limit),
            environment=policy.environment(self._spec.layout),
            history=self.history,
        )
        losses = self._directory / LOSSES
        return broadcast_from_rank0(lambda: self._store.commit(name, facts, losses, snapshots))

    @property
    def history(self) -> tuple[Mapping[str, Any], ...]:
        """One entry for each time that this training went on or began again, as in ``Resumption``."""
        return (*self._past, *((asdict(self._continuity.result),) if self._continuity else ()))
