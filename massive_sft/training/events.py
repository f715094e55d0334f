"""Events of a training. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from massive_sft.ledger.loss_curve import StepDone


@dataclass(frozen=True)
class Begun:
    """Workers have the training in hand: they load data and model."""


@dataclass(frozen=True)
class SnapshotWritten:
    """The weights at the end of ``epoch`` are complete and verified in ``folder``."""

    epoch: int
    folder: Path


@dataclass(frozen=True)
class SnapshotPublished:
    """The snapshot of ``epoch`` is in the ledger with its outcome: its cell can be scored while training goes on."""

    epoch: int


@dataclass(frozen=True)
class CheckpointWritten:
    """Training can go on from here. ``seconds`` is what it cost, ``bytes`` what lies on the disk for it."""

    step: int
    seconds: float
    bytes: int


@dataclass(frozen=True)
class CheckpointFailed:
    """A checkpoint could not be written; training goes on without it and tries again after the next interval."""

    step: int
    reason: str


@dataclass(frozen=True)
class Resumed:
    """Training goes on after ``step``, from the checkpoint that ``attempt`` wrote, or the state that it kept.

    Attributes:
        notes: why what follows may differ in its last bits from an undisturbed training; empty when it cannot.
        passed_over: why a state that is further cannot be used.
    """

    step: int
    attempt: int
    notes: tuple[str, ...]
    passed_over: tuple[str, ...] = ()


@dataclass(frozen=True)
class StartedOver:
    """There was a checkpoint or a kept state, but it cannot be used, so training begins at its start.

    Attributes:
        steps: the steps of it that are taken again.
    """

    reason: str
    steps: int


Event = (
    Begun
    | StepDone
    | SnapshotWritten
    | SnapshotPublished
    | CheckpointWritten
    | CheckpointFailed
    | Resumed
    | StartedOver
)
