"""The table of measured costs: speeds and memory peaks by shape, method, layout and device, made of records.

It lies under the storage root as ``cache/costs.json``, is brought up to date at the end of a run, and may be removed
at any time: the next run makes it anew out of the records it sees.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from massive_sft.core.files import json_bytes
from massive_sft.ledger.storage import Storage

NAME = "cache/costs.json"
SCHEMA = 3
# How far the cost of a token may plausibly lie from the mean, as a fraction of it: what keeps a line through few or
# noisy trainings near proportionality.
RELATIVE_SPREAD = 0.25
RELATIVE_NOISE = (
    0.1  # of a training's mean step, at least: the same training takes so much longer or shorter another time
)


@dataclass
class TrainingCosts:
    """Sums over the measured trainings of one kind, so that more of them can be added.

    Attributes:
        trainings: how many.
        steps, tokens, seconds: of all steps but each training's first; tokens with their padding.
        tt, ts, ss: squares and products of each training's mean step, times its steps.
        operations: of these steps, by ``duration.training_operations``.
        starts, start: how many, and the seconds before the first step and within it.
        snapshots, snapshot: how many, and the seconds beside the steps.
        peak: the most bytes on one GPU or in one process; 0 where not measured.
        peak_formula: what the formula says of that run.
    """

    trainings: int = 0
    steps: int = 0
    tokens: float = 0.0
    seconds: float = 0.0
    tt: float = 0.0
    ts: float = 0.0
    ss: float = 0.0
    operations: float = 0.0
    starts: int = 0
    start: float = 0.0
    snapshots: int = 0
    snapshot: float = 0.0
    peak: int = 0
    peak_formula: int = 0

    def add(self, steps: Sequence[tuple[float, float]], snapshots: int, whole: float, wall: float | None) -> None:
        """Add a training.

        Args:
            steps: tokens and seconds of each, at least two; the first belongs to the start.
            snapshots: how many were written.
            whole: seconds from the first step to the last snapshot.
            wall: seconds of everything; None for a training that was resumed, whose start says nothing.
        """
        self.trainings += 1
        count, tokens, seconds = len(steps) - 1, sum(step[0] for step in steps[1:]), sum(step[1] for step in steps[1:])
        self.steps += count
        self.tokens += tokens
        self.seconds += seconds
        self.tt += tokens * tokens / count
        self.ts += tokens * seconds / count
        self.ss += seconds * seconds / count
        if wall is not None:
            self.starts += 1
            self.start += wall - whole + steps[0][1]
            self.snapshots += snapshots
            self.snapshot += max(whole - sum(seconds for _, seconds in steps), 0.0)

    def line(self) -> tuple[float, float]:
        """Return seconds per step and per token: least squares through trainings, drawn toward proportionality.

        Through their means and not through single steps: within one training steps are alike, and what they cost
        follows padding and micro-batches rather than their few tokens more or less.
        """
        ratio = self.seconds / self.tokens
        spread_tt = self.tt - self.tokens**2 / self.steps
        if self.trainings < 2 or spread_tt <= 1e-9 * self.tt:
            return 0.0, ratio
        spread_ts = self.ts - self.tokens * self.seconds / self.steps
        slope = spread_ts / spread_tt
        left = (self.ss - self.seconds**2 / self.steps - slope * spread_ts) / max(self.trainings - 2, 1)
        noise = (RELATIVE_NOISE * self.seconds / self.steps) ** 2 * self.steps / self.trainings
        doubt = max(left, noise) / spread_tt
        prior = (RELATIVE_SPREAD * ratio) ** 2
        slope = min(max((slope / doubt + ratio / prior) / (1 / doubt + 1 / prior), 0.0), ratio)
        return (self.seconds - slope * self.tokens) / self.steps, slope

    def seconds_of(self, steps: float, tokens: float, snapshots: int) -> float:
        """Return the seconds of a training of this kind, from its start to its published snapshots."""
        per_step, per_token = self.line()
        start = self.start / self.starts if self.starts else 0.0
        each = self.snapshot / self.snapshots if self.snapshots else 0.0
        return start + per_step * steps + per_token * tokens + each * snapshots


@dataclass
class ScoringCosts:
    """Sums over measured work on cells of one kind.

    Attributes:
        count, seconds: of one benchmark (or of what else was done: ``load``, ``perplexity``, ``other``, ...).
        operations: by ``duration.scoring_operations``; 0 where the benchmark's size is not known.
    """

    count: int = 0
    seconds: float = 0.0
    operations: float = 0.0

    @property
    def mean(self) -> float:
        return self.seconds / self.count


@dataclass
class CostTable:
    """Everything measured under a storage root.

    Attributes:
        training: by ``training_key``.
        scoring: by ``scoring_key``, then by what was done.
        trainings, cells: what the sums are made of: trajectories with their attempt, cells with their record's name.
    """

    training: dict[str, TrainingCosts] = field(default_factory=dict)
    scoring: dict[str, dict[str, ScoringCosts]] = field(default_factory=dict)
    trainings: dict[str, int] = field(default_factory=dict)
    cells: dict[str, str] = field(default_factory=dict)

    def start(self, device: str) -> float | None:
        """Return the mean seconds before a training's first step, of all kinds on a device; None where none ran."""
        measured = [row for key, row in self.training.items() if key.endswith(f"|{device}") and row.starts]
        return sum(row.start for row in measured) / sum(row.starts for row in measured) if measured else None

    def mean(self, device: str, what: str) -> float | None:
        """Return the mean seconds of ``load``, ``other``, ... of all cells on a device; None where none were."""
        kinds = (rows for key, rows in self.scoring.items() if key.endswith(f"|{device}"))
        measured = [rows[what] for rows in kinds if what in rows]
        return sum(row.seconds for row in measured) / sum(row.count for row in measured) if measured else None

    def speed(self, device: str, work: str) -> float | None:
        """Return operations per second and worker of all that was measured on a device; None where nothing was."""
        measured: list[TrainingCosts | ScoringCosts]
        if work == "train":
            measured = [row for key, row in self.training.items() if key.endswith(f"|{device}")]
        else:
            kinds = (rows for key, rows in self.scoring.items() if key.endswith(f"|{device}"))
            measured = [row for rows in kinds for row in rows.values()]
        known = [row for row in measured if row.operations and row.seconds]
        if not known:
            return None
        return sum(row.operations for row in known) / sum(row.seconds for row in known)


def training_key(shape: str, method: str, precision: str, layout: Mapping[str, Any], device: str) -> str:
    """Return what trainings of equal speed and memory have in common."""
    laid = ",".join(f"{name}={layout[name]}" for name in sorted(layout))
    return "|".join((shape, method, precision, laid, device))


def scoring_key(shape: str, method: str, dtype: str, device: str) -> str:
    """Return what models of equal scoring speed have in common; ``method`` is ``none`` for a base model."""
    return "|".join((shape, method, dtype, device))


def read_cost_table(storage: Storage) -> CostTable:
    """Return what was measured under a storage root; an empty table where there is none, or none that can be read."""
    try:
        content = json.loads(storage.get(NAME).data)
        if content["schema"] != SCHEMA:
            return CostTable()
        return CostTable(
            training={key: _row(TrainingCosts, row) for key, row in content["training"].items()},
            scoring={
                key: {what: _row(ScoringCosts, row) for what, row in rows.items()}
                for key, rows in content["scoring"].items()
            },
            trainings=dict(content["trainings"]),
            cells=dict(content["cells"]),
        )
    except (OSError, KeyError, TypeError, AttributeError, ValueError):
        return CostTable()  # it is made anew out of the records


def _row(kind: Any, values: Mapping[str, Any]) -> Any:
    known = {item.name for item in fields(kind)}
    if values.keys() - known or not all(math.isfinite(value) for value in values.values()):
        raise ValueError("another version wrote it")
    return kind(**values)


def write_cost_table(storage: Storage, table: CostTable) -> None:
    """Replace the table under a storage root. Raises OSError."""
    storage.put(NAME, json_bytes({"schema": SCHEMA, **asdict(table)}))
