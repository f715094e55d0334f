"""The check: everything a run needs is tried before anything is trained, and every problem is reported at once."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from concurrent.futures import ThreadPoolExecutor

from massive_sft import hub, modeling
from massive_sft.errors import InvalidInput, MassiveSFTError, Problem
from massive_sft.evaluate.tasks import problems as task_problems
from massive_sft.ledger.store import Ledger
from massive_sft.plan import Plan, RunPlan, token_key
from massive_sft.sft.engine import layout_problems
from massive_sft.stages.training import samples_of
from massive_sft.study.imported import TABLE
from massive_sft.sweep.cell import Recipe
from massive_sft.sweep.schema import Dataset, Model
from massive_sft.tracking import tracking_problem

ASKED_AT_ONCE = 8  # of the hub's repositories, so that one that does not answer costs its time once


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
    if ledger is not None and (ledger.sweep_dir(file.name) / TABLE).exists():
        rule = "is the name of an imported table of this storage root; choose another one"
        problems.append(Problem(f"{path}: name", rule, file.name))
    say("tracker")
    if ledger is not None or file.tracking.mlflow:  # else the local store lacks its folder, which has been said
        found = tracking_problem(file.tracking.mlflow, f"{path}: tracking.mlflow", plan.root)
        problems += [found] if found else []
    say("layouts")
    problems += _layouts(plan)
    if file.evaluation.protocol.engine == "trie":
        rule = "is not built yet; use plain, whose scores agree within 1e-5"
        problems.append(Problem(f"{path}: evaluation.protocol.engine", rule, "trie"))
    say("benchmarks")
    problems += task_problems(plan.tasks, f"{path}: evaluation.tasks")
    say("hub")
    lost = _unreachable(plan)
    problems += (problem for found in lost.values() for problem in found)
    models = list(_models(plan, lost, problems, say))
    if ledger is not None and not plan.missing:
        problems += _data(plan, ledger, models, lost, say)
    return list({str(problem): problem for problem in problems}.values())


def require_runnable(plan: Plan, say: Callable[[str], None] = lambda _: None) -> None:
    """Raise InvalidInput with every problem that ``check`` finds."""
    problems = check(plan, say)
    if problems:
        raise InvalidInput(problems)


def _layouts(plan: Plan) -> Iterator[Problem]:
    for run in plan.runs:
        yield from layout_problems(run.trajectory.recipe.setting, run.layout, f"{plan.sweep.path}: resources")


def _unreachable(plan: Plan) -> dict[str, tuple[Problem, ...]]:
    """Return why models and datasets that this node lacks cannot be had from the hub, by place in the file.

    Each is asked for once: the libraries that load them would try for minutes, and not say that a model is gated.
    """
    sources: dict[str, Model | Dataset] = {
        f"models.{cell.cell.coordinates.model}": cell.cell.model for cell in plan.cells
    }
    for run in plan.runs:
        sources |= {f"datasets.{part.name}": part.dataset for part in run.trajectory.recipe.mixture.parts}
    asked = {
        place: hub.repository_of(source, f"{plan.sweep.path}: {place}.hub")
        for place, source in sources.items()
        if source.hub is not None and hub.cached(hub.kind_of(source), source.hub, source.revision) is None
    }
    with ThreadPoolExecutor(ASKED_AT_ONCE) as threads:
        answers = list(threads.map(_refusals, asked.values()))
    return {place: tuple(found) for place, found in zip(asked, answers, strict=True) if found}


def _refusals(repository: hub.Repository) -> list[Problem]:
    try:
        hub.resolve(repository)
    except InvalidInput as error:
        return error.problems
    return []


def _models(plan: Plan, lost: Container[str], problems: list[Problem], say: Callable[[str], None]) -> Iterator[Model]:
    """Yield the models that load; what is wrong with the others goes into ``problems``."""
    models: dict[Model, str] = {cell.cell.model: cell.cell.coordinates.model for cell in plan.cells}
    for model, name in models.items():
        if f"models.{name}" in lost:
            continue
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


def _data(
    plan: Plan, ledger: Ledger, models: list[Model], lost: Container[str], say: Callable[[str], None]
) -> Iterator[Problem]:
    """Build every distinct training set once: files, columns, filters, counts, special tokens, truncation."""
    distinct: dict[str, RunPlan] = {token_key(run.trajectory.recipe): run for run in plan.runs}
    for run in distinct.values():
        recipe = run.trajectory.recipe
        if recipe.model not in models or any(f"datasets.{part.name}" in lost for part in recipe.mixture.parts):
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
    positions = modeling.positions_of(modeling.load_config(recipe.model))
    if positions and longest > positions:
        place = f"{plan.sweep.path}: settings.{recipe.setting_name}.max_length"
        rule = f"lets through samples of {longest} tokens, but {recipe.model_name} has {positions} positions; lower it"
        yield Problem(place, rule, recipe.setting.max_length)
