"""Modes: how a run divides the cluster between lanes and scorers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.cost.disk import parse_size
from massive_sft.planning.plan import Plan, RunPlan
from massive_sft.sweep import weight_files
from massive_sft.sweep.spec import Layout

UNKNOWN_WEIGHTS_BYTES = 20 * 10**9  # bytes assumed of a base model that is not on the disk yet: 8B parameters in bf16
ADAPTER_SHARE = 0.01  # of the base's bytes


@dataclass(frozen=True)
class Scorers:
    """A pool of scoring actors and what each holds."""

    count: int
    cpus: float
    gpus: float


@dataclass(frozen=True)
class Mode:
    """The division of a cluster.

    Attributes:
        name: ``split`` (some GPUs train while the others score), ``alternate`` (all train, then all score), ``share``
            (half of the CPUs each), or ``score`` (nothing is left to train).
        lane_capacity: CPUs and GPUs that lanes may hold.
        scorers: the pool that scores.
        trials: Tune trials at a time: one more than lanes, so that no lane waits for the next order.
        at_once: runs trained before they are scored, in ``alternate``.
    """

    name: str
    lane_capacity: Mapping[str, float]
    scorers: Scorers
    trials: int
    at_once: int

    @property
    def alternates(self) -> bool:
        return self.name == "alternate"

    def lane_cpus(self, layout: Layout) -> float:
        """Return the CPUs of a lane's worker that has no GPU: one, or its part of what lanes may hold."""
        return min(1.0, self.lane_capacity["CPU"] / layout.workers)

    def rounds(self, runs: Sequence[RunPlan]) -> Iterator[tuple[RunPlan, ...]]:
        """Yield the runs in the portions that are trained, then scored; at least one, which may be empty."""
        size = self.at_once if self.alternates else max(1, len(runs))
        yield from (tuple(runs[start : start + size]) for start in range(0, max(1, len(runs)), size))

    def __str__(self) -> str:
        each = f"{self.scorers.gpus:g} GPU" if self.scorers.gpus else f"{self.scorers.cpus:g} CPU"
        scorers = f"{self.scorers.count} scorer{'s' * (self.scorers.count > 1)} with {each} each"
        if self.name == "score":
            return f"mode score: nothing is left to train; {scorers}"
        held = " and ".join(f"{n:g} {name}" for name, n in self.lane_capacity.items() if n)
        then = f"{self.at_once} runs, then score them" if self.alternates else "score meanwhile"
        return f"mode {self.name}: lanes train on {held}; {scorers}; train {then}"


def choose_mode(plan: Plan, runs: Sequence[RunPlan], cluster: Mapping[str, float]) -> Mode:
    """Return how to divide a cluster for a plan.

    Args:
        plan: what is left to do.
        runs: those of its runs that are to be trained; the cells of the others are scored only.
        cluster: how many ``CPU`` and ``GPU`` it has.

    Raises:
        InvalidInput: when a run's workers cannot be on the cluster together, all such runs at once.
    """
    cpus, gpus = cluster.get("CPU", 0.0), cluster.get("GPU", 0.0)
    layouts = {run.layout for run in runs}
    largest = max((layout.gpus for layout in layouts), default=0)
    problems = [_too_large(plan, layout, cpus, gpus) for layout in layouts]
    if any(problems):
        raise InvalidInput([problem for problem in problems if problem])
    if not runs:
        return Mode("score", {}, _scorers_alone(plan, cpus, gpus), 1, 1)
    if not largest:
        half = cpus / 2
        scorers = Scorers(max(1, math.floor(half)), min(1.0, half), 0.0)
        return _mode("share", {"CPU": half, "GPU": 0.0}, scorers, layouts, plan)
    if gpus >= 2 * largest or gpus - largest >= 1:
        held = max(largest, math.floor(gpus / 2))
        return _mode("split", {"CPU": cpus, "GPU": held}, Scorers(int(gpus - held), 1.0, 1.0), layouts, plan)
    return _mode("alternate", {"CPU": cpus, "GPU": gpus}, Scorers(max(1, int(gpus)), 1.0, 1.0), layouts, plan)


def _scorers_alone(plan: Plan, cpus: float, gpus: float) -> Scorers:
    """Return scorers on all that there is, no more than there are cells."""
    cells = sum(not cell.is_done for cell in plan.cells)
    if plan.uses_gpus and gpus >= 1:
        return Scorers(max(1, min(cells, int(gpus))), 1.0, 1.0)
    return Scorers(max(1, min(cells, math.floor(cpus))), min(1.0, cpus), 0.0)


def _too_large(plan: Plan, layout: Layout, cpus: float, gpus: float) -> Problem | None:
    place = f"{plan.sweep.path}: resources"
    if layout.gpus > gpus:
        return Problem(place, f"asks for more GPUs than the {gpus:g} that the cluster has", layout.gpus)
    if layout.workers > cpus:
        return Problem(place, f"asks for more workers than the {cpus:g} CPUs that the cluster has", layout.workers)
    return None


def _mode(name: str, capacity: dict[str, float], scorers: Scorers, layouts: set[Layout], plan: Plan) -> Mode:
    lanes = [
        capacity["GPU"] // layout.gpus if layout.gpus else max(1, capacity["CPU"] // layout.workers)
        for layout in layouts
    ]
    return Mode(name, capacity, scorers, 1 + int(max(lanes, default=1)), _at_once(plan))


def _at_once(plan: Plan) -> int:
    """Return how many runs' snapshots may wait to be scored, by ``storage.max_waiting``."""
    allowed = parse_size(plan.sweep.file.storage.max_waiting)
    largest = max((_snapshot_bytes(run) for run in plan.todo), default=1)
    return max(1, int(allowed // largest))


def _snapshot_bytes(run: RunPlan) -> float:
    path = run.trajectory.recipe.model.path
    weights = sum(file.stat().st_size for file in weight_files.find(Path(path))) if path else UNKNOWN_WEIGHTS_BYTES
    share = 1.0 if run.trajectory.recipe.setting.method == "full" else ADAPTER_SHARE
    return max(1.0, share * weights * len(run.cells))
