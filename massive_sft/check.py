"""The check: everything a run needs is tried before anything is trained, and every problem is reported at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from massive_sft import modeling
from massive_sft.errors import InvalidInput, MassiveSFTError, Problem
from massive_sft.evaluate.tasks import problems as task_problems
from massive_sft.ledger.store import Ledger
from massive_sft.plan import Plan, RunPlan, token_key
from massive_sft.sft.engine import layout_problems
from massive_sft.stages.training import samples_of
from massive_sft.sweep.cell import Recipe
from massive_sft.sweep.schema import Model
from massive_sft.tracking import tracking_problem


def check(plan: Plan, say: Callable[[str], None] = lambda _: None) -> list[Problem]:
    """Try a plan's storage, tracker, layouts, models, tokenizers, benchmarks and data.

    Tokenised data goes into the ledger's cache, where the run finds it.

    Args:
        plan: of the sweep.
        say: told what is being checked, for a progress display.

    Returns:
        Every problem found, each once; empty when a run can start.
    """
    file, path = plan.sweep.file, plan.sweep.path
    say("storage")
    problems: list[Problem] = list(plan.missing)
    ledger: Ledger | None = None
    try:
        ledger = Ledger.open(plan.root)
    except InvalidInput as error:
        problems += error.problems
    say("tracker")
    found = tracking_problem(file.tracking.mlflow, f"{path}: tracking.mlflow")
    problems += [found] if found else []
    say("layouts")
    problems += _layouts(plan)
    if file.evaluation.protocol.engine == "trie":
        rule = "is not built yet; use plain, whose scores agree within 1e-5"
        problems.append(Problem(f"{path}: evaluation.protocol.engine", rule, "trie"))
    say("benchmarks")
    problems += task_problems(plan.tasks, f"{path}: evaluation.tasks")
    models = list(_models(plan, problems, say))
    if ledger is not None and not plan.missing:
        problems += _data(plan, ledger, models, say)
    return list({str(problem): problem for problem in problems}.values())


def require_runnable(plan: Plan, say: Callable[[str], None] = lambda _: None) -> None:
    """Raise InvalidInput with every problem that ``check`` finds."""
    problems = check(plan, say)
    if problems:
        raise InvalidInput(problems)


def _layouts(plan: Plan) -> Iterator[Problem]:
    for run in plan.runs:
        yield from layout_problems(run.trajectory.recipe.setting, run.layout, f"{plan.sweep.path}: resources")


def _models(plan: Plan, problems: list[Problem], say: Callable[[str], None]) -> Iterator[Model]:
    """Yield the models that load; what is wrong with the others goes into ``problems``."""
    models: dict[Model, str] = {cell.cell.model: cell.cell.coordinates.model for cell in plan.cells}
    for model, name in models.items():
        say(f"model {name}")
        place = f"{plan.sweep.path}: models.{name}"
        try:
            found = modeling.unsupported(model, modeling.load_config(model))
            modeling.load_tokenizer(model)
        except InvalidInput as error:
            found = error.problems
        problems += [Problem(f"{place}: {item.place}", item.rule, item.value, item.choices) for item in found]
        if not found:
            yield model


def _data(plan: Plan, ledger: Ledger, models: list[Model], say: Callable[[str], None]) -> Iterator[Problem]:
    """Build every distinct training set once: files, columns, filters, counts, special tokens, truncation."""
    distinct: dict[str, RunPlan] = {token_key(run.trajectory.recipe): run for run in plan.runs}
    for run in distinct.values():
        recipe = run.trajectory.recipe
        if recipe.model not in models:
            continue
        say(f"data {recipe.mixture.name} for {recipe.model_name}")
        try:
            samples, _ = samples_of(run, ledger)
        except InvalidInput as error:
            yield from (
                Problem(f"{plan.sweep.path}: {item.place}", item.rule, item.value, item.choices)
                for item in error.problems
            )
        except MassiveSFTError as error:
            yield Problem(f"{plan.sweep.path}: mixtures.{recipe.mixture.name}", str(error))
        else:
            yield from _too_long(plan, recipe, int(samples.lengths.max()))


def _too_long(plan: Plan, recipe: Recipe, longest: int) -> Iterator[Problem]:
    positions = getattr(modeling.load_config(recipe.model), "max_position_embeddings", None)
    if positions and longest > positions:
        place = f"{plan.sweep.path}: settings.{recipe.setting_name}.max_length"
        rule = f"lets through samples of {longest} tokens, but {recipe.model_name} has {positions} positions; lower it"
        yield Problem(place, rule, recipe.setting.max_length)
