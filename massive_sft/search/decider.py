"""Decides for one search as far as outcomes allow, and writes each decision before anything is done about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from massive_sft.ledger.lease import Lease, LeaseWatch, this_process
from massive_sft.ledger.record import Status
from massive_sft.ledger.store import Ledger
from massive_sft.search.cells import CellSpace
from massive_sft.search.deciding import next_ask
from massive_sft.search.deciding_cells import judge_stop, next_cell
from massive_sft.search.decision_log import DecisionLog
from massive_sft.search.outcomes import Outcome
from massive_sft.search.plan import Asked, Planned
from massive_sft.search.rules import Decision, Given, Rules
from massive_sft.search.space import Space

OUT_OF_MEMORY = "out of memory"  # in what a record says of a training that had no room
_BASE = "base "  # before what a base model is known by, where a decision says what it was given


def trials_of(space: Space | CellSpace) -> int:
    """Return how many cells a search tries at most."""
    most = space.search.trials
    return most if most is not None else space.size if space.size is not None else 0


OutcomeOf = Callable[[Decision], Outcome | None]
"""Returns what came of a decision, or of the base model of one; None while it is not known."""


@dataclass
class Decider:
    """One search in this process.

    Attributes:
        begin: returns what it is, as its log is to keep it.
        is_exhausted: whether everything in its space was asked.
    """

    rules: Rules
    log: DecisionLog
    begin: Callable[[], Mapping[str, Any]]
    outcome_of: OutcomeOf
    base_of: OutcomeOf
    is_exhausted: bool = False
    _watch: LeaseWatch = field(default_factory=LeaseWatch)
    _lease: Lease | None = None
    _settled: dict[int, Outcome] = field(default_factory=dict)
    _bases: dict[str, Outcome] = field(default_factory=dict)
    _replayed: int = 0

    @classmethod
    def of(cls, planned: Planned, ledger: Ledger) -> Decider:
        """Return what decides for a search of a sweep, by the records of a ledger."""
        read = _RecordReader(planned, ledger)
        log = planned.log(ledger.storage)
        begin = partial(planned.begin, ledger)
        return cls(planned.begun(log.content()), log, begin, read.outcome_of, read.base_of)

    @property
    def entries(self) -> Sequence[Decision]:
        """All decisions so far, as far as ``look`` has seen them."""
        return self.log.entries

    def look(self) -> None:
        """Read what others have decided meanwhile. Raises Corrupt."""
        self.log.read()

    @property
    def asks(self) -> list[Decision]:
        """The decisions that asked for something new."""
        return [entry for entry in self.entries if entry["kind"] == "ask"]

    @property
    def trained(self) -> list[Decision]:
        """The decisions that had something trained: for the first time, or further."""
        return [entry for entry in self.entries if "cell" in entry]

    def lead(self) -> bool:
        """Take the right to decide, or keep it; return whether this process has it."""
        if self._lease is None:
            self._lease = self.log.lease(this_process(), self._watch)
            if self._lease is not None:
                content = self.log.content() or self.log.begin(self.begin())
                self.rules = replace(self.rules, portfolio=tuple(content.get("portfolio") or ()))
                self.look()
        return self._lease is not None

    def release(self) -> None:
        """Give the right to decide back."""
        if self._lease is not None:
            self._lease.release()
            self._lease = None

    @property
    def is_over(self) -> bool:
        """Whether it asks for no more."""
        has_all = self.rules.space.search.rungs is None and len(self.asks) >= trials_of(self.rules.space)
        return self.is_exhausted or self.is_stopped or has_all

    @property
    def is_stopped(self) -> bool:
        """Whether it was decided to stop, by the rule that the sweep file has now."""
        stop = self.rules.space.search.stop
        rule = None if stop is None else (stop.regret, stop.probability)
        ended = [(entry["regret"], entry["probability"]) for entry in self.entries if entry["kind"] == "stop"]
        return rule in ended

    def advance(self) -> list[Decision]:
        """Make and write every decision that can be made now; return those.

        Raises LeaseLost when somebody else took over.
        """
        before = len(self.entries)
        while not self.is_over and self._lease is not None:
            decided = self._next()
            if decided is None:
                break
            self.log.write(decided, self._lease)
        return list(self.entries[before:])

    def _next(self) -> dict[str, Any] | None:
        """Return the next decision; None while what it rests on is not known, or where nothing is left."""
        self._replay()
        arrived: dict[int, Outcome] = {}
        for entry in self._waited_for():
            outcome = self.outcome(entry)
            if outcome is None:
                return None
            if outcome.kind in ("given_up", "infeasible"):
                return {"kind": outcome.kind, "of": entry["n"], "given": {}}
            arrived[entry["n"]] = outcome
        bases = self._new_bases()
        if bases is None:
            return None
        while (draft := self._draft(Given(self._settled | arrived, self._bases | bases))) is None:
            later = [entry for entry in self.trained if entry["n"] not in self._settled | arrived]
            if self.rules.space.search.rungs is None or not later:
                self.is_exhausted = True
                return None
            outcome = self.outcome(later[0])  # a promotion may follow from it
            if outcome is None:
                return None
            if outcome.kind in ("given_up", "infeasible"):
                return {"kind": outcome.kind, "of": later[0]["n"], "given": {}}
            arrived[later[0]["n"]] = outcome
        new = {str(number): outcome for number, outcome in arrived.items()}
        new |= {f"{_BASE}{model}": outcome for model, outcome in bases.items()}
        return draft | {"given": {key: outcome.as_json() for key, outcome in new.items()}}

    def _draft(self, given: Given) -> dict[str, Any] | None:
        """Return the next decision, by what it is given; None where there is none."""
        if isinstance(self.rules.space, CellSpace):
            return judge_stop(self.rules, self.entries, given) or next_cell(self.rules, self.entries, given)
        return next_ask(self.rules, self.entries, given)

    def _replay(self) -> None:
        """Take over from the log what its decisions were given."""
        for entry in self.entries[self._replayed :]:
            if "of" in entry:
                self._settled[entry["of"]] = Outcome(entry["kind"])
            for key, content in entry["given"].items():
                if key.startswith(_BASE):
                    self._bases[key.removeprefix(_BASE)] = Outcome.of_json(content)
                else:
                    self._settled[int(key)] = Outcome.of_json(content)
        self._replayed = len(self.entries)

    def waits_for(self) -> list[Decision]:
        """Return the decisions whose outcomes the next one is given, known or not."""
        self._replay()
        return list(self._waited_for())

    def _waited_for(self) -> Iterator[Decision]:
        """Yield the decisions whose outcomes the next one is given, as far as no earlier one was.

        In the order of arrival: those that have one, and where as many as may be are without, the first of these.
        """
        search, number = self.rules.space.search, len(self.entries)
        left = [entry for entry in self.trained if entry["n"] not in self._settled]
        if search.order == "strict":
            yield from (entry for entry in left if entry["n"] <= number - search.at_once)
            return
        there = [entry for entry in left if self.outcome(entry) is not None]
        yield from there or (left[:1] if len(left) >= search.at_once else ())

    def _new_bases(self) -> dict[str, Outcome] | None:
        """Return the outcomes of base models that the next decision needs and has not; None while one is unknown."""
        groups = max(1, len(self.rules.space.groups))
        if not self.rules.needs_bases or len(self.asks) < self.rules.start_count * groups:
            return {}
        found: dict[str, Outcome] = {}
        for entry in self.asks:
            if entry["model"] not in self._bases and entry["model"] not in found:
                outcome = self.base_of(entry)
                if outcome is None:
                    return None
                found[entry["model"]] = outcome
        return found

    def outcome(self, entry: Decision) -> Outcome | None:
        """Return what came of a decision; None while that is not known."""
        known = self._settled.get(entry["n"])
        return known if known is not None else self.outcome_of(entry)

    def left(self) -> list[Decision]:
        """Return the decisions whose outcomes are not known."""
        self._replay()
        return [entry for entry in self.trained if self.outcome(entry) is None]

    def outcomes(self) -> dict[int, Outcome]:
        """Return what is known of all decisions, by their numbers: for views."""
        self._replay()
        found = {entry["n"]: self.outcome(entry) for entry in self.trained}
        return {number: outcome for number, outcome in found.items() if outcome is not None}


@dataclass(frozen=True)
class _RecordReader:
    """Reads what came of decisions from a ledger's records."""

    planned: Planned
    ledger: Ledger

    def outcome_of(self, entry: Decision) -> Outcome | None:
        return self._read(self.planned.asked(entry)[0])

    def base_of(self, entry: Decision) -> Outcome | None:
        return self._read(self.planned.asked(entry)[1])

    def _read(self, asked: Asked) -> Outcome | None:
        record = self.ledger.read_record(asked.cell)
        if record is None:
            return None
        outcome = self.planned.reader.outcome(record, asked.requirements)
        if outcome is not None:
            return outcome
        if record.status is Status.FAILED and OUT_OF_MEMORY in (record.error or "").lower():
            return Outcome("infeasible")
        tries = sum(one.status in (Status.FAILED, Status.PARTIAL) for one in self.ledger.history(asked.cell))
        return Outcome("given_up") if tries > self.planned.search.retries else None
