"""Training data: files, columns, filters, counts, special tokens, truncation, and tokens that the model knows."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Container, Iterator

from massive_sft.core.errors import InvalidInput, MassiveSFTError, Problem
from massive_sft.data import cautions
from massive_sft.data.mixture import PartCounts
from massive_sft.data.samples import Samples
from massive_sft.ledger.store import Ledger
from massive_sft.models.tokenizer import token_problems
from massive_sft.planning.plan import Plan, RunPlan, token_key
from massive_sft.running.check.models import Models, UsableModel
from massive_sft.running.training import samples_of
from massive_sft.sweep.cell import Recipe
from massive_sft.sweep.template import CHAT


def data_problems(
    plan: Plan,
    ledger: Ledger,
    models: Models,
    lost: Container[str],
    say: Callable[[str], None],
    warn: Callable[[Problem], None],
) -> Iterator[Problem]:
    """Build each distinct training set of what is left to do once, for usable models, into the ledger's token cache.

    Args:
        lost: places (``datasets.NAME``) that the hub does not give.
        warn: called with what stands, but may not be what was meant.
    """
    distinct: dict[str, RunPlan] = {token_key(run.trajectory.recipe): run for run in plan.todo}
    missing = [problem.place for problem in plan.missing]
    joined: dict[tuple[str, str], tuple[Recipe, dict[str, PartCounts]]] = {}  # by template and model
    totals: dict[tuple[str, str, int], tuple[Recipe, list[PartCounts]]] = {}  # by those and the maximum length
    for run in distinct.values():
        recipe = run.trajectory.recipe
        model = models.usable.get(recipe.model)
        places = [f"datasets.{part.name}" for part in recipe.mixture.parts]
        gone = any(place.startswith(f"{plan.sweep.path}: {one}.") for place in missing for one in places)
        if model is None or gone or any(place in lost for place in places):
            continue
        say(f"data {recipe.mixture.name} for {recipe.model_name}")
        try:
            samples, counts = samples_of(run, ledger)
        except InvalidInput as error:
            yield from (
                Problem(f"{plan.sweep.path}: {item.place}", item.rule, item.value, item.choices)
                for item in error.problems
            )
        except MassiveSFTError as error:
            yield Problem(f"{plan.sweep.path}: mixtures.{recipe.mixture.name}", str(error))
        else:
            yield from _unfit(plan, recipe, samples, model)
            written = str(recipe.setting.template), recipe.model_name
            _, parts = joined.setdefault(written, (recipe, {}))
            totals.setdefault((*written, recipe.setting.max_length), (recipe, []))[1].append(counts.total)
            for part in counts.parts:
                parts[part.name] = max(part, parts.get(part.name, part), key=lambda one: one.joined)
    told = [
        *(cautions.joined(recipe.setting, parts.values(), _place(plan, recipe), recipe.model_name)
          for recipe, parts in joined.values()),
        *(cautions.truncated(recipe.setting, whole, _place(plan, recipe), recipe.model_name)
          for recipe, whole in totals.values()),
    ]  # fmt: skip
    for caution in itertools.chain.from_iterable(told):
        warn(caution)


def _place(plan: Plan, recipe: Recipe) -> str:
    return f"{plan.sweep.path}: settings.{recipe.setting_name}"


def clock_cautions(plan: Plan, models: Models) -> Iterator[Problem]:
    """Tell of each usable model whose chat template, in training or scoring, reads the clock."""
    recipes = [cell.cell.recipe for cell in plan.cells if cell.cell.recipe is not None]
    trained = {recipe.model for recipe in recipes if recipe.setting.template == CHAT}
    for model, usable in models.usable.items():
        if model in trained or plan.sweep.file.evaluation.protocol.template == CHAT:
            yield from cautions.clock(usable.tokenizer, f"{plan.sweep.path}: models.{usable.name}")


def _unfit(plan: Plan, recipe: Recipe, samples: Samples, model: UsableModel) -> Iterator[Problem]:
    """Yield what of the samples the model cannot take: too many positions, tokens that it has no embedding for."""
    longest = int(samples.lengths.max())
    if model.positions and longest > model.positions:
        place = f"{plan.sweep.path}: settings.{recipe.setting_name}.max_length"
        rule = f"lets through samples of {longest} tokens, but {recipe.model_name} has {model.positions} positions"
        yield Problem(place, f"{rule}; lower it", recipe.setting.max_length)
    for item in token_problems(recipe.model, model.rows, int(samples.tokens.max())):
        place = f"{plan.sweep.path}: models.{recipe.model_name}: {item.place}"
        yield Problem(place, f"{item.rule} (mixture {recipe.mixture.name})", item.value)
