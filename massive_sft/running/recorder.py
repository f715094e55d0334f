"""Writing records: the last thing that is done for a cell. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from massive_sft.ledger.record import Record, Status
from massive_sft.ledger.store import Ledger
from massive_sft.planning.lock import DataCommits
from massive_sft.planning.outcome import as_asked
from massive_sft.planning.plan import CellPlan
from massive_sft.sweep.schema import Evaluation


def now() -> str:
    """Return the time as records keep it: ISO 8601, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class RecordWriter:
    """Makes and writes the records of one run.

    Attributes:
        ledger: where they lie.
        evaluation: what is scored and how.
        provenance: of the run, put into every record.
        owner: who works, for people.
        commits: that the hub's data sets of benchmarks stay at.
    """

    ledger: Ledger
    evaluation: Evaluation
    provenance: Mapping[str, Any]
    owner: str
    commits: DataCommits = frozenset()

    def failed(self, plan: CellPlan, attempt: int, error: str) -> Record | None:
        """Write that an error ended a cell's attempt, keeping what it has; the next run takes it up again.

        Returns None, and writes nothing, while somebody else works on the cell; what is done already stays.
        """
        lease = self.ledger.lease_cell(plan.cell.id, self.owner)
        if lease is None:
            return None
        with lease:
            newest = self.ledger.read_record(plan.cell.id)
            if newest is not None and plan.with_record(newest).is_done:
                return as_asked(newest, plan, self.ledger)
            self.ledger.write_cell(plan.cell.id, plan.cell.content)
            kept = self.earlier(plan)
            if newest is not None:  # of the training that the scores rest on
                kept |= {"training": newest.training, "counts": newest.counts}
            record = self.record(plan, now(), attempt, status=Status.FAILED, error=error, **kept)
            self.ledger.write_record(record, lease.claim)
        return record

    def earlier(self, plan: CellPlan) -> dict[str, Any]:
        """Return what the cell's newest record holds already, so that a new one never loses it."""
        earlier = self.ledger.read_record(plan.cell.id)
        if earlier is None:
            return {"scores": {}, "measures": {}, "files": {}}
        return {"scores": dict(earlier.scores), "measures": dict(earlier.measures), "files": dict(earlier.files)}

    def record(self, plan: CellPlan, created: str, attempt: int, **details: Any) -> Record:
        """Return a cell's record; ``details`` are its other fields."""
        recipe = plan.cell.recipe
        return Record(
            cell=plan.cell.id,
            trajectory=recipe.id if recipe else None,
            coordinates=plan.cell.coordinates._asdict(),
            attempt=attempt,
            provenance=dict(self.provenance),
            created=created,
            finished=now(),
            **details,
        )
