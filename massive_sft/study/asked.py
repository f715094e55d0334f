"""The records of a sweep's cells as the sweep asked for them: its own scores under its own names."""

from __future__ import annotations

from massive_sft.ledger.record import Record
from massive_sft.ledger.store import Ledger
from massive_sft.planning.outcome import as_asked
from massive_sft.planning.plan import Plan


def asked_records(plan: Plan, ledger: Ledger) -> dict[str, Record]:
    """Return the newest sound record of each cell of a plan, by its id, as ``planning.outcome.as_asked``."""
    found = ((item, ledger.read_record(item.cell.id)) for item in plan.cells)
    return {item.cell.id: as_asked(record, item, ledger) for item, record in found if record is not None}
