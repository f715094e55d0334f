"""A cell's loss curve: the steps of its training up to its epoch, with the times at which they were taken."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from massive_sft.core.errors import Corrupt
from massive_sft.core.fingerprint import fingerprint
from massive_sft.ledger.loss_curve import LOSSES, StepDone, curve_file, read_steps
from massive_sft.ledger.manifest import verify_folder
from massive_sft.ledger.record import Record
from massive_sft.ledger.store import Ledger
from massive_sft.tracking.run_fields import Point, to_milliseconds

MAX_POINTS = 1000
KEYS = ("loss", "lr", "grad_norm")


@dataclass(frozen=True)
class RunCurve:
    """What is shown of a loss curve.

    Attributes:
        id: changes when the curve does.
        points: ``training/loss`` (nats per token), ``training/lr``, ``training/grad_norm`` by optimizer step.
        note: how many of the steps are shown, for people.
    """

    id: str
    points: tuple[Point, ...]
    note: str


def loss_curve(ledger: Ledger, record: Record) -> RunCurve | None:
    """Return the curve of a cell's training; None for a base model, or where no sound one is there.

    Of more than ``MAX_POINTS`` steps evenly spaced ones are shown, the first and the last among them. Numbers that
    are not finite cannot be drawn; the note counts them. The times are those of the steps, counted back from when the
    record was begun, for that was soon after the last of them.
    """
    epoch = int(record.coordinates.get("epoch") or 0)
    path = _file(ledger, record, epoch) if epoch else None
    if path is None:
        return None
    steps = [step for step in read_steps(path) if step.epoch <= epoch]
    times = _times(steps, to_milliseconds(record.created))
    shown = _evenly(len(steps))
    points = [
        Point(f"training/{key}", float(getattr(steps[index], key)), times[index], steps[index].step)
        for index in shown
        for key in KEYS
    ]
    finite = tuple(point for point in points if math.isfinite(point.value))
    note = f"{len(shown)} of {len(steps)} steps"
    if len(finite) < len(points):
        note += f", {len(points) - len(finite)} numbers not finite"
    # Neither how far the run went on nor how long its steps took makes another curve.
    drawn = [[step.step, *(_as_json(getattr(step, key)) for key in KEYS)] for step in steps]
    return RunCurve(fingerprint(drawn), finite, note)


def _as_json(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _file(ledger: Ledger, record: Record, epoch: int) -> Path | None:
    """Return the curve that a record rests on, else the one that was published with its epoch's snapshot, else that of
    the finished training that went on longest.

    One that differs from its manifest is reported and does not count.
    """
    folders = ledger.training_dirs(record.trajectory) if record.trajectory else []
    there = [path for folder in folders if (path := folder / LOSSES).is_file()]
    finished = [path for path in there if path.parent.name.startswith("attempt-")]
    longest = sorted(finished, key=lambda path: path.stat().st_size, reverse=True)
    own = [path for path in there if str(path.relative_to(ledger.root)) == curve_file(record)]
    for path in [*own, *(path for path in there if path.parent.name == f"epoch-{epoch}"), *longest]:
        try:
            verify_folder(path.parent)
        except Corrupt as error:
            ledger.report_corrupt(path.parent, str(error))
        else:
            return path
    return None


def _times(steps: list[StepDone], end: int) -> list[int]:
    """Return when each step ended, in milliseconds, when the last one ended at ``end``."""
    times, now = [], float(end)
    for step in reversed(steps):
        times.append(round(now))
        now -= 1000 * step.seconds
    return times[::-1]


def _evenly(count: int) -> list[int]:
    if count <= MAX_POINTS:
        return list(range(count))
    return [round(index * (count - 1) / (MAX_POINTS - 1)) for index in range(MAX_POINTS)]
