"""``--budget-gpu-hours``: the part of a plan that a budget pays for."""

from __future__ import annotations

import math
from typing import Annotated

import typer

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.cost.budget import BudgetedPlan, fit_to_budget
from massive_sft.planning.plan import Plan

BudgetHours = Annotated[
    float | None,
    typer.Option(
        "--budget-gpu-hours",
        min=0.0,
        help="Only what so many GPU-hours pay for (hours of this machine where no GPU is used): base rows, then a "
        "balanced part of models × mixtures.",
    ),
]


def apply_budget(plan: Plan, hours: float | None) -> BudgetedPlan | None:
    """Return what a budget pays for, by the command line or else by the sweep file; None without a budget.

    Raises:
        InvalidInput: the budget is no finite number, or cannot be kept.
    """
    hours = plan.sweep.file.budget.gpu_hours if hours is None else hours
    if hours is not None and not math.isfinite(hours):
        raise InvalidInput(Problem("--budget-gpu-hours", "must be a finite number", hours))
    return None if hours is None else fit_to_budget(plan, hours)
