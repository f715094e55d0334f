"""Decides for one search as far as outcomes allow, and writes each decision before anything is done about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from massive_sft.ledger.lease import Lease, LeaseWatch, this_process
from massive_sft.ledger.store import Ledger
from massive_sft.search.cells import CellSpace
from massive_sft.search.confirming import next_confirmation
from massive_sft.search.deciding import next_ask
from massive_sft.search.deciding_cells import judge_stop, next_cell
from massive_sft.search.decision_log import DecisionLog
from massive_sft.search.outcomes import Outcome
from massive_sft.search.plan import Planned
from massive_sft.search.recorded import Recorded
from massive_sft.search.rules import Decision, Given, Rules, asks_of, trained_of
from massive_sft.search.space import Space

_IN_VAIN = ("given_up", "infeasible")  # kinds of outcomes that a later try may be better than
_BASE = "base "  # before what a base model is known by, where a decision says what it was given


def points_of(space: Space | CellSpace) -> int | None:
    """Return how many cells a space has, in all its groups; None where an axis is a range."""
    return None if space.size is None else space.size * max(1, len(space.groups))


def trials_of(space: Space | CellSpace) -> int:
    """Return how many cells a search tries at most."""
    return min((most for most in (space.search.trials, points_of(space)) if most is not None), default=0)


OutcomeOf = Callable[[Decision], Outcome | None]
"""Returns what came of a decision, or of the base model of one; None while it is not known."""


@dataclass
class Decider:
    """One search in this process.

    Attributes:
        begin: returns what it is, as its log is to keep it.
        budget_h: GPU-hours that it may take, or hours of this machine where no GPU is used; None without a budget.
        spent_h: returns the hours that decisions have taken.
        before: returns what a decision keeps of records that are there when it is written.
        stands: returns whether what once came of a decision still counts, though something else came of it since.
        needs_retraining: returns whether a decision waits for weights to be made again.
        is_exhausted: whether everything in its space was asked.
    """

    rules: Rules
    log: DecisionLog
    begin: Callable[[], Mapping[str, Any]]
    outcome_of: OutcomeOf
    base_of: OutcomeOf
    budget_h: float | None = None
    spent_h: Callable[[Sequence[Decision]], float] = lambda entries: 0.0
    before: Callable[[Decision], dict[str, Any]] = lambda entry: {}
    stands: Callable[[Decision, Outcome], bool] = lambda entry, outcome: False
    needs_retraining: Callable[[Decision], bool] = lambda entry: False
    is_exhausted: bool = False
    _watch: LeaseWatch = field(default_factory=LeaseWatch)
    _lease: Lease | None = None
    _settled: dict[int, Outcome] = field(default_factory=dict)
    _bases: dict[str, Outcome] = field(default_factory=dict)
    _replayed: int = 0
    _stale: list[int] | None = None

    @classmethod
    def of(cls, planned: Planned, ledger: Ledger) -> Decider:
        """Return what decides for a search of a sweep, by the records of a ledger."""
        log, found = planned.log(ledger.storage), Recorded(planned, ledger)
        return cls(
            planned.begun(log.content()),
            log,
            partial(planned.begin, ledger),
            found.outcome_of,
            found.base_of,
            planned.search.budget.gpu_hours,
            found.spent_h,
            found.before,
            found.stands,
            found.needs_retraining,
        )

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
        return asks_of(self.entries)

    @property
    def trained(self) -> list[Decision]:
        """The decisions that had something trained: for the first time, or further."""
        return trained_of(self.entries)

    def lead(self) -> bool:
        """Take the right to decide, or keep it; return whether this process has it."""
        if self._lease is None:
            self._lease = self.log.lease(this_process(), self._watch)
            if self._lease is not None:
                content = self.log.content() or self.log.begin(self.begin())
                self.rules = replace(self.rules, portfolio=tuple(content.get("portfolio") or ()))
                self.look()
                self._stale = None
        return self._lease is not None

    def release(self) -> None:
        """Give the right to decide back."""
        if self._lease is not None:
            self._lease.release()
            self._lease = None

    def stale(self) -> list[int]:
        """Return the decisions whose outcomes later ones were given and that have no longer the same: invalidated.

        All are looked at once, and again when this process begins to decide; afterwards those that were stale then.
        """
        self._replay()
        looked_at: Iterable[int] = self._settled if self._stale is None else self._stale
        self._stale = sorted(number for number in looked_at if self._is_stale(self.entries[number]))
        return self._stale

    def _is_stale(self, entry: Decision) -> bool:
        known, now = self._settled[entry["n"]], self.outcome_of(entry)
        if known.kind in _IN_VAIN:
            return False  # what became of it since is another try's
        return now is None or (now.as_json() != known.as_json() and not self.stands(entry, known))

    @property
    def is_over(self) -> bool:
        """Whether it decides nothing more, unless the sweep file asks for more."""
        if stale := self.stale():
            return all(self.outcome_of(self.entries[number]) is not None for number in stale)
        if not self.asks_no_more or self.rules.space.search.confirm is None:
            return self.asks_no_more
        given = self._given_of_all()
        return given is not None and next_confirmation(self.rules, self.entries, given) is None

    @property
    def asks_no_more(self) -> bool:
        """Whether everything was asked that is to be, but for what confirms the best."""
        if self.budget_h is not None and self.spent_h(self.trained) >= self.budget_h:
            return True
        if self.is_exhausted or self.is_stopped or len(self.asks) < trials_of(self.rules.space):
            return self.is_exhausted or self.is_stopped
        # With rungs something may be promoted yet, which is seen as it is decided.
        return self.rules.space.search.rungs is None or (self._next() is None and self.is_exhausted)

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
        while not self.stale() and not self.is_over and self._lease is not None:
            decided = self._confirmation() if self.asks_no_more else self._next()
            if decided is None:
                break
            self.log.write(decided | (self.before(decided) if "cell" in decided else {}), self._lease)
        return list(self.entries[before:])

    def _confirmation(self) -> dict[str, Any] | None:
        """Return the next decision that confirms one of the best; None while not all outcomes are known."""
        given = self._given_of_all()
        draft = None if given is None else next_confirmation(self.rules, self.entries, given)
        if given is None or draft is None:
            return None
        new = {model: outcome for model, outcome in given.bases.items() if outcome != self._bases.get(model)}
        return draft | {"given": _written({}, new)}

    def _given_of_all(self) -> Given | None:
        """Return the outcomes of everything that was asked, and of base models; None while one is not known."""
        outcomes, bases = self.outcomes(), self._new_bases()
        if bases is None or any(entry["n"] not in outcomes for entry in self.asks):
            return None
        asked = {entry["n"]: outcomes[entry["n"]] for entry in self.asks}
        return Given(asked, self._bases | bases)

    def _next(self) -> dict[str, Any] | None:
        """Return the next decision; None while what it rests on is not known, or where nothing is left."""
        self._replay()
        arrived = self._made_up_for()
        for entry in self._waited_for():
            outcome = self.outcome(entry)
            if outcome is None:
                return None
            if outcome.kind in _IN_VAIN:
                return {"kind": outcome.kind, "of": entry["n"], "given": {}}
            arrived[entry["n"]] = outcome
        # The start's choices rest on no outcome.
        groups = max(1, len(self.rules.space.groups))
        bases = self._new_bases() if len(self.asks) >= self.rules.start_count * groups else {}
        if bases is None:
            return None
        while (draft := self.decided(self.entries, Given(self._settled | arrived, self._bases | bases))) is None:
            later = [entry for entry in self.trained if entry["n"] not in self._settled | arrived]
            if self.rules.space.search.rungs is None or not later:
                self.is_exhausted = True
                return None
            outcome = self.outcome(later[0])  # a promotion may follow from it
            if outcome is None:
                return None
            if outcome.kind in _IN_VAIN:
                return {"kind": outcome.kind, "of": later[0]["n"], "given": {}}
            arrived[later[0]["n"]] = outcome
        return draft | {"given": _written(arrived, bases)}

    def decided(self, entries: Sequence[Decision], given: Given) -> dict[str, Any] | None:
        """Return the decision after these, by what it is given, but for what confirms; None where there is none."""
        if isinstance(self.rules.space, CellSpace):
            return judge_stop(self.rules, entries, given) or next_cell(self.rules, entries, given)
        return next_ask(self.rules, entries, given)

    def _replay(self) -> None:
        """Take over from the log what its decisions were given."""
        for entry in self.entries[self._replayed :]:
            take_given(entry, self._settled, self._bases)
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
        """Return what constraints need to know of base models and no decision was given; None while one is unknown.

        One that was given up is looked at again, for the next run scores it.
        """
        found: dict[str, Outcome] = {}
        first = {entry["model"]: entry for entry in reversed(self.asks)} if self.rules.needs_bases else {}
        for model, entry in first.items():
            known = self._bases.get(model)
            if known is None or known.kind == "given_up":
                outcome = self.base_of(entry) or known
                if outcome is None:
                    return None
                found |= {} if outcome == known else {model: outcome}
        return found

    def outcome(self, entry: Decision) -> Outcome | None:
        """Return what came of a decision; None while that is not known."""
        known = self._settled.get(entry["n"])
        if known is None:
            return self.outcome_of(entry)
        now = self.outcome_of(entry) if known.kind in _IN_VAIN else None
        return now if now is not None and now.kind == "complete" else known

    def _made_up_for(self) -> dict[int, Outcome]:
        """Return what came of decisions that had been in vain, where a later try made up for it."""
        again = {
            number: self.outcome(self.entries[number]) for number, one in self._settled.items() if one.kind in _IN_VAIN
        }
        return {number: one for number, one in again.items() if one is not None and one.kind == "complete"}

    def left(self) -> list[Decision]:
        """Return the decisions whose outcomes are not known."""
        self._replay()
        undone = {number for number in self.stale() if self.outcome_of(self.entries[number]) is None}
        return [entry for entry in self.trained if entry["n"] in undone or self.outcome(entry) is None]

    def outcomes(self) -> dict[int, Outcome]:
        """Return what is known of all decisions, by their numbers: for views."""
        self._replay()
        found = {entry["n"]: self.outcome(entry) for entry in self.trained}
        return {number: outcome for number, outcome in found.items() if outcome is not None}


def _written(outcomes: Mapping[int, Outcome], bases: Mapping[str, Outcome]) -> dict[str, Any]:
    """Return what a decision says that it was given."""
    given = {str(number): outcome for number, outcome in outcomes.items()}
    given |= {f"{_BASE}{model}": outcome for model, outcome in bases.items()}
    return {key: outcome.as_json() for key, outcome in given.items()}


def take_given(entry: Decision, outcomes: dict[int, Outcome], bases: dict[str, Outcome]) -> None:
    """Add what a decision was given to what those before it were: outcomes by decision, and those of base models."""
    if "of" in entry:
        outcomes[entry["of"]] = Outcome(entry["kind"])
    for key, content in entry["given"].items():
        if key.startswith(_BASE):
            bases[key.removeprefix(_BASE)] = Outcome.of_json(content)
        else:
            outcomes[int(key)] = Outcome.of_json(content)
