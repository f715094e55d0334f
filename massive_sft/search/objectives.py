"""What outcomes are worth to a search: objectives, better when larger, and by how much constraints are broken."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from massive_sft.search.outcomes import Outcome, objective_names
from massive_sft.sweep.schema import Mean, Search

LARGEST = 1e100  # that a value counts as, of a perplexity that is all but infinite: squares of it are still numbers
WORST_SD = 1.0  # standard deviations below the worst that a diverged training counts as


def count_objectives(search: Search) -> int:
    """Return how many objectives a search has."""
    written = search.objective.maximize or search.objective.minimize
    return 1 if isinstance(written, Mean) else len(written or ())


def objective_values(search: Search, complete: Sequence[Outcome]) -> list[tuple[float, ...]]:
    """Return the objectives of outcomes, better when larger."""
    objective = search.objective
    written = objective.maximize or objective.minimize
    sign = 1.0 if objective.maximize is not None else -1.0
    names = objective_names(search)
    columns = {name: [sign * max(-LARGEST, min(LARGEST, one.values[name])) for one in complete] for name in names}
    if isinstance(written, Mean):
        if written.scale == "z":
            columns = {name: _standardized(column) for name, column in columns.items()}
        return [(math.fsum(row) / len(names),) for row in zip(*columns.values(), strict=True)]
    return list(zip(*columns.values(), strict=True))


def _standardized(column: Sequence[float]) -> list[float]:
    """Return a column around its mean, in units of its spread; as it is around its mean where it has none."""
    if not column:
        return []
    mean, spread_of = statistics.fmean(column), statistics.pstdev(column)
    return [(value - mean) / (spread_of or 1.0) for value in column]


def worse_than_all(values: Sequence[tuple[float, ...]], objectives: int) -> tuple[float, ...]:
    """Return what a diverged training counts as: the worst of each objective less one standard deviation."""
    if not values:
        return (-WORST_SD,) * objectives
    columns = list(zip(*values, strict=True))
    return tuple(min(column) - WORST_SD * (statistics.pstdev(column) or 1.0) for column in columns)


def names_against_base(search: Search) -> list[str]:
    """Return what constraints compare with the base model's."""
    bounds = search.constraints.items()
    return [name for name, bound in bounds if any(isinstance(end, str) for end in (bound.at_least, bound.at_most))]


def limit_names(search: Search) -> list[str]:
    """Return the names of a search's constraints."""
    return [
        f"{name} {side}"
        for name, bound in search.constraints.items()
        for side in ("at_least", "at_most")
        if getattr(bound, side) is not None
    ]


def violations(search: Search, outcome: Outcome, base: Outcome | None) -> dict[str, float]:
    """Return by how much an outcome breaks each constraint; none above 0 where it keeps it."""
    found: dict[str, float] = {}
    for limit in limit_names(search):
        name, _, side = limit.rpartition(" ")
        written = getattr(search.constraints[name], side)
        if isinstance(written, str):
            if base is None or name not in base.values:
                found[limit] = 0.0  # nothing is known to be broken
                continue
            bound = base.values[name] + float(written.removeprefix("base").replace(" ", "") or 0.0)
        else:
            bound = float(written)
        over = outcome.values[name] - bound
        found[limit] = -over if side == "at_least" else over
    return found
