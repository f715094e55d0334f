"""Trajectories: cells that are points on one training run share it.

Two cells are points on one run when they differ only in the snapshot's epoch: the id of a recipe leaves that out,
and holds a horizon only where the schedule depends on it. So a constant schedule's shorter run is always a true
prefix of the longer, a decaying one's only within one horizon.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace

from massive_sft.core.fingerprint import digest, join_canonical
from massive_sft.sweep.cell import Cell, Recipe


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One training run and the cells along it, by ascending epoch."""

    recipe: Recipe
    cells: tuple[Cell, ...]

    @property
    def id(self) -> str:
        return self.recipe.id

    @property
    def snapshots(self) -> tuple[int, ...]:
        """Epochs at which weights are kept, ascending."""
        return tuple(cell.epoch for cell in self.cells)

    @property
    def epochs(self) -> int:
        """Epochs to train: up to the last snapshot, not to the horizon."""
        return self.cells[-1].epoch

    def up_to(self, epoch: int) -> Trajectory:
        """Return the part of it that ends with the snapshot of an epoch."""
        return replace(self, cells=tuple(cell for cell in self.cells if cell.epoch <= epoch))

    @property
    def can_be_extended(self) -> bool:
        """Whether a later epoch may be asked of it: always where the schedule has no horizon, else before its end."""
        return not self.recipe.schedule.has_horizon or self.epochs < self.recipe.horizon


@dataclass(frozen=True)
class Sharing:
    """What sharing saves against one run a cell, and how many runs differ only in a decaying schedule's horizon."""

    cells: int
    runs: int
    cell_epochs: int
    run_epochs: int
    cell_samples: int | None
    run_samples: int | None
    split_by_horizon: int


def make_trajectories(cells: Iterable[Cell]) -> list[Trajectory]:
    """Group cells into training runs, in the order of each run's first cell. Base rows train nothing."""
    grouped: dict[str, list[Cell]] = defaultdict(list)
    for cell in cells:
        if cell.recipe is not None:
            grouped[cell.recipe.id].append(cell)
    return [
        Trajectory(recipe, tuple(sorted(group, key=lambda cell: cell.epoch)))
        for group in grouped.values()
        if (recipe := group[0].recipe) is not None
    ]


def count_sharing(trajectories: Iterable[Trajectory]) -> Sharing:
    """Count what sharing saves. Samples are None when a mixture's size is not known yet."""
    runs = list(trajectories)
    sizes = [run.recipe.mixture.size for run in runs]
    known = None not in sizes
    alike: dict[str, int] = defaultdict(int)
    for run in runs:
        rest = {key: text for key, text in run.recipe.parts.items() if key != "schedule"}
        alike[digest(join_canonical(rest) + run.recipe.schedule.label)] += 1
    return Sharing(
        cells=sum(len(run.cells) for run in runs),
        runs=len(runs),
        cell_epochs=sum(sum(run.snapshots) for run in runs),
        run_epochs=sum(run.epochs for run in runs),
        cell_samples=sum(sum(run.snapshots) * (size or 0) for run, size in zip(runs, sizes, strict=True))
        if known
        else None,
        run_samples=sum(run.epochs * (size or 0) for run, size in zip(runs, sizes, strict=True)) if known else None,
        split_by_horizon=sum(count for count in alike.values() if count > 1),
    )
