"""The records of a sweep's cells as the sweep asked for them: its own scores under its own names."""

from __future__ import annotations

from collections.abc import Mapping

from massive_sft.ledger.record import Record
from massive_sft.ledger.store import Ledger
from massive_sft.planning.outcome import AsPlanAsks, newest_as_asked
from massive_sft.planning.plan import Plan


def asked_records(plan: Plan, ledger: Ledger) -> dict[str, Record]:
    """Return the record of each cell of a plan that has one, by its id, as ``planning.outcome.newest_as_asked``.

    Those of one training run stand together, by epoch, wherever the sweep's blocks name them.
    """
    view = AsPlanAsks(plan)
    found = {item.cell.id: newest_as_asked(item.cell.id, ledger, view) for item in plan.cells}
    return _by_epoch({cell: record for cell, record in found.items() if record is not None})


def _by_epoch(records: Mapping[str, Record]) -> dict[str, Record]:
    order: dict[str, int] = {}
    for record in records.values():
        order.setdefault(record.trajectory or record.cell, len(order))
    key = {
        cell: (order[record.trajectory or cell], int(record.coordinates.get("epoch") or 0))
        for cell, record in records.items()
    }
    return {cell: records[cell] for cell in sorted(records, key=lambda cell: key[cell])}
