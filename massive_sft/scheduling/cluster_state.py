"""What a decision on lanes and scorers rests on, and what it says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from massive_sft.scheduling.nodes import Node, Shape

START_S = 60.0  # of a lane or a scorer: processes, imports, models
CPU_START_S = 15.0  # the same without a GPU, whose libraries take most of it


@dataclass(frozen=True)
class Lane:
    """A lane that is held.

    Attributes:
        nodes: of its workers, one each.
        busy: whether it has an order.
        up_s: since when it is there.
        idle_s: since when it asks for an order; 0 when it has one, or does not ask yet.
        left_s: estimated until its order ends; 0 when it has none.
        leaving: whether it ends after its order.
        waits_s: since when its workers have no place, or start in it; 0 once they are up.
    """

    name: str
    shape: Shape
    nodes: tuple[str, ...]
    busy: bool
    up_s: float
    idle_s: float
    left_s: float
    leaving: bool
    waits_s: float = 0.0


@dataclass(frozen=True)
class Group:
    """Scorers of one node that start and end together.

    Attributes:
        size, busy: how many there are, and how many of them have a cell.
        left_s: estimated until the last of their cells is scored.
        leaving: whether they take no more cells.
        waits_s: since when none of them is up; 0 once one is.
    """

    name: str
    node: str
    size: int
    busy: int
    left_s: float
    leaving: bool
    waits_s: float = 0.0


@dataclass(frozen=True)
class Orders:
    """Trainings of one shape that no lane has.

    Attributes:
        queued, expected: of trials that ask for a lane, and of those that have not begun.
        seconds: estimated of one.
        scoring_s: estimated of its cells, all together.
        unfit: nodes where its lanes cannot start.
    """

    queued: int
    expected: int
    seconds: float
    scoring_s: float = 0.0
    unfit: frozenset[str] = frozenset()

    @property
    def left(self) -> int:
        return self.queued + self.expected


@dataclass(frozen=True)
class Cells:
    """What waits for a scorer.

    Attributes:
        waiting: cells that no scorer has.
        seconds: estimated of all of them.
        size_bytes: of their snapshots.
        more: whether others will come.
        unfit: nodes where scorers cannot start.
    """

    waiting: int
    seconds: float
    size_bytes: float
    more: bool
    unfit: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Situation:
    """All that a decision rests on, at one moment.

    Attributes:
        grows: whether orders may come that nobody knows of yet, as from a search.
    """

    elapsed_s: float
    nodes: tuple[Node, ...]
    lanes: tuple[Lane, ...]
    groups: tuple[Group, ...]
    orders: Mapping[Shape, Orders]
    cells: Cells
    grows: bool = False


@dataclass
class Decision:
    """What to do now.

    Attributes:
        start_lanes: shapes and the node of each worker.
        end_lanes, end_groups: names of those that take nothing more.
        start_groups: nodes and the number of scorers.
        hold_orders: whether lanes get no order for now.
        trials: how many at a time: one more than lanes, so that no lane waits for the next order.
        lacking: lanes, by shape, and scorers, by theirs, that have work and no room.
    """

    start_lanes: list[tuple[Shape, tuple[str, ...]]] = field(default_factory=list)
    end_lanes: list[str] = field(default_factory=list)
    start_groups: list[tuple[str, int]] = field(default_factory=list)
    end_groups: list[str] = field(default_factory=list)
    hold_orders: bool = False
    trials: int = 1
    lacking: dict[Shape, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ScoringRules:
    """How cells are scored.

    Attributes:
        scorer: the shape of one.
        most: scorers at a time; None for as many as have room.
        max_waiting_bytes: of snapshots that wait.
        share: of each node's CPUs that scorers have, the rest being the lanes', where nobody has a GPU.
    """

    scorer: Shape
    most: int | None
    max_waiting_bytes: float
    share: float = 0.5

    @property
    def apart(self) -> bool:
        """Whether lanes and scorers have a part of each node each, and so do not wait for one another."""
        return not self.scorer.gpus


def size_of(shape: Shape) -> float:
    """Return the GPUs of a shape, or the CPUs of one without."""
    return shape.workers * (shape.gpus or shape.cpus)


def start_s(shape: Shape) -> float:
    """Return the seconds that a lane or a scorer of a shape takes to start."""
    return START_S if shape.gpus else CPU_START_S
