"""What a sweep sees of the ledger's records: its own cells, its own names, only the scores that it asks for."""

from __future__ import annotations

from massive_sft.ledger.record import Record
from massive_sft.ledger.store import Ledger
from massive_sft.planning.plan import CellPlan, Plan


def asked_records(plan: Plan, ledger: Ledger) -> dict[str, Record]:
    """Return the newest sound record of each cell of a plan that has one, by cell id, as the sweep asked for it.

    Raises Unsupported when a newer version of massive-sft wrote a record.
    """
    found = ((item, ledger.read_record(item.cell.id)) for item in plan.cells)
    return {item.cell.id: as_asked(record, item) for item, record in found if record is not None}


def as_asked(record: Record, item: CellPlan) -> Record:
    """Return the record with only the sweep's own scores, under the sweep's own names.

    A cell may be shared with another sweep, which scored it on more, or calls it by another name.
    """
    wanted = {asked.id for asked in item.requirements}
    scores = {protocol: benchmark for protocol, benchmark in record.scores.items() if benchmark.asked in wanted}
    return record.model_copy(update={"scores": scores, "coordinates": item.cell.coordinates._asdict()})
