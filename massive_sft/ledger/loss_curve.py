"""The loss curve of a training, ``losses.jsonl``: a line an optimizer step. Imports nothing heavy."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from massive_sft.ledger.record import Record

LOSSES = "losses.jsonl"


@dataclass(frozen=True)
class StepDone:
    """One optimizer step, also a line of ``losses.jsonl``.

    Attributes:
        step, epoch: counted from 1.
        loss: nats per trainable token, mean over the batch, before the update. NaN or infinity when not finite.
        lr: the learning rate of the update.
        grad_norm: of the whole gradient, before clipping.
        tokens, trainable_tokens: of the batch, over all ranks, without padding.
        seconds: wall-clock time of the step.
    """

    step: int
    epoch: int
    loss: float
    lr: float
    grad_norm: float
    tokens: int
    trainable_tokens: int
    seconds: float


def to_line(done: StepDone) -> str:
    """Return a step as a line. JSON has no NaN, so a number that is not finite is written as text."""
    values = {name: value if math.isfinite(value) else str(value) for name, value in asdict(done).items()}
    return json.dumps(values, allow_nan=False) + "\n"


def read_steps(path: Path) -> Iterator[StepDone]:
    """Yield the steps of a loss curve up to the first line that is not whole, where its writer was killed.

    Raises:
        OSError: it cannot be read.
        ValueError: a whole line of it is no step.
    """
    for number, line in enumerate(path.read_text().splitlines(keepends=True), 1):
        if not line.endswith("\n"):
            return
        yield _step_of(line, f"{path}:{number}")


def _step_of(line: str, place: str) -> StepDone:
    try:
        values: dict[str, Any] = json.loads(line)
        values |= {name: float(value) for name, value in values.items() if isinstance(value, str)}  # nan, inf
        return StepDone(**values)
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{place}: is no optimizer step ({error})") from error


def read_end_losses(path: Path, steps: int) -> tuple[float, float]:
    """Return the loss at the first step of a curve and at step ``steps``, without reading what lies between.

    Raises:
        OSError: it cannot be read.
        ValueError: it has no such steps.
    """
    lines = path.read_text().splitlines()
    if not 1 <= steps <= len(lines):
        raise ValueError(f"{path}: has no step {steps}")
    first, last = (_step_of(lines[number - 1], f"{path}:{number}").loss for number in (1, steps))
    return first, last


def curve_file(record: Record) -> str | None:
    """Return the loss curve that a record rests on, one of ``record.files``; None where there is none."""
    return next((name for name in record.files if name.endswith(f"/{LOSSES}")), None)
