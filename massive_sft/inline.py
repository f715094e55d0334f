"""Run a sweep in this process, one trajectory after another: for tests, debugging and a single machine."""

from __future__ import annotations

import contextlib
import os
import socket
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from massive_sft.errors import LeaseLost
from massive_sft.ledger.provenance import capture, redact
from massive_sft.ledger.record import Record, Status
from massive_sft.ledger.store import Ledger
from massive_sft.plan import CellPlan, Plan, RunPlan
from massive_sft.sft.loop import Event
from massive_sft.stages.recording import Finisher, remove_snapshot
from massive_sft.stages.training import Trained, find_snapshot, find_trained, train
from massive_sft.sweep.cell import Cell
from massive_sft.sweep.trajectory import Trajectory


@dataclass(frozen=True)
class Began:
    """A trajectory's training begins, at this attempt."""

    trajectory: Trajectory
    attempt: int


@dataclass(frozen=True)
class Progressed:
    """A trajectory's training took a step or wrote a snapshot."""

    trajectory: Trajectory
    event: Event


@dataclass(frozen=True)
class Recorded:
    """A cell has a new record."""

    cell: Cell
    record: Record


@dataclass(frozen=True)
class Skipped:
    """Somebody else works on this."""

    what: str


Happening = Began | Progressed | Recorded | Skipped
Listen = Callable[[Happening], None]


@dataclass
class Result:
    """How a run ended."""

    records: list[Record] = field(default_factory=list)
    skipped: int = 0

    @property
    def failed(self) -> list[Record]:
        return [record for record in self.records if record.status in (Status.FAILED, Status.PARTIAL)]


def run_inline(plan: Plan, listen: Listen, retrain: bool = False) -> Result:
    """Do what a plan leaves to do: base models first, then each trajectory's training, scores, measures and records.

    A failure is recorded for its cells and the rest goes on.

    Args:
        plan: of the sweep; local files are all there (``plan.require_settled``).
        listen: told what happens.
        retrain: train again where a snapshot that is needed was removed.
    """
    ledger = Ledger.open(plan.root)
    finisher = Finisher(
        ledger=ledger,
        evaluation=plan.sweep.file.evaluation,
        provenance=capture(plan.sweep.path),
        owner=f"{socket.gethostname()}:{os.getpid()}",
    )
    runner = _Runner(plan, ledger, finisher, listen, retrain)
    for cell in plan.base:
        if not cell.is_done:
            runner.base(cell)
    for run in plan.todo:
        runner.trajectory(run)
    return runner.result


@dataclass
class _Runner:
    plan: Plan
    ledger: Ledger
    finisher: Finisher
    listen: Listen
    retrain: bool
    result: Result = field(default_factory=Result)

    def base(self, cell: CellPlan) -> None:
        with self._collected([cell], attempt=1, log=None):
            self._note(cell, self.finisher.base(cell))

    def trajectory(self, run: RunPlan) -> None:
        todo = [cell for cell in run.cells if not cell.is_done]
        attempt = self.ledger.begin(run.trajectory.id, self.finisher.owner)
        if attempt is None:
            self._skip(str(run.trajectory.cells[0].coordinates))
            return
        with attempt, self._collected(todo, attempt.number, attempt.folder):
            trained = self._find(run, todo)
            if trained is None:
                self.listen(Began(run.trajectory, attempt.number))
                trained = train(run, self.ledger, attempt, lambda event: self.listen(Progressed(run.trajectory, event)))
            for cell in todo:
                with self._collected([cell], attempt.number, attempt.folder):
                    self._note(cell, self.finisher.trained(cell, run, trained))
            self._retain(run, trained)

    def _find(self, run: RunPlan, todo: list[CellPlan]) -> Trained | None:
        trained = find_trained(self.ledger, run)
        gone = [cell for cell in todo if find_snapshot(self.ledger, run.trajectory.id, cell.cell.epoch) is None]
        never_scored = any(cell.status is Status.WAITING for cell in gone)
        if (
            trained
            and gone
            and (self.retrain or never_scored)
            and not all(trained.diverged(c.cell.epoch) for c in gone)
        ):
            return None
        return trained

    def _retain(self, run: RunPlan, trained: Trained) -> None:
        """Remove the snapshots that the retention policy does not keep, once their cells are complete."""
        policy = self.plan.sweep.file.storage.keep_snapshots
        keep = policy.full if run.trajectory.recipe.setting.method == "full" else policy.lora
        for cell in run.cells:
            record = self.ledger.read_record(cell.cell.id)
            last = cell.cell.epoch == run.trajectory.epochs
            if keep == "all" or (keep == "last" and last) or record is None:
                continue
            if record.status in (Status.COMPLETE, Status.DIVERGED):
                remove_snapshot(self.ledger, run, cell.cell.epoch)

    def _note(self, cell: CellPlan, record: Record | None) -> None:
        if record is None:
            self._skip(str(cell.cell.coordinates))
            return
        self.result.records.append(record)
        self.listen(Recorded(cell.cell, record))

    def _skip(self, what: str) -> None:
        self.result.skipped += 1
        self.listen(Skipped(what))

    @contextlib.contextmanager
    def _collected(self, cells: list[CellPlan], attempt: int, log: Path | None) -> Iterator[None]:
        """Turn what goes wrong inside into FAILED records, the traceback into a file of the attempt."""
        try:
            yield
        except LeaseLost as error:
            self._skip(str(error))
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not end the other trajectories
            text = redact("".join(traceback.format_exception(error)))
            if log is not None and log.is_dir():
                (log / "traceback.txt").write_text(text)
            for cell in cells:
                self._note(cell, self.finisher.failed(cell, attempt, f"{type(error).__name__}: {error}"))
