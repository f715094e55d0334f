"""The loss curve on the disk, ``losses.jsonl``: a line a step. Imports nothing heavy."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from massive_sft.training.events import StepDone

LOSSES = "losses.jsonl"


def to_line(done: StepDone) -> str:
    """Return a step as a line. JSON has no NaN, so a number that is not finite is written as text."""
    values = {name: value if math.isfinite(value) else str(value) for name, value in asdict(done).items()}
    return json.dumps(values, allow_nan=False) + "\n"


def read_steps(path: Path) -> Iterator[StepDone]:
    """Yield the steps of a loss curve up to the first line that is not whole, where its writer was killed."""
    for line in path.read_text().splitlines(keepends=True):
        if not line.endswith("\n"):
            return
        values: dict[str, Any] = json.loads(line)
        values |= {name: float(value) for name, value in values.items() if isinstance(value, str)}  # nan, inf
        yield StepDone(**values)
