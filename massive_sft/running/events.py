"""Events of a run: of its trainings, and of cells that have a record or are left to others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from massive_sft.ledger.record import BenchmarkScores, Record
from massive_sft.ledger.scores_so_far import PartScores
from massive_sft.planning.plan import CellPlan, Plan
from massive_sft.sweep.cell import Cell
from massive_sft.sweep.trajectory import Trajectory
from massive_sft.training.events import Event


@dataclass(frozen=True)
class TrainingStarted:
    """A trajectory's training is in the hands of its workers, at this attempt."""

    trajectory: Trajectory
    attempt: int


@dataclass(frozen=True)
class TrainingProgressed:
    """A trajectory's training took a step or wrote a snapshot."""

    trajectory: Trajectory
    event: Event


@dataclass(frozen=True)
class TrainingEnded:
    """A trajectory's training is over: published here or found so, or failed. One that ended with its run is not."""

    trajectory: Trajectory


@dataclass(frozen=True)
class ScoringStarted:
    """A cell is being scored and measured."""

    cell: Cell


@dataclass(frozen=True)
class BenchmarkScored:
    """One benchmark of a cell that is being scored is done; its record is still to come.

    Attributes:
        resumed: whether answers of it were there before.
    """

    cell: Cell
    scores: BenchmarkScores
    resumed: bool = False


@dataclass(frozen=True)
class BenchmarkProgressed:
    """A part of a benchmark's questions is answered for a cell that is being scored."""

    cell: Cell
    part: PartScores


@dataclass(frozen=True)
class AnswersWritten:
    """A cell has all that it needs a model for: its record is PARTIAL until verdicts on its answers are asked.

    Attributes:
        weights: the id of the weights that wrote them.
    """

    plan: CellPlan
    weights: str


@dataclass(frozen=True)
class CellRecorded:
    """A cell has a new record."""

    cell: Cell
    record: Record


@dataclass(frozen=True)
class CellSkipped:
    """Somebody else works on this.

    Attributes:
        what: for people.
        cells: ids of the cells that this run leaves to them for now.
    """

    what: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Decided:
    """A search decided; other cells than those of the run's plan are to come.

    Attributes:
        search: its name.
        entries: the decisions, as their log has them.
        lines: they, for people.
        plan: of what they ask for.
    """

    search: str
    entries: tuple[Mapping[str, Any], ...]
    lines: tuple[str, ...]
    plan: Plan


RunEvent = (
    TrainingStarted
    | TrainingProgressed
    | TrainingEnded
    | ScoringStarted
    | BenchmarkProgressed
    | BenchmarkScored
    | AnswersWritten
    | CellRecorded
    | CellSkipped
    | Decided
)
Listen = Callable[[RunEvent], None]


def ignore(event: RunEvent) -> None:
    """Take no note of it."""


def skipped(what: str, cells: Iterable[CellPlan]) -> CellSkipped:
    """Return the event that these cells are left to somebody else."""
    return CellSkipped(what, tuple(cell.cell.id for cell in cells))
