"""The last stage: a cell's scores and measures become its record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from massive_sft.fingerprint import digest, fingerprint
from massive_sft.ledger import Ledger
from massive_sft.plan import CellPlan, RunPlan
from massive_sft.record import Record, Status
from massive_sft.schema import Evaluation
from massive_sft.stages.measuring import measure_data, measure_layers
from massive_sft.stages.scoring import score
from massive_sft.stages.training import SnapshotGone, Trained, find_snapshot


def now() -> str:
    """Return the time as records keep it: ISO 8601, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Finisher:
    """Takes trained cells to their records: scores, measures, record, in this order.

    Attributes:
        ledger: where all of it lies.
        evaluation: what to score and how.
        provenance: of this process, put into every record.
        owner: who works, for people.
    """

    ledger: Ledger
    evaluation: Evaluation
    provenance: Mapping[str, Any]
    owner: str

    def base(self, plan: CellPlan) -> Record | None:
        """Score a base model and write its record; None while somebody else works on it."""
        created = now()
        lease = self.ledger.lease_cell(plan.cell.id, self.owner)
        if lease is None:
            return None
        with lease:
            weights = digest(plan.cell.base)
            earlier = self.ledger.read_record(plan.cell.id)
            scored = score(plan.cell, None, weights, plan.lacking, self.evaluation, self.ledger)
            scores = (dict(earlier.scores) if earlier else {}) | scored.scores
            self.ledger.write_cell(plan.cell.id, plan.cell.content)
            record = self._record(
                plan, created, lease.claim.number, scores=scores, missing=sorted(scored.missing),
                reasons=scored.missing,
            )  # fmt: skip
            self.ledger.write_record(record, lease.claim)
        return record

    def trained(self, plan: CellPlan, run: RunPlan, trained: Trained) -> Record | None:
        """Score and measure a cell of a finished training and write its record; None while somebody else does.

        Raises:
            SnapshotGone: scores or layer change are wanted, but the snapshot was removed.
        """
        created = now()
        lease = self.ledger.lease_cell(plan.cell.id, self.owner)
        if lease is None:
            return None
        with lease:
            self.ledger.write_cell(plan.cell.id, plan.cell.content)
            details = self._diverged(plan, trained) or self._finished(plan, run, trained)
            record = self._record(
                plan,
                created,
                trained.outcome["attempt"],
                training=trained.outcome["summary"],
                counts=trained.outcome["counts"],
                layout=trained.outcome["layout"],
                **details,
            )
            self.ledger.write_record(record, lease.claim)
        return record

    def failed(self, plan: CellPlan, attempt: int, error: str) -> Record:
        """Write that an error ended a cell's attempt, keeping what it has; the next run takes it up again."""
        self.ledger.write_cell(plan.cell.id, plan.cell.content)
        earlier = self.ledger.read_record(plan.cell.id)
        kept: dict[str, Any] = {}
        if earlier is not None:
            kept = {"scores": earlier.scores, "measures": earlier.measures, "files": earlier.files}
        record = self._record(plan, now(), attempt, status=Status.FAILED, error=error, **kept)
        self.ledger.write_record(record)
        return record

    def _diverged(self, plan: CellPlan, trained: Trained) -> dict[str, Any]:
        reason = trained.diverged(plan.cell.epoch)
        return {"status": Status.DIVERGED, "error": reason, "files": dict(trained.files)} if reason else {}

    def _finished(self, plan: CellPlan, run: RunPlan, trained: Trained) -> dict[str, Any]:
        earlier = self.ledger.read_record(plan.cell.id)
        measures = dict(earlier.measures) if earlier else {}
        scores = dict(earlier.scores) if earlier else {}
        files = dict(trained.files)
        missing: dict[str, str] = {}
        found = find_snapshot(self.ledger, run.trajectory.id, plan.cell.epoch)
        if found is None and any(item.task or item.measure == "layer_change" for item in plan.lacking):
            raise SnapshotGone(
                f"{plan.cell.coordinates}: its snapshot was removed (storage.keep_snapshots), and "
                f"{', '.join(item.id for item in plan.lacking)} need it; run with --retrain to train it again"
            )
        if found is not None:
            snapshot, hashes = found
            weights = fingerprint({"base": run.trajectory.recipe.parts["base"], "snapshot": hashes})
            scored = score(plan.cell, snapshot, weights, plan.lacking, self.evaluation, self.ledger)
            scores |= scored.scores
            missing = scored.missing
        for item in plan.lacking:
            if item.measure == "layer_change" and found is not None:
                measures[item.measure], table = measure_layers(plan.cell, run.trajectory.recipe, found[0], self.ledger)
                files |= table
            elif item.measure is not None:
                measures[item.measure] = measure_data(item.measure, run, self.ledger)
        return {"scores": scores, "measures": measures, "missing": sorted(missing), "reasons": missing, "files": files}

    def _record(
        self,
        plan: CellPlan,
        created: str,
        attempt: int,
        status: Status | None = None,
        missing: list[str] | None = None,
        reasons: Mapping[str, str] | None = None,
        layout: Mapping[str, Any] | None = None,
        **details: Any,
    ) -> Record:
        recipe = plan.cell.recipe
        return Record(
            cell=plan.cell.id,
            trajectory=recipe.id if recipe else None,
            coordinates=plan.cell.coordinates._asdict(),
            status=status or (Status.PARTIAL if missing else Status.COMPLETE),
            attempt=attempt,
            missing=missing or [],
            provenance={**self.provenance, "layout": layout and dict(layout), "missing": dict(reasons or {})},
            created=created,
            finished=now(),
            **details,
        )


def remove_snapshot(ledger: Ledger, run: RunPlan, epoch: int) -> None:
    """Remove a published snapshot that the retention policy does not keep."""
    found: Path = ledger.trajectory_dir(run.trajectory.id) / "snapshots" / f"epoch-{epoch}"
    if found.is_dir():
        doomed = found.with_name(f".{found.name}.removed")
        found.rename(doomed)  # at once, so that nobody reads half a snapshot
        for path in sorted(doomed.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        doomed.rmdir()
