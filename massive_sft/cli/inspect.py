"""``inspect``: training samples as the model gets them."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

import typer
from rich.text import Text

from massive_sft.cli.check import warn
from massive_sft.cli.options import File, Overlays, console, load_plan
from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.planning.plan import Plan, RunPlan, require_local_files


def inspect(
    file: File,
    overlay: Overlays = None,
    model: Annotated[str | None, typer.Option(help="Of this model's tokenizer.")] = None,
    mixture: Annotated[str | None, typer.Option(help="Of this mixture.")] = None,
    setting: Annotated[str | None, typer.Option(help="Under this setting.")] = None,
    samples: Annotated[int, typer.Option("-n", min=1, help="How many samples.")] = 3,
) -> None:
    """Training samples as the model gets them, the trained tokens marked."""
    from massive_sft.data import cautions
    from massive_sft.data.preview import render
    from massive_sft.running.training import build_recipe_samples

    out, plan = console(), load_plan(file, overlay)
    recipe = find_run(plan, model, mixture, setting).trajectory.recipe
    try:
        built, counts, tokenizer = build_recipe_samples(recipe)
    except InvalidInput:
        require_local_files(plan)  # what is missing is the reason; weights may be: samples need the tokenizer alone
        raise
    out.print(Text.assemble((recipe.mixture.name, "bold"), f" for {recipe.model_name} under {recipe.setting_name}"))
    place = f"{file}: settings.{recipe.setting_name}"
    for caution in cautions.joined(recipe.setting, counts.parts, place, recipe.model_name):
        warn(caution)
    shown = min(samples, len(built))
    out.print(render(built, counts, tokenizer, [index * len(built) // shown for index in range(shown)]))


def find_run(plan: Plan, model: str | None, mixture: str | None, setting: str | None) -> RunPlan:
    """Return the first run of the named model, mixture and setting. Raises InvalidInput with the valid names."""
    axes = {"model": model, "mixture": mixture, "setting": setting}
    problems, left = [], list(plan.runs)
    for axis, wanted in axes.items():
        names = list(Counter(_axis(run, axis) for run in plan.runs))
        if wanted is not None and wanted not in names:
            problems.append(Problem(f"--{axis}", "is not in the sweep", wanted, names))
        left = [run for run in left if wanted is None or _axis(run, axis) == wanted]
    if problems or not left:
        raise InvalidInput(
            problems or Problem("inspect", "no training run has this model, mixture and setting together")
        )
    return left[0]


def _axis(run: RunPlan, axis: str) -> str:
    recipe = run.trajectory.recipe
    return {"model": recipe.model_name, "mixture": recipe.mixture.name, "setting": recipe.setting_name}[axis]
