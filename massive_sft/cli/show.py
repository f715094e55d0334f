"""``show``: one cell's record."""

from __future__ import annotations

from massive_sft.cli import views as views
from massive_sft.cli.cell_lookup import find_record
from massive_sft.cli.options import CellId, Json, Overlays, Sweep, console, print_json
from massive_sft.ledger.store import Ledger
from massive_sft.planning.plan import storage_root
from massive_sft.study.imported import is_imported, open_imported
from massive_sft.sweep.load import load_sweep


def show(cell: CellId, file: Sweep, overlay: Overlays = None, as_json: Json = False) -> None:
    """One cell's record: scores, measures, training, data, provenance."""
    if is_imported(file):
        ledger = open_imported(file).ledger
    else:
        ledger = Ledger.open(storage_root(load_sweep(file, overlay or ())), create=False)
    record = find_record(ledger, cell)
    if as_json:
        print_json(record.model_dump(mode="json", by_alias=True))
    else:
        console().print(views.record_view(record))
