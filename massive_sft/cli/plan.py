"""``plan``: what a sweep means and what is left of it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from massive_sft.cli.budget import BudgetHours, apply_budget
from massive_sft.cli.options import File, Json, Overlays, Where, console, load_plan, print_json, report_write_errors
from massive_sft.cli.search_view import searches_json, searches_view
from massive_sft.cli.views import budget_view, changes_view, indented, make_table, plan_totals, warnings_view
from massive_sft.core.errors import InvalidInput
from massive_sft.cost.estimate import estimate, runs_to_train
from massive_sft.cost.formatting import budget_json, cost_json, cost_lines, gpu_count_lines, gpu_counts_json
from massive_sft.cost.gpu_counts import compare_gpu_counts
from massive_sft.judging.cost import judging_cost, judging_lines
from massive_sft.planning.changes import find_changes
from massive_sft.planning.plan import Plan, RunPlan
from massive_sft.planning.selection import parse_where, select_cells
from massive_sft.sweep.cell import mixture_label
from massive_sft.sweep.semantics import GENERATION_SEMANTICS, SCORE_SEMANTICS, TRAIN_SEMANTICS
from massive_sft.training.layout import refused_layouts

ROWS = 40  # rows of the plan shown before "and N rows more"


def plan(
    file: File,
    overlay: Overlays = None,
    where: Where = None,
    budget: BudgetHours = None,
    cells: Annotated[Path | None, typer.Option(help="Also write one line a cell to this CSV file.")] = None,
    as_json: Json = False,
) -> None:
    """What the sweep means and what is left of it: cells, training runs, what is shared, steps, tokens, cost."""
    whole = load_plan(file, overlay)
    selected = select_cells(whole, parse_where(where))
    budgeted = None
    try:
        budgeted = apply_budget(selected, budget)
    except InvalidInput as error:
        if budget is not None:
            raise
        for problem in error.problems:  # the file's budget cannot be kept, which `run` refuses
            console(is_error=True).print(str(problem), style="yellow", soft_wrap=True)
    selected = budgeted.plan if budgeted else selected
    if cells is not None:
        with report_write_errors("--cells", cells):
            cells.write_text(cells_csv(selected), encoding="utf-8")
    if as_json:
        paid, changes = budget_json(budgeted) if budgeted else None, find_changes(whole)
        print_json({**plan_json(selected), "searches": searches_json(whole), "budget": paid, "changes": changes})
    else:
        searches = searches_view(whole, with_cost=True)
        none = "no such cell" if budgeted is None or not budgeted.left_out else "the budget pays for no cell"
        console().print(
            plan_view(selected, none=none), searches, budget_view(budgeted), changes_view(find_changes(whole))
        )


def plan_view(plan: Plan, retrain: bool = False, none: str = "no such cell") -> Group:
    """Return the plan for people; ``retrain`` and ``none`` as of ``plan_totals``."""
    columns = ("training", "snapshots", "steps", "tokens", "to do")
    table = make_table(*columns, right=("steps", "tokens"), whole=columns[1:])
    rows = _alike(plan.runs)
    for (training, snapshots), runs in list(rows.items())[:ROWS]:
        steps, tokens = _sum(runs, "steps_per_epoch"), _sum(runs, "tokens_per_epoch")
        left = sum(not cell.is_done for run in runs for cell in run.cells)
        table.add_row(training, snapshots, steps, tokens, f"{left} of {_cells(runs)}")
    more = [Text(f"and {len(rows) - ROWS} rows more (--json or --cells lists them all)")] if len(rows) > ROWS else []
    trainings: list[RenderableType] = [table, *more, Text()] if rows else []
    return Group(
        *trainings,
        *plan_totals(plan, retrain, none),
        *map(indented, cost_lines(estimate(plan))),
        *map(indented, judging_lines(judging_cost(plan))),
        *map(indented, gpu_count_lines(compare_gpu_counts(plan, runs_to_train(plan)))),
        warnings_view(plan),
    )


def _alike(runs: Sequence[RunPlan]) -> dict[tuple[str, str], list[RunPlan]]:
    """Group runs that differ only in their seed, by what people call them and the epochs of their snapshots.

    Seeds are named where the plan has several.
    """
    groups: dict[tuple[str, str], list[RunPlan]] = {}
    for run in runs:
        recipe, first = run.trajectory.recipe, run.trajectory.cells[0].coordinates
        mixture = mixture_label(recipe.mixture.name, recipe.mixture.size)
        schedule = recipe.schedule.label + (f"/{first.horizon}" if first.horizon else "")
        words = (recipe.model_name, mixture, recipe.setting_name, first.variant, schedule)
        groups.setdefault((" ".join(filter(None, words)), _ranges(run.trajectory.snapshots)), []).append(run)
    has_several = len({run.trajectory.recipe.setting.seed for run in runs}) > 1
    return {(f"{what}{_seeds(own) if has_several else ''}", epochs): own for (what, epochs), own in groups.items()}


def _seeds(runs: Sequence[RunPlan]) -> str:
    seeds = sorted({run.trajectory.recipe.setting.seed for run in runs})
    return f" seed{'s' if len(seeds) > 1 else ''} {_ranges(tuple(seeds))}"


def _cells(runs: Iterable[RunPlan]) -> int:
    return sum(len(run.cells) for run in runs)


def _sum(runs: list[RunPlan], what: str) -> str:
    values = [getattr(run, what) for run in runs]
    if None in values:
        return "unknown"
    return f"{sum(value * run.trajectory.epochs for value, run in zip(values, runs, strict=True)):,}"


def _ranges(numbers: tuple[int, ...]) -> str:
    """Return epochs, or seeds, as ``1..3, 5`` for (1, 2, 3, 5)."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][-1] == number - 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{part[0]}..{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)


def plan_json(plan: Plan) -> dict[str, Any]:
    """Return the plan as JSON values; what is not known yet is null."""
    saved = plan.sharing
    return {
        "schema": 1,
        "name": plan.sweep.file.name,
        "root": str(plan.storage),
        "semantics": {"train": TRAIN_SEMANTICS, "score": SCORE_SEMANTICS, "generation": GENERATION_SEMANTICS},
        "statuses": {str(status): count for status, count in plan.statuses.items()},
        "cells": saved.cells + len(plan.base),
        "to_do": sum(not cell.is_done for cell in plan.cells),
        "sharing": {name: getattr(saved, name) for name in saved.__dataclass_fields__},
        "runs": [
            {
                "id": run.trajectory.id,
                "cells": {str(cell.cell.epoch): cell.cell.id for cell in run.cells},
                "layout": run.layout.model_dump(mode="json"),
                "steps_per_epoch": run.steps_per_epoch,
                "tokens_per_epoch": run.tokens_per_epoch,
            }
            for run in plan.runs
        ],
        "cost": cost_json(estimate(plan)),
        "judging": None if (judging := judging_cost(plan)) is None else asdict(judging),
        "gpu_counts": gpu_counts_json(compare_gpu_counts(plan, runs_to_train(plan))),
        "warnings": [str(item) for item in plan.warnings],
        "missing": [str(item) for item in plan.missing],
        "undecided": [str(item) for item in plan.undecided],
        "refused": [str(item) for item in refused_layouts(plan)],
        "unpinned": [str(item) for item in plan.unpinned],
    }


# The released table's names of a cell's coordinates, and ours for what it has no column for.
RELEASED = ("model_name", "data_name", "lora", "epoch", "data_size", "lr_strategy")
BESIDE = ("setting", "method", "horizon", "seed", "variant")


def cells_csv(plan: Plan) -> str:
    """Return one CSV line a cell: the released table's keys, our further coordinates, ids and status.

    A base model's line has ``data_name`` pretrain, ``data_size`` 0, and neither ``lora`` nor ``lr_strategy``.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*RELEASED, *BESIDE, "cell", "trajectory", "status"))
    for item in plan.cells:
        names, recipe = item.cell.coordinates, item.cell.recipe
        if recipe is None:
            keys: tuple[Any, ...] = (names.model, "pretrain", None, names.epoch, 0, None)
        else:
            lora = str(names.method == "lora").lower()
            keys = (names.model, names.data, lora, names.epoch, names.size, names.schedule)
        beside = (getattr(names, name) for name in BESIDE)
        writer.writerow((*keys, *beside, item.cell.id, recipe.id if recipe else None, item.status))
    return text.getvalue()
