"""``status``: how far every cell is."""

from __future__ import annotations

from massive_sft.cli import import_table
from massive_sft.cli import views as views
from massive_sft.cli.options import File, Json, Overlays, Where, console, print_json
from massive_sft.planning.changes import find_changes
from massive_sft.planning.plan import make_plan
from massive_sft.planning.selection import parse_where, select_cells
from massive_sft.study.imported import is_imported
from massive_sft.sweep.load import load_sweep


def status(file: File, overlay: Overlays = None, where: Where = None, as_json: Json = False) -> None:
    """How far every cell is."""
    if is_imported(file):
        import_table.status(file, where, as_json)
        return
    whole = make_plan(load_sweep(file, overlay or ()))
    made = select_cells(whole, parse_where(where))
    if as_json:
        print_json(views.status_json(made))
    else:
        console().print(views.status_view(made), views.changes_view(find_changes(whole)))
