"""How far a search is: what was decided, what came of it, what is best so far, what the next decision waits for."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from massive_sft.core.wording import counted
from massive_sft.ledger.paths import is_id
from massive_sft.ledger.store import Ledger
from massive_sft.search.cells import CellSpace
from massive_sft.search.confirming import most_confirmations
from massive_sft.search.decider import Decider, points_of, trials_of
from massive_sft.search.decision_log import FOLDER, DecisionLog
from massive_sft.search.objectives import limit_names, objective_values, violations
from massive_sft.search.outcomes import Outcome
from massive_sft.search.plan import CALLED, Planned, plan_searches
from massive_sft.search.rules import Decision, asks_of, is_confirmation, trained_of
from massive_sft.sweep.load import Sweep

MOST_LISTED = 2_000  # choices of a space that are looked up in the ledger


@dataclass(frozen=True)
class Answer:
    """One answer that a search is to give.

    Attributes:
        of: which one, for people: the model, the benchmark, or nothing where there is one answer in all.
        entries: the decisions that give it; several where no one of them is better in all objectives.
    """

    of: str
    entries: Sequence[Decision]


@dataclass(frozen=True)
class Standing:
    """A search and its ledger.

    Attributes:
        entries: all decisions.
        outcomes: what is known, by decision.
        bases: of base models, by ``Decision["model"]``.
        waits_for: numbers of the decisions whose outcomes the next one needs and that have none.
        stale: numbers of those whose outcome later ones were given and that have it no longer.
        asks_no_more: whether everything was asked that is to be, but for what confirms the best.
    """

    planned: Planned
    entries: Sequence[Decision]
    outcomes: Mapping[int, Outcome]
    bases: Mapping[str, Outcome]
    waits_for: Sequence[int]
    is_over: bool
    stale: Sequence[int] = ()
    asks_no_more: bool = False

    @cached_property
    def asks(self) -> list[Decision]:
        """The decisions that asked for something new."""
        return asks_of(self.entries)

    @cached_property
    def trained(self) -> list[Decision]:
        """The decisions that had something trained: for the first time, or further."""
        return trained_of(self.entries)

    @property
    def counts(self) -> Counter[str]:
        """How many decisions came to what; ``pending`` are without an outcome."""
        return Counter(
            self.outcomes[entry["n"]].kind if entry["n"] in self.outcomes else "pending" for entry in self.trained
        )

    @property
    def left(self) -> int:
        """How many trials are still to be decided, at most."""
        return 0 if self.is_over or self.asks_no_more else max(0, trials_of(self.planned.space) - len(self.asks))

    @property
    def is_open(self) -> bool:
        """Whether it may still decide to have something trained."""
        return self.left + self.confirmations_left > 0

    @property
    def shortage(self) -> str:
        """That its space has fewer cells than it is to try, as a sentence; empty where it has enough."""
        trials, points = self.planned.search.trials, points_of(self.planned.space)
        if trials is None or points is None or trials <= points:
            return ""
        return f"its space has no more than {counted(points, 'cell')}, so it ends before trials: {trials:,}"

    @property
    def confirmations(self) -> int:
        """How many decisions confirm the best with another seed."""
        return sum(is_confirmation(entry) for entry in self.entries)

    @property
    def confirmations_left(self) -> int:
        """How many decisions may still confirm the best, at most."""
        return 0 if self.is_over else max(0, most_confirmations(self.planned.space) - self.confirmations)

    def values(self, group: int) -> dict[int, tuple[float, ...]]:
        """Return the objectives of a group's complete decisions, better when larger, by their numbers.

        With rungs, of the highest that has any.
        """
        own = [entry for entry in self.trained if entry["group"] == group and not is_confirmation(entry)]
        done = [entry for entry in own if (one := self.outcomes.get(entry["n"])) and one.kind == "complete"]
        top = max((entry.get("rung", 0) for entry in done), default=0)
        complete = [entry["n"] for entry in done if entry.get("rung", 0) == top]
        values = objective_values(self.planned.search, [self.outcomes[number] for number in complete])
        return dict(zip(complete, values, strict=True))

    def values_of(self, entries: Sequence[Decision]) -> dict[int, tuple[float, ...]]:
        """Return those of ``values`` that are of these decisions, whichever groups they are of."""
        groups = {entry["group"] for entry in entries}
        found = {number: own for group in groups for number, own in self.values(group).items()}
        return {entry["n"]: found[entry["n"]] for entry in entries if entry["n"] in found}

    def is_feasible(self, entry: Decision) -> bool:
        """Whether a complete decision keeps all constraints, as far as they can be judged."""
        rules = self.planned.rules
        if not limit_names(rules.space.search) or (rules.needs_bases and entry["model"] not in self.bases):
            return True
        broken = violations(rules.space.search, self.outcomes[entry["n"]], self.bases.get(entry["model"]))
        return all(over <= 0 for over in broken.values())

    def able(self, group: int) -> list[Decision]:
        """Return a group's complete decisions that keep all constraints, in their order."""
        values = self.values(group)
        return [entry for entry in self.trained if entry["n"] in values and self.is_feasible(entry)]

    def as_good_as(self, entry: Decision) -> list[Decision]:
        """Return the other decisions of its group with the very same values; of such the earliest is called best."""
        values = self.values(entry["group"])
        return [one for one in self.able(entry["group"]) if one is not entry and values[one["n"]] == values[entry["n"]]]

    @cached_property
    def answers(self) -> list[Answer]:
        """What is best so far.

        Of each model that is searched for itself: the decisions of which no other is better in all objectives. Over
        cells, each objective has an answer of its own.
        """
        space = self.planned.space
        if isinstance(space, CellSpace):
            return list(self._answers_over_cells(space))
        groups: Sequence[str | None] = space.groups or (None,)
        named = len(groups) > 1
        return [Answer(f"{group}" if named else "", self._front(position)) for position, group in enumerate(groups)]

    def _front(self, group: int) -> list[Decision]:
        values, able = self.values(group), self.able(group)
        front = [one for one in able if not any(_dominates(values[two["n"]], values[one["n"]]) for two in able)]
        return front[:1] if front and len(values[front[0]["n"]]) == 1 else front

    def _answers_over_cells(self, space: CellSpace) -> Iterator[Answer]:
        values, able = self.values(0), self.able(0)
        models = sorted({space.cell(entry["choice"]).coordinates.model for entry in able})
        for model in models if space.target.for_each else [""]:
            own = [one for one in able if model in ("", space.cell(one["choice"]).coordinates.model)]
            for position, objective in enumerate(space.target.objectives):
                best = max(own, key=lambda one: (values[one["n"]][position], -one["n"]), default=None)
                named = objective if len(space.target.objectives) > 1 else ""
                yield Answer(", ".join(filter(None, (named, model))), [] if best is None else [best])

    @property
    def best(self) -> list[Decision]:
        """The decisions that give an answer, in their order."""
        found = {entry["n"]: entry for answer in self.answers for entry in answer.entries}
        return [found[number] for number in sorted(found)]

    @cached_property
    def was_ahead(self) -> set[int]:
        """The numbers of the decisions that were the best of an objective and model when their outcome came."""
        found, ahead = set[int](), dict[tuple[int, str, int], float]()
        values = self.values_of(self.trained)
        for entry in (entry for entry in self.trained if entry["n"] in values and self.is_feasible(entry)):
            for position, value in enumerate(values[entry["n"]]):
                place = (entry["group"], entry["model"], position)
                if value > ahead.get(place, -math.inf):
                    ahead[place] = value
                    found.add(entry["n"])
        return found

    def confirmed(self, entry: Decision) -> list[Outcome]:
        """Return what came of a decision with other seeds."""
        seeds = [one["n"] for one in self.trained if is_confirmation(one) and one["trial"] == entry["n"]]
        return [self.outcomes[number] for number in seeds if number in self.outcomes]


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(a >= b for a, b in zip(one, other, strict=True)) and tuple(one) != tuple(other)


def find_standings(sweep: Sweep, ledger: Ledger) -> list[Standing]:
    """Return how far each search of a sweep is. Raises Corrupt where a log was edited."""
    found = []
    for planned in plan_searches(sweep):
        decider = Decider.of(planned, ledger)
        decider.look()
        stale, outcomes = decider.stale(), decider.outcomes()
        now = {number: decider.outcome_of(decider.entries[number]) for number in stale}
        read = {number: now.get(number, one) for number, one in outcomes.items()}
        outcomes = {number: one for number, one in read.items() if one is not None}
        needed = [entry["n"] for entry in decider.waits_for() if entry["n"] not in outcomes]
        first = {entry["model"]: entry for entry in reversed(decider.asks)}
        bases = {model: decider.base_of(entry) for model, entry in first.items()}
        known = {model: outcome for model, outcome in bases.items() if outcome is not None}
        ends = decider.is_over, stale, decider.asks_no_more
        found.append(Standing(planned, decider.entries, outcomes, known, needed, *ends))
    return found


def find_earlier(planned: Planned, ledger: Ledger) -> list[str]:
    """Return the ids of other searches that had this name in this sweep: what decides their sequence was another."""
    ids = [item.name for item in ledger.storage.list(FOLDER) if is_id(item.name) and item.name != planned.id]
    contents = {identity: DecisionLog(ledger.storage, identity).content() or {} for identity in sorted(ids)}
    return [identity for identity, content in contents.items() if content.get(CALLED) == planned.called]


def count_recorded(planned: Planned, ledger: Ledger) -> int | None:
    """Return how many cells of a search's space have a record; None where they cannot be listed."""
    space, points = planned.space, points_of(planned.space)
    if points is None or points > MOST_LISTED:
        return None
    places = [(choice, group) for group in space.groups or (None,) for choice in space.choices()]
    return len(ledger.entries({planned.rules.cell_of(choice, group, -1) for choice, group in places}))
