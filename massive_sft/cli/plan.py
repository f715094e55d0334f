"""``plan``: what a sweep means and what is left of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from massive_sft.cli import views as views
from massive_sft.cli.budget import BudgetHours, apply_budget
from massive_sft.cli.options import File, Json, Overlays, Where, console, print_json, report_write_errors
from massive_sft.core.errors import InvalidInput
from massive_sft.cost.formatting import budget_json
from massive_sft.planning.changes import find_changes
from massive_sft.planning.plan import make_plan
from massive_sft.planning.selection import parse_where, select_cells
from massive_sft.sweep.load import load_sweep


def plan(
    file: File,
    overlay: Overlays = None,
    where: Where = None,
    budget: BudgetHours = None,
    cells: Annotated[Path | None, typer.Option(help="Also write one line a cell to this CSV file.")] = None,
    as_json: Json = False,
) -> None:
    """What the sweep means and what is left of it: cells, training runs, what is shared, steps, tokens, cost."""
    whole = make_plan(load_sweep(file, overlay or ()))
    made = select_cells(whole, parse_where(where))
    portion = None
    try:
        portion = apply_budget(made, budget)
    except InvalidInput as error:
        if budget is not None:
            raise
        for problem in error.problems:  # the file's budget cannot be kept, which `run` refuses
            console(is_error=True).print(str(problem), style="yellow", soft_wrap=True)
    made = portion.plan if portion else made
    if cells is not None:
        with report_write_errors("--cells", cells):
            cells.write_text(views.cells_csv(made), encoding="utf-8")
    if as_json:
        paid = budget_json(portion) if portion else None
        print_json({**views.plan_json(made), "budget": paid, "changes": find_changes(whole)})
    else:
        console().print(views.plan_view(made), views.budget_view(portion), views.changes_view(find_changes(whole)))
