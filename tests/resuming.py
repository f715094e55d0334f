"""Trainings that are interrupted and go on, for the tests of resuming; two ranks run it under torchrun."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tiny_training import make_samples, make_spec

from massive_sft.core.stop import never_stop
from massive_sft.ledger.attempt import Attempt
from massive_sft.ledger.lease import LeaseWatch
from massive_sft.ledger.storage import Folder, Root
from massive_sft.sweep.spec import TrainingSpec
from massive_sft.training.checkpoints.disk import CheckpointStore
from massive_sft.training.events import CheckpointWritten, Event, StepDone
from massive_sft.training.loop import train_trajectory
from massive_sft.training.summary import TrainingSummary

# Three steps an epoch, snapshots after steps 3 and 9: a checkpoint may lie at the first step, in an epoch, right after
# a snapshot, and at the end of an epoch without one.
SAMPLES, SNAPSHOTS, STEPS = 11, (1, 3), 9
PLACES = (1, 5, 3, 6)
DROPOUT = {"rank": 4, "dropout": 0.3}


@dataclass(frozen=True)
class Case:
    """One way of training, and the step after which it is interrupted."""

    zero: int | str
    precision: str
    method: str
    workers: int
    step: int

    @property
    def name(self) -> str:
        return f"zero{self.zero}-{self.precision}-{self.method}-{self.workers}-at{self.step}"

    def spec(self, base: Path, **layout: Any) -> TrainingSpec:
        return make_spec(
            base,
            SNAPSHOTS,
            schedule="cosine",
            layout={"zero": self.zero, "workers": self.workers, "micro_batch": 2, **layout},
            precision=self.precision,
            method=self.method,
            lora=DROPOUT,
            lr=1e-2,
            optimizer={"weight_decay": 0.1},  # two groups of parameters
        )


CASE = Case(1, "fp32", "lora", 1, 4)


class Crash(BaseException):
    """Stands for whatever ends a training where nothing could be done about it."""


@dataclass
class Told:
    """Keeps what a training tells, and can end it there.

    Attributes:
        at: called with each event; what it raises ends the training.
    """

    at: Callable[[Event], None] = lambda event: None
    events: list[Event] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        self.at(event)

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def losses(self) -> list[float]:
        return [event.loss for event in self.of(StepDone)]


def begin(home: Path | Root) -> Attempt:
    """Take a trajectory for another attempt."""
    if isinstance(home, Path):
        home.mkdir(parents=True, exist_ok=True)
        home = Folder(home)
    attempt = Attempt.begin("home", home, "test", LeaseWatch())
    assert attempt is not None
    return attempt


def go(
    spec: TrainingSpec,
    attempt: Attempt,
    told: Told,
    every: float | None = 0.0,
    stop: Callable[[], bool] = never_stop,
    keeps_state: bool = False,
    settled: frozenset[int] = frozenset(),
) -> TrainingSummary:
    """Train under an attempt, by default with a checkpoint after every step."""
    checkpoints = CheckpointStore(attempt.storage, attempt.claim, every, keeps_state, settled)
    return train_trajectory(spec, make_samples(SAMPLES), attempt.folder, told, checkpoints, stop)


def finish(attempt: Attempt, step: int) -> None:
    """Do what the training stage does once a training is done that keeps its state."""
    CheckpointStore(attempt.storage, attempt.claim).keep(step)
    attempt.remove_checkpoint()


def crash_after(step: int, kind: type = CheckpointWritten) -> Told:
    """Return a listener that crashes when it is told of a step's event."""

    def at(event: Event) -> None:
        if isinstance(event, kind) and event.step == step:  # type: ignore[attr-defined]
            raise Crash

    return Told(at)


def kill_at(step: int, kind: type) -> Told:
    """Return a listener that has this process killed by the system."""

    def at(event: Event) -> None:
        if isinstance(event, kind) and event.step == step:  # type: ignore[attr-defined]
            os.kill(os.getpid(), signal.SIGKILL)

    return Told(at)


def interrupted(spec: TrainingSpec, home: Path, step: int) -> Told:
    """Train until one step after the checkpoint of ``step``, and crash there."""
    told = crash_after(step + 1, StepDone)
    with begin(home) as attempt:
        try:
            go(spec, attempt, told)
        except Crash:
            return told
    raise AssertionError("it came to its end")
