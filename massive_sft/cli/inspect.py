"""``inspect``: training samples, or a benchmark's questions, as the model gets them."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from massive_sft.cli.check import warn
from massive_sft.cli.options import File, Overlays, console, load_plan
from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.core.imports import heavy_imports
from massive_sft.ledger.store import Ledger
from massive_sft.planning.lock import data_commits
from massive_sft.planning.plan import Plan, RunPlan, require_local_files
from massive_sft.planning.requirements import Requirement
from massive_sft.suites.declared import own_name, title


def inspect(
    file: File,
    overlay: Overlays = None,
    model: Annotated[str | None, typer.Option(help="Of this model's tokenizer.")] = None,
    mixture: Annotated[str | None, typer.Option(help="Of this mixture.")] = None,
    setting: Annotated[str | None, typer.Option(help="Under this setting.")] = None,
    task: Annotated[
        str | None, typer.Option(help="Questions of this benchmark instead: its name, or with shots as in mmlu-5shot.")
    ] = None,
    samples: Annotated[int, typer.Option("-n", min=1, help="How many samples, or questions.")] = 3,
) -> None:
    """Training samples as the model gets them, the trained tokens marked; or a benchmark's prompts with their shots."""
    if task is not None:
        _inspect_task(load_plan(file, overlay), (model, mixture, setting), task, samples)
        return
    with heavy_imports():
        from massive_sft.data import cautions
        from massive_sft.data.preview import render
        from massive_sft.running.samples import build_recipe_samples

    out, plan = console(), load_plan(file, overlay)
    recipe = find_run(plan, model, mixture, setting).trajectory.recipe
    try:
        built, counts, tokenizer = build_recipe_samples(recipe)
    except InvalidInput:
        require_local_files(plan)  # what is missing is the reason; weights may be: samples need the tokenizer alone
        raise
    out.print(Text.assemble((recipe.mixture.name, "bold"), f" for {recipe.model_name} under {recipe.setting_name}"))
    place = plan.sweep.setting_place(recipe.setting_name, "template")
    for caution in cautions.joined(recipe.setting, counts.parts, place, recipe.model_name):
        warn(caution)
    shown = min(samples, len(built))
    out.print(render(built, counts, tokenizer, [index * len(built) // shown for index in range(shown)]))


def _inspect_task(plan: Plan, axes: tuple[str | None, str | None, str | None], name: str, count: int) -> None:
    """Print questions of a benchmark as the model of the first run that fits gets them, of each number of shots."""
    from massive_sft.cli.question_view import questions_view
    from massive_sft.evaluation.encoding import max_length_of
    from massive_sft.evaluation.wrapping import choose_wrapping
    from massive_sft.models.configuration import load_config
    from massive_sft.models.tokenizer import load_tokenizer
    from massive_sft.running.scoring import prepare_benchmark

    cell = find_run(plan, *axes).cells[-1]
    named, model = cell.cell.coordinates, cell.cell.model
    chosen = _asked_by_name(cell.requirements, name)
    tokenizer, evaluation = load_tokenizer(model), plan.sweep.file.evaluation
    console().print(Text(f"for {named.model} under {named.setting}"))
    with tempfile.TemporaryDirectory() as folder:
        ledger = _ledger_of_requests(plan, Path(folder))
        commits = data_commits(ledger.sweep(plan.sweep.file.name))
        for item in chosen:
            wrapping = choose_wrapping(evaluation.protocol, item.template or "", tokenizer)
            done = prepare_benchmark(item, evaluation, wrapping, ledger, commits)
            for reason in done.missing.values():
                raise InvalidInput(Problem("--task", reason))
            for built in done.benchmarks:
                length = max_length_of(load_config(model), tokenizer)
                console().print(questions_view(built.requests, tokenizer, length, count), soft_wrap=True)


def _ledger_of_requests(plan: Plan, folder: Path) -> Ledger:
    """Return the plan's ledger, which has the requests or gets them for the run, where it is there and can be written.

    Else one in ``folder``: no storage root is made for this, and whoever may only read one can look at what is asked.
    """
    if plan.storage.exists():
        with suppress(InvalidInput):
            return plan.open_ledger()
    return Ledger.open(folder)


def _asked_by_name(requirements: Sequence[Requirement], name: str) -> list[Requirement]:
    """Return the benchmarks of a name: with shots, without, or else the one whose file calls its task so.

    Raises InvalidInput with the names that are asked for.
    """
    asked = [(item, item.task) for item in requirements if item.task is not None]
    chosen = [item for item, task in asked if name in (item.label, item.name, title(task))]
    if chosen:
        return chosen
    inside = [(item, task) for item, task in asked if name == own_name(task)]
    if len({title(task) for _, task in inside}) != 1:
        rule = "is what several benchmarks' files call their task" if inside else "is not asked of these cells"
        labels = dict.fromkeys(item.label for item, _ in inside or asked)
        raise InvalidInput(Problem("--task", rule, name, list(labels)))
    return [item for item, _ in inside]


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
