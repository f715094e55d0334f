"""What the ledger says of a search's decisions: what came of them, how often they were tried, what that took."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from massive_sft.ledger.record import Status
from massive_sft.ledger.store import Ledger
from massive_sft.search.objectives import names_against_base
from massive_sft.search.outcomes import Outcome, Reader, taken_s
from massive_sft.search.plan import Planned
from massive_sft.search.rules import FAILED_BEFORE, WAS_THERE, Decision
from massive_sft.sweep.resources import scoring_resources

# How the error of a record begins whose training had no room: ours or torch's, of a lane after the name of its own.
_OUT_OF_MEMORY = re.compile(r"(LaneFailed: )?OutOfMemory(Error)?: ")


@dataclass(frozen=True)
class Recorded:
    """Reads what the records of a ledger say of a search's decisions."""

    planned: Planned
    ledger: Ledger
    _taken_s: dict[str, tuple[float, float]] = field(default_factory=dict)  # by cell, once no further try changes it

    def outcome_of(self, entry: Decision) -> Outcome | None:
        """Return what came of a decision; None while it is not known."""
        scored, reader = self.planned.scored(entry)[0], self.planned.reader
        record = self.ledger.read_record(scored.cell)
        if record is None:
            return None
        outcome = reader.outcome(record, scored.requirements)
        if outcome is not None:
            return outcome
        if reader.is_void(record, scored.requirements):
            return Outcome("given_up")
        tries = self._tries_of_cell(entry) - entry.get(FAILED_BEFORE, 0)
        if tries > 0 and record.status is Status.FAILED and _OUT_OF_MEMORY.match(record.error or ""):
            return Outcome("infeasible")
        return Outcome("given_up") if tries > self.planned.search.retries else None

    def needs_retraining(self, entry: Decision) -> bool:
        """Whether what a decision lacks needs weights that are gone: it waits for a run with ``--retrain``."""
        scored = self.planned.scored(entry)[0]
        record = self.ledger.read_record(scored.cell)
        return record is not None and self.planned.reader.needs_retraining(record, scored.requirements)

    def before(self, entry: Decision) -> dict[str, Any]:
        """Return what a decision that is about to be written keeps of its cell's records, which are not its own."""
        failed = self._tries_of_cell(entry)
        kept = {FAILED_BEFORE: failed} if failed else {}
        return {**kept, WAS_THERE: True} if self.outcome_of({**entry, **kept}) is not None else kept

    def _tries_of_cell(self, entry: Decision) -> int:
        """Return how often a decision's cell was tried in vain so far, whoever asked for it."""
        scored, reader = self.planned.scored(entry)[0], self.planned.reader
        return sum(reader.was_tried(one, scored.requirements) for one in self.ledger.history(scored.cell))

    def stands(self, entry: Decision, outcome: Outcome) -> bool:
        """Whether a record of a decision has this outcome and was not invalidated since.

        Newer ones may have another: all questions may have been asked after an early answer.
        """
        scored, reader = self.planned.scored(entry)[0], self.planned.reader
        newest = takewhile(lambda record: not record.is_invalidated, self.ledger.history(scored.cell))
        found = (reader.outcome(record, scored.requirements) for record in newest)
        return any(one is not None and one.as_json() == outcome.as_json() for one in found)

    def base_of(self, entry: Decision) -> Outcome | None:
        """Return what came of the base model of a decision's cell; None while it is not known."""
        base = self.planned.scored(entry)[1]
        record = self.ledger.read_record(base.cell)
        if record is None:
            return None
        reader = Reader(names_against_base(self.planned.search))  # a base model has no measures, of which others may be
        outcome = reader.outcome(record, base.requirements)
        # It is scored once, before anything is trained; another sweep's record may not have all yet.
        was_tried = outcome is None and reader.was_tried(record, base.requirements)
        return Outcome("given_up") if was_tried else outcome

    def spent_h(self, entries: Sequence[Decision]) -> float:
        """Return the hours that decisions have taken: of GPUs, or of this machine where none is used."""
        training, scoring = dict[str, float](), 0.0
        gpus = scoring_resources(self.planned.space.sweep.file.resources).gpus
        for scored in (self.planned.scored(entry)[0] for entry in entries if WAS_THERE not in entry):
            record = None if scored.cell in self._taken_s else self.ledger.read_record(scored.cell)
            trained_s, scored_s = (
                self._taken_s.get(scored.cell, (0.0, 0.0)) if record is None else taken_s(record, gpus)
            )
            if record is not None and record.status not in (Status.FAILED, Status.PARTIAL):
                self._taken_s[scored.cell] = trained_s, scored_s
            run = str(scored.trajectory)
            training[run] = max(training.get(run, 0.0), trained_s)  # up to an epoch, those before it included
            scoring += scored_s
        return (sum(training.values()) + scoring) / 3600
