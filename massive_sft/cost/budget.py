"""What of a sweep a budget pays for: base rows, then pairs of model and mixture in a seeded balanced order.

What a search decided comes last, in its order: a later decision rests on what came of the earlier ones.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.cost.duration import Quantity
from massive_sft.cost.estimate import Estimator
from massive_sft.cost.lack import told
from massive_sft.planning.plan import CellPlan, Plan, RunPlan

SEED = 0


@dataclass(frozen=True)
class BudgetedPlan:
    """A plan and what a budget takes of it.

    Attributes:
        plan: what the budget pays for, whatever of it is done already.
        hours: of the budget; GPU-hours, or hours of this machine where no GPU is used.
        taken: hours of what is in the plan.
        left_out: each pair that is left out, ``model × mixture (block A): so many runs``, and base rows.
        runs_left_out: trainings in them.
    """

    plan: Plan
    hours: float
    taken: Quantity
    left_out: tuple[str, ...]
    runs_left_out: int


@dataclass(frozen=True)
class _Pair:
    origin: str  # such as ``block A`` or ``search s``
    model: str
    data: str
    runs: tuple[RunPlan, ...]

    def __str__(self) -> str:
        count = f"{len(self.runs)} run{'s' if len(self.runs) > 1 else ''}"
        return f"{self.model} × {self.data} ({self.origin}): {count}"


def balanced_order(models: Sequence[str], mixtures: Sequence[str], seed: int) -> Iterator[tuple[str, str]]:
    """Yield every pair once so that, wherever one stops, models have equally many pairs or one more, and mixtures too.

    A cyclic incomplete block design: both lists, shuffled, are walked around side by side; after every least common
    multiple of their lengths, where all counts are equal, one is turned by one place, which leads to new pairs.
    """
    generator = random.Random(seed)
    rows, columns = sorted(models), sorted(mixtures)
    generator.shuffle(rows)
    generator.shuffle(columns)
    if not rows or not columns:
        return
    turn = math.lcm(len(rows), len(columns))
    for place in range(len(rows) * len(columns)):
        yield rows[place % len(rows)], columns[(place + place // turn) % len(columns)]


def fit_to_budget(plan: Plan, hours: float, seed: int = SEED) -> BudgetedPlan:
    """Return what of a plan a budget of so many GPU-hours pays for.

    It counts the sweep as a whole, done or not, so that a rerun takes the same. Base rows come first; then the blocks
    in the file's order, and in each the pairs of model and mixture in ``balanced_order``, a pair with all its settings,
    schedules and seeds, so that what is compared stays together; then what the searches decided, one training after
    another. The first that is too much ends it.

    Raises:
        InvalidInput: when something cannot be estimated; then what fits is not known.
    """
    costs = _Costs(plan)
    base = [(cell, costs.base(cell)) for cell in plan.base]
    pairs = [(pair, costs.pair(pair)) for pair in _pairs(plan, seed)]
    if costs.estimator.lacks:
        place = plan.sweep.place("budget.gpu_hours")
        rules = (f"cannot be kept without an estimate: {why}" for why in told(costs.estimator.lacks))
        raise InvalidInput(Problem(place, rule, hours) for rule in rules)
    taken, full = Quantity(0.0, True), False
    rows: list[CellPlan] = []
    runs: list[RunPlan] = []
    left: list[str] = []
    for cell, figure in base:
        full = full or taken.value + figure.value > hours
        if full:
            left.append(str(cell.cell.coordinates))
        else:
            rows.append(cell)
            taken += figure
    left_runs = 0
    for pair, figure in pairs:
        full = full or taken.value + figure.value > hours
        if full:
            left.append(str(pair))
            left_runs += len(pair.runs)
        else:
            runs += pair.runs
            taken += figure
    chosen = {run.trajectory.id for run in runs}
    kept = tuple(run for run in plan.runs if run.trajectory.id in chosen)
    return BudgetedPlan(replace(plan, runs=kept, base=tuple(rows)), hours, taken, tuple(left), left_runs)


def _pairs(plan: Plan, seed: int) -> Iterator[_Pair]:
    grids: dict[str, dict[tuple[str, str], list[RunPlan]]] = {block.name: {} for block in plan.sweep.file.blocks}
    decided: dict[str, list[_Pair]] = {search.name: [] for search in plan.sweep.file.search}
    for run in plan.runs:
        recipe, origin = run.trajectory.recipe, run.trajectory.cells[0].blocks[0]
        named = recipe.model_name, recipe.mixture.name
        if origin in decided:
            decided[origin].append(_Pair(f"search {origin}", *named, (run,)))
        else:
            grids[origin].setdefault(named, []).append(run)
    for block, grid in grids.items():
        models, mixtures = {model for model, _ in grid}, {data for _, data in grid}
        for model, data in balanced_order(sorted(models), sorted(mixtures), seed):
            if (model, data) in grid:
                yield _Pair(f"block {block}", model, data, tuple(grid[(model, data)]))
    for pairs in decided.values():
        yield from pairs


class _Costs:
    """Hours of parts of a plan as if nothing of it were done."""

    def __init__(self, plan: Plan):
        self.estimator = Estimator(plan, whole=True)
        inputs = self.estimator.inputs
        self.gpus = inputs.scoring_gpus if inputs.uses_gpus else 1
        self.uses_gpus = inputs.uses_gpus

    def base(self, cell: CellPlan) -> Quantity:
        return self.estimator.cell(cell, None, cell.requirements).times(self.gpus / 3600)

    def pair(self, pair: _Pair) -> Quantity:
        total = Quantity(0.0, True)
        for run in pair.runs:
            seconds = self.estimator.training(run)
            if seconds is not None:
                total += seconds.times((run.layout.gpus if self.uses_gpus else 1) / 3600)
            for cell in run.cells:
                total += self.estimator.cell(cell, run, cell.requirements).times(self.gpus / 3600)
        return total
