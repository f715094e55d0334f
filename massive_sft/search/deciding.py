"""What a search decides next, as a function of what it is, of its decisions so far and of their outcomes.

Given the same, it decides the same: on any machine, however often it was killed, with however many lanes.
"""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from massive_sft.core.fingerprint import fingerprint
from massive_sft.search.outcomes import Outcome, objective_names
from massive_sft.search.proposing import Tried, propose, spread, versions
from massive_sft.search.space import Choice, Space
from massive_sft.sweep.schema import Mean

TRIES = 20  # proposals of what was asked before, after which the nearest that was not is taken
MOST_LISTED = 20_000  # choices of a finite space that are gone through for it
WORST_SD = 1.0  # standard deviations below the worst that a diverged training counts as
FITS = "fits"  # the constraint that a training has room

Decision = Mapping[str, Any]


@dataclass(frozen=True)
class Rules:
    """What decides a search's sequence.

    Attributes:
        id: of all of it.
        cell_of: returns the id of the cell whose scores a choice is judged by, in a group.
        model_of: returns what hashes the model of a choice, in a group; bases are known by it.
    """

    id: str
    space: Space
    cell_of: Callable[[Choice, str | None], str]
    model_of: Callable[[Choice, str | None], str]

    @cached_property
    def sampler(self) -> Literal["tpe", "gp", "qmc", "random"]:
        """What proposes after the start."""
        named = self.space.search.sampler
        if named != "auto":
            return named
        return "tpe" if any(axis.kind == "names" for axis in self.space.axes) else "gp"

    @property
    def start_count(self) -> int:
        """How many choices of each group come before the sampler's."""
        count = self.space.search.start.qmc
        return 2 * len(self.space.axes) + 2 if count is None else count

    @cached_property
    def start(self) -> list[Choice]:
        """The first choices of each group."""
        return self.spread(self.start_count)

    def spread(self, count: int) -> list[Choice]:
        """Return choices spread evenly; the first of more are the same."""
        return spread(self.space.axes, count, number(self.id, "spread"))

    @property
    def needs_bases(self) -> bool:
        """Whether a constraint is against the base models' scores."""
        bounds = self.space.search.constraints.values()
        return any(isinstance(limit, str) for bound in bounds for limit in (bound.at_least, bound.at_most))


@dataclass(frozen=True)
class Given:
    """What a decision may rest on.

    Attributes:
        outcomes: by the number of the decision that asked for it.
        bases: of base models, by ``Rules.model_of``.
    """

    outcomes: Mapping[int, Outcome]
    bases: Mapping[str, Outcome]

    @property
    def hash(self) -> str:
        """Of all of it."""
        asked = {str(key): outcome.as_json() for key, outcome in sorted(self.outcomes.items())}
        return fingerprint({**asked, **{f"base {key}": self.bases[key].as_json() for key in sorted(self.bases)}})


def number(search: str, *parts: object) -> int:
    """Return the seed of something in a search: 32 bits of a hash."""
    text = "/".join([search, *map(str, parts)])
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)


def next_ask(rules: Rules, log: Sequence[Decision], given: Given) -> dict[str, Any] | None:
    """Return the next decision, but for its number and the hash of the one before; None where all was asked."""
    asks = [entry for entry in log if entry["kind"] == "ask"]
    groups: Sequence[str | None] = rules.space.groups or (None,)
    position = len(asks) % len(groups)
    own = [entry for entry in asks if entry["group"] == position]
    group, known = groups[position], {entry["cell"] for entry in asks}
    if rules.space.size is not None and len(own) >= rules.space.size:
        return None
    tried = _as_tried(rules, own, given)
    for attempt in range(TRIES + 1):
        seed = number(rules.id, len(log), attempt)
        choice, sampler = _proposal(rules, len(own), attempt, tried, seed)
        if attempt == TRIES:
            found = _nearest(rules, choice, group, known)
            if found is None:
                return None
            choice, sampler = found, "nearest"
        cell = rules.cell_of(choice, group)
        if cell not in known:
            break
    return {
        "kind": "ask",
        "group": position,
        "choice": dict(choice),
        "cell": cell,
        "model": rules.model_of(choice, group),
        "sampler": sampler,
        "seed": seed,
        "try": attempt,
        "given_hash": given.hash,
        "versions": versions(),
        "why": _why(own, given),
    }


def _proposal(rules: Rules, position: int, attempt: int, tried: Sequence[Tried], seed: int) -> tuple[Choice, str]:
    """Return a choice and what it comes from."""
    if position < len(rules.start) and attempt == 0:
        return rules.start[position], "start"
    if rules.sampler == "qmc":
        return rules.spread(position + attempt + 1)[-1], "qmc"
    objectives = len(tried[0].values or ()) if tried and tried[0].values else _objectives(rules)
    sampler: Literal["tpe", "gp", "random"] = "random" if attempt > TRIES // 2 else rules.sampler
    return propose(rules.space.axes, sampler, tried, objectives, seed), sampler


def _objectives(rules: Rules) -> int:
    written = rules.space.search.objective.maximize or rules.space.search.objective.minimize
    return 1 if isinstance(written, Mean) else len(written or ())


def _nearest(rules: Rules, choice: Choice, group: str | None, known: set[str]) -> Choice | None:
    """Return the choice nearest to one of which the cell was not asked; None where there is none."""
    axes = rules.space.axes
    if rules.space.size is None or rules.space.size > MOST_LISTED:
        candidates: Sequence[Choice] = rules.spread(4 * TRIES + len(known))
    else:
        candidates = list(rules.space.choices())

    def distance(other: Choice) -> float:
        return math.fsum(
            (other[axis.name] != choice[axis.name])
            if axis.kind == "names"
            else abs(_place(axis, other) - _place(axis, choice))
            for axis in axes
        )

    ordered = sorted(range(len(candidates)), key=lambda index: (distance(candidates[index]), index))
    return next((candidates[index] for index in ordered if rules.cell_of(candidates[index], group) not in known), None)


def _place(axis: Any, choice: Choice) -> float:
    """Return where a choice is on an axis, from 0 to 1."""
    value = float(choice[axis.name])
    if not axis.is_range:
        return value / max(1, len(axis.values) - 1)
    low, high = axis.ends
    return math.log(value / low) / math.log(high / low) if axis.kind == "log" else (value - low) / (high - low)


def _as_tried(rules: Rules, own: Sequence[Decision], given: Given) -> list[Tried]:
    """Return what the sampler is told of the decisions of a group."""
    outcomes = {entry["n"]: given.outcomes.get(entry["n"]) for entry in own}
    values = objective_values(rules, [one for one in outcomes.values() if one is not None and one.kind == "complete"])
    complete = iter(values)
    worst = _worse_than_all(values, _objectives(rules))
    has_limits = bool(rules.space.search.constraints) or any(
        one is not None and one.kind == "infeasible" for one in outcomes.values()
    )
    tried = []
    for entry in own:
        outcome = outcomes[entry["n"]]
        if outcome is None:
            tried.append(Tried(entry["choice"]))
        elif outcome.kind == "complete":
            limits = violations(rules, outcome, given.bases.get(entry["model"])) if has_limits else None
            tried.append(Tried(entry["choice"], next(complete), None if limits is None else {FITS: -1.0, **limits}))
        elif outcome.kind != "given_up":
            fits = {FITS: 1.0 if outcome.kind == "infeasible" else -1.0}
            unknown = dict.fromkeys(limit_names(rules), 0.0)
            tried.append(Tried(entry["choice"], worst, {**fits, **unknown} if has_limits else None))
    return tried


def objective_values(rules: Rules, complete: Sequence[Outcome]) -> list[tuple[float, ...]]:
    """Return the objectives of outcomes, better when larger."""
    objective = rules.space.search.objective
    written = objective.maximize or objective.minimize
    sign = 1.0 if objective.maximize is not None else -1.0
    names = objective_names(rules.space.search)
    columns = {name: [sign * one.values[name] for one in complete] for name in names}
    if isinstance(written, Mean):
        if written.scale == "z":
            columns = {name: _standardized(column) for name, column in columns.items()}
        return [(math.fsum(row) / len(names),) for row in zip(*columns.values(), strict=True)]
    return list(zip(*columns.values(), strict=True))


def _standardized(column: Sequence[float]) -> list[float]:
    """Return a column around its mean, in units of its spread; as it is around its mean where it has none."""
    if not column:
        return []
    mean, spread_of = statistics.fmean(column), statistics.pstdev(column)
    return [(value - mean) / (spread_of or 1.0) for value in column]


def _worse_than_all(values: Sequence[tuple[float, ...]], objectives: int) -> tuple[float, ...]:
    """Return what a diverged training counts as: the worst of each objective less one standard deviation."""
    if not values:
        return (-WORST_SD,) * objectives
    columns = list(zip(*values, strict=True))
    return tuple(min(column) - WORST_SD * (statistics.pstdev(column) or 1.0) for column in columns)


def limit_names(rules: Rules) -> list[str]:
    """Return the names of a search's constraints."""
    return [
        f"{name} {side}"
        for name, bound in rules.space.search.constraints.items()
        for side in ("at_least", "at_most")
        if getattr(bound, side) is not None
    ]


def violations(rules: Rules, outcome: Outcome, base: Outcome | None) -> dict[str, float]:
    """Return by how much an outcome breaks each constraint; none above 0 where it keeps it."""
    found: dict[str, float] = {}
    for limit in limit_names(rules):
        name, _, side = limit.rpartition(" ")
        written = getattr(rules.space.search.constraints[name], side)
        if isinstance(written, str):
            offset = float(written.removeprefix("base").replace(" ", "") or 0.0)
            bound = (base.values[name] if base is not None else 0.0) + offset
        else:
            bound = float(written)
        over = outcome.values[name] - bound
        found[limit] = -over if side == "at_least" else over
    return found


def _why(own: Sequence[Decision], given: Given) -> dict[str, Any]:
    """Return what a decision had to go by, for people."""
    known = [given.outcomes[entry["n"]].kind for entry in own if entry["n"] in given.outcomes]
    counts = {kind: known.count(kind) for kind in sorted(set(known))}
    return {"given": counts, "pending": len(own) - len(known)}
