"""What a sweep's author should know of a plan and that stops no run."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from massive_sft.core.errors import Problem
from massive_sft.sweep.load import Sweep

if TYPE_CHECKING:
    from massive_sft.planning.plan import RunPlan


def find_long_warmups(sweep: Sweep, runs: Iterable[RunPlan]) -> Iterable[Problem]:
    """Warn of runs that end before their warm-up does."""
    problems: dict[str, Problem] = {}
    for run in runs:
        setting, name = run.trajectory.recipe.setting, run.trajectory.recipe.setting_name
        steps = None if run.steps_per_epoch is None else run.steps_per_epoch * run.trajectory.epochs
        if steps is not None and setting.warmup_steps >= steps:
            place = sweep.setting_place(name, "warmup_steps")
            problems.setdefault(
                name, Problem(place, f"is not over when a training run of {steps} steps ends", setting.warmup_steps)
            )
    return problems.values()


def find_scaled_weights(sweep: Sweep) -> Iterable[Problem]:
    """Tell of weights that look like fractions of one and do not add up to it; whole numbers are a ratio."""
    for name, entry in sweep.file.mixtures.entries.items():
        weights = entry.weights or {}
        total = math.fsum(weights.values())
        if math.isclose(total, 1, abs_tol=1e-3) or all(weight.is_integer() for weight in weights.values()):
            continue
        shares = ", ".join(f"{dataset} {weight / total:.1%}" for dataset, weight in weights.items())
        place = sweep.place(f"mixtures.{name}.weights")
        yield Problem(place, f"add up to {total:g}, not 1: taken in proportion, {shares}")
