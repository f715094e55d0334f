"""Training data: files, columns, filters, counts, special tokens, truncation, and tokens that the model knows."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import replace

from massive_sft.core.errors import InvalidInput, MassiveSFTError, Problem
from massive_sft.data import cautions
from massive_sft.data.mixture import PartCounts, mixture_place
from massive_sft.data.render import TEMPLATE
from massive_sft.measures.texts import read_texts
from massive_sft.models.tokenizer import token_problems
from massive_sft.planning.plan import Plan, RunPlan, token_key
from massive_sft.running.check.models import Models, UsableModel
from massive_sft.running.check.training_sets import Outcome
from massive_sft.running.token_process import TokenisedSet
from massive_sft.sweep.cell import Recipe
from massive_sft.sweep.mixture import declared_at
from massive_sft.sweep.schema import TextSet
from massive_sft.sweep.template import CHAT


def distinct_sets(plan: Plan, models: Models, lost: Container[str]) -> list[RunPlan]:
    """Return a run for each distinct training set of what is left to do: of usable models, of data that is there.

    Args:
        lost: places (``datasets.NAME``) that the hub does not give.
    """
    distinct: dict[str, RunPlan] = {token_key(run.trajectory.recipe): run for run in plan.todo}
    missing = [problem.place for problem in plan.missing]
    found = []
    for run in distinct.values():
        recipe = run.trajectory.recipe
        places = [f"datasets.{part.name}" for part in recipe.mixture.parts]
        gone = any(f": {one}." in place for place in missing for one in places)
        if recipe.model in models.usable and not gone and not any(place in lost for place in places):
            found.append(run)
    return found


def text_problems(plan: Plan) -> Iterator[Problem]:
    """Read the texts of measures that are left to do, and say what is wrong with them."""
    missing = [problem.place for problem in plan.missing]
    wanted = {item.texts: None for cell in plan.cells for item in cell.unmet if item.texts is not None}
    names = {item.title: index for index, item in enumerate(plan.sweep.file.measures) if isinstance(item, TextSet)}
    for texts in wanted:
        place = plan.sweep.place(f"measures[{names[texts.name]}].texts")
        if place not in missing:
            try:
                read_texts(texts.path, texts.column, texts.limit, place)
            except InvalidInput as error:
                yield from error.problems


def data_problems(
    plan: Plan, models: Models, outcomes: Iterable[tuple[RunPlan, Outcome]], warn: Callable[[Problem], None]
) -> Iterator[Problem]:
    """Say what is wrong with training sets, and what of them their models cannot take.

    Args:
        outcomes: each set's run, with what it came to or what is wrong with it.
        warn: called with what stands, but may not be what was meant.
    """
    joined: dict[tuple[str, str], tuple[Recipe, dict[str, PartCounts]]] = {}  # by template and model
    totals: dict[tuple[str, str, int], tuple[Recipe, list[PartCounts]]] = {}  # by those and the maximum length
    for run, outcome in outcomes:
        recipe = run.trajectory.recipe
        if isinstance(outcome, InvalidInput):
            yield from (_placed(plan, recipe, item) for item in outcome.problems)
        elif isinstance(outcome, MassiveSFTError):
            yield Problem(_mixture_place(plan, recipe), str(outcome))
        else:
            yield from _unfit(plan, recipe, outcome, models.usable[recipe.model])
            written = str(recipe.setting.template), recipe.model_name
            _, parts = joined.setdefault(written, (recipe, {}))
            totals.setdefault((*written, recipe.setting.max_length), (recipe, []))[1].append(outcome.counts.total)
            for part in outcome.counts.parts:
                parts[part.name] = max(part, parts.get(part.name, part), key=lambda one: one.joined)
    told = [
        *(cautions.joined(recipe.setting, parts.values(), _place(plan, recipe, "template"), recipe.model_name)
          for recipe, parts in joined.values()),
        *(cautions.truncated(recipe.setting, whole, _place(plan, recipe, "max_length"), recipe.model_name)
          for recipe, whole in totals.values()),
    ]  # fmt: skip
    for caution in itertools.chain.from_iterable(told):
        warn(caution)


def _placed(plan: Plan, recipe: Recipe, problem: Problem) -> Problem:
    """Return a problem of a training set with its place in the sweep file."""
    if problem.place == TEMPLATE:
        return replace(problem, place=_place(plan, recipe, TEMPLATE), rule=f"{recipe.model_name}: {problem.rule}")
    own = mixture_place(recipe.mixture)
    if problem.place.startswith(own):
        return replace(problem, place=_mixture_place(plan, recipe) + problem.place.removeprefix(own))
    return replace(problem, place=plan.sweep.place(problem.place))


def _mixture_place(plan: Plan, recipe: Recipe) -> str:
    return plan.sweep.place(declared_at(recipe.mixture, plan.sweep.mixtures))


def _place(plan: Plan, recipe: Recipe, field: str) -> str:
    return plan.sweep.setting_place(recipe.setting_name, field)


def clock_cautions(plan: Plan, models: Models) -> Iterator[Problem]:
    """Tell of each usable model whose chat template, in training or scoring, reads the clock."""
    recipes = [cell.cell.recipe for cell in plan.cells if cell.cell.recipe is not None]
    trained = {recipe.model for recipe in recipes if recipe.setting.template == CHAT}
    for model, usable in models.usable.items():
        if model in trained or plan.sweep.file.evaluation.protocol.template == CHAT:
            yield from cautions.clock(usable.tokenizer, plan.sweep.place(f"models.{usable.name}"))


def _unfit(plan: Plan, recipe: Recipe, samples: TokenisedSet, model: UsableModel) -> Iterator[Problem]:
    """Yield what of the samples the model cannot take: too many positions, tokens that it has no embedding for."""
    if model.positions and samples.longest > model.positions:
        place = _place(plan, recipe, "max_length")
        rule = (
            f"lets through samples of {samples.longest} tokens, but {recipe.model_name} has {model.positions} positions"
        )
        yield Problem(place, f"{rule}; lower it", recipe.setting.max_length)
    for item in token_problems(recipe.model, model.rows, samples.largest):
        place = plan.sweep.place(f"models.{recipe.model_name}: {item.place}")
        yield Problem(place, f"{item.rule} (mixture {recipe.mixture.name})", item.value)
