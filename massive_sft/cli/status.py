"""``status``: how far every cell is."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

from rich.console import Group
from rich.text import Text

from massive_sft.cli import import_table
from massive_sft.cli.cell_names import short_names
from massive_sft.cli.event_lines import part_text
from massive_sft.cli.logs import last_step
from massive_sft.cli.options import File, Json, Overlays, Where, console, load_plan, print_json
from massive_sft.cli.search_view import searches_view
from massive_sft.cli.views import STYLES, changes_view, make_table, plan_totals, warnings_view
from massive_sft.ledger import scores_so_far
from massive_sft.ledger.record import Status
from massive_sft.ledger.store import Ledger
from massive_sft.planning.changes import find_changes
from massive_sft.planning.outcome import explain, find_gone, find_remedies, with_work_in_hand
from massive_sft.planning.plan import CellPlan, Plan, RunPlan
from massive_sft.planning.selection import parse_where, select_cells
from massive_sft.study.imported import is_imported
from massive_sft.training.events import StepDone


def status(file: File, overlay: Overlays = None, where: Where = None, as_json: Json = False) -> None:
    """How far every cell is."""
    if is_imported(file):
        import_table.print_status(file, where, as_json)
        return
    whole = load_plan(file, overlay)
    ledger = Ledger(whole.storage)
    selected = select_cells(with_work_in_hand(whole, ledger), parse_where(where))
    if as_json:
        print_json(status_json(selected, ledger))
    else:
        console().print(status_view(selected, ledger), searches_view(whole), changes_view(find_changes(whole)))


def status_json(plan: Plan, ledger: Ledger) -> list[dict[str, Any]]:
    """Return one object a cell; ``why`` says why it is PARTIAL, FAILED or DIVERGED, a sentence each."""
    gone = find_gone(plan)
    return [
        {
            "cell": item.cell.id,
            "trajectory": item.cell.recipe.id if item.cell.recipe else None,
            "status": str(item.status),
            "lacking": [asked.id for asked in item.unmet],
            "why": explain(item, ledger, item.cell.id in gone),
            **item.cell.coordinates.by_shown_name(),
        }
        for item in plan.cells
    ]


def status_view(plan: Plan, ledger: Ledger) -> Group:
    """Return every cell's status for people, those with something to do first, with why they are not complete."""
    table = make_table("cell", "what", "status", "why")
    gone = find_gone(plan)
    cells = sorted(plan.cells, key=lambda item: item.is_done)
    runs = {cell.cell.id: run for run in plan.runs for cell in run.cells}
    step_of = cache(partial(last_step, ledger))  # cells share trainings
    names = short_names([item.cell.coordinates._asdict() for item in cells])
    for item, name in zip(cells, names, strict=True):
        status = Text(str(item.status), style=STYLES[item.status])
        why = explain(item, ledger, item.cell.id in gone)
        now = _so_far(item, runs.get(item.cell.id), ledger, step_of)
        table.add_row(item.cell.id, Text(name), status, Text("\n".join([*why, now] if now else why)))
    remedies = [Text(sentence, style="yellow") for sentence in find_remedies(plan)]
    return Group(table, *remedies, Text(), *plan_totals(plan), warnings_view(plan))


def _so_far(item: CellPlan, run: RunPlan | None, ledger: Ledger, step_of: Callable[[str], StepDone | None]) -> str:
    """Return how far a cell in work is: the score of the benchmark in hand, else what is done with it.

    Of one that waits, or is to be scored again, that it is trained.
    """
    if item.status not in (Status.WAITING, Status.RUNNING, Status.FAILED):
        return ""
    is_trained = run is None or ledger.has_snapshot(run.trajectory.id, item.cell.epoch)
    if item.status is not Status.RUNNING:
        return "trained, not scored yet" if run is not None and is_trained else ""
    part = scores_so_far.read(ledger.cell(item.cell.id))
    if part is not None:
        return f"so far {part_text(part)}"
    if run is None or ledger.is_in_work(item.cell.id, None):
        return "is scored now"
    if is_trained:
        return "trained, not scored yet"
    step = step_of(run.trajectory.id)
    if step is None:
        return "its training starts"
    of = "" if run.steps_per_epoch is None else f" of {run.steps_per_epoch * run.trajectory.epochs:,}"
    return f"training: step {step.step:,}{of}, loss {step.loss:.3f}"
