"""``retry``: which cells that failed, or have scores missing, are taken up again."""

from __future__ import annotations

from rich.console import Group
from rich.text import Text

from massive_sft.cli.options import File, Overlays, Where, console, load_sound_plan
from massive_sft.cli.run import Inline, Retrain, execute_plan, pin_revisions
from massive_sft.cli.views import STYLES, make_table
from massive_sft.ledger.record import Status
from massive_sft.ledger.store import Ledger
from massive_sft.planning.outcome import explain
from massive_sft.planning.plan import Plan
from massive_sft.planning.selection import Clause, Selection, parse_where, select_cells

RETRIED = (Status.FAILED, Status.PARTIAL)


def retry(
    file: File, overlay: Overlays = None, where: Where = None, inline: Inline = None, retrain: Retrain = False
) -> None:
    """Take up only what failed or is incomplete."""
    plan, selection = pin_revisions(load_sound_plan(file, overlay)), parse_where(where)
    narrowed = select_failed(plan, selection)
    console().print(retry_view(narrowed, plan.open_ledger(create=False), count_diverged(plan, selection)))
    if narrowed.cells:
        execute_plan(narrowed, plan, inline, retrain, decides=False)


def select_failed(plan: Plan, where: Selection) -> Plan:
    """Return the plan with what ``retry`` takes up: the FAILED and PARTIAL cells that ``where`` holds for.

    A cell that DIVERGED is a result and stays one: the same training would diverge again.

    Raises:
        InvalidInput: ``where`` names what no cell of the sweep has.
    """
    statuses = Clause("status", False, tuple(map(str, RETRIED)))
    return select_cells(plan, Selection((*where.conditions, statuses)))


def retry_view(narrowed: Plan, ledger: Ledger, diverged: int = 0) -> Group:
    """Return what is taken up and why it is not complete.

    Args:
        narrowed: what ``select_failed`` returned.
        diverged: how many of the cells meant have diverged, which is said.
    """
    table = make_table("cell", "what", "status", "why")
    for item in narrowed.cells:
        why = Text("\n".join(explain(item, ledger)))
        status = Text(str(item.status), style=STYLES[item.status])
        table.add_row(item.cell.id, Text(str(item.cell.coordinates)), status, why)
    notes: list[Text] = []
    if not narrowed.cells:
        notes.append(Text("nothing to retry: no such cell is FAILED or PARTIAL"))
    if diverged:
        cells = f"{diverged} cell is" if diverged == 1 else f"{diverged} cells are"
        notes.append(Text(f"{cells} DIVERGED: a result, not taken up (change the setting to train differently)"))
    return Group(*([table] if narrowed.cells else []), *notes)


def count_diverged(plan: Plan, where: Selection) -> int:
    """Return how many of the cells that ``where`` holds for have diverged."""
    return sum(cell.status is Status.DIVERGED for cell in select_cells(plan, where).cells)
