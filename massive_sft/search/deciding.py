"""What a search decides next, as a function of what it is, of its decisions so far and of their outcomes.

Given the same, it decides the same: on any machine, however often it was killed, with however many lanes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from massive_sft.search.objectives import count_objectives, limit_names, objective_values, violations, worse_than_all
from massive_sft.search.promoting import next_promotion, ranked, trial_of
from massive_sft.search.proposing import Tried, propose, versions
from massive_sft.search.rules import Decision, Given, Rules, asks_of, number, trained_of, why_of
from massive_sft.search.space import Choice, Space

LAST = -1  # the rung of a search without rungs: its last snapshot
ENOUGH = 8  # complete trainings of a rung that a sampler is told of
TRIES = 20  # proposals of what was asked before, after which the nearest that was not is taken
MOST_LISTED = 20_000  # choices of a finite space that are gone through for it
FITS = "fits"  # the constraint that a training has room


def next_ask(rules: Rules, log: Sequence[Decision], given: Given) -> dict[str, Any] | None:
    """Return the next decision, but for its number and the hash of the one before; None where all was asked."""
    asks = asks_of(log)
    assert isinstance(rules.space, Space)
    if (promotion := next_promotion(rules, log, given)) is not None:
        return promotion
    if len(asks) >= (rules.space.search.trials or 0):
        return None
    groups: Sequence[str | None] = rules.space.groups or (None,)
    position = len(asks) % len(groups)
    own = [entry for entry in asks if entry["group"] == position]
    group, known = groups[position], {entry["cell"] for entry in asks}
    if rules.space.size is not None and len(own) >= rules.space.size:
        return None
    rung = 0 if rules.space.search.rungs else LAST
    tried = _as_tried(rules, _told(rules, log, own, given), given)
    for attempt in range(TRIES + 1):
        seed = number(rules.id, len(log), attempt)
        choice, sampler = _proposal(rules, len(own), attempt, tried, seed)
        if attempt == TRIES:
            found = _nearest(rules, choice, group, known, rung)
            if found is None:
                return None
            choice, sampler = found, "nearest"
        cell = rules.cell_of(choice, group, rung)
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
        **({"rung": rung} if rules.space.search.rungs else {}),
        "given_hash": given.hash,
        "versions": versions(),
        "why": why_of(own, given),
    }


def _told(rules: Rules, log: Sequence[Decision], own: Sequence[Decision], given: Given) -> Sequence[Decision]:
    """Return the decisions whose outcomes a sampler is told: of one rung, the highest that has enough of them.

    Besides those of lower rungs that are pending, had no room or diverged: there it is not to go again.
    """
    if rules.space.search.rungs is None or not own:
        return own
    group = own[0]["group"]
    trained = [one for one in trained_of(log) if one["group"] == group]
    for rung in range(len(rules.space.search.rungs.at) - 1, 0, -1):
        if len(ranked(rules, log, given, rung, group)) >= ENOUGH:
            last = {trial_of(one): one for one in trained}
            ended = [one for one in last.values() if one["rung"] < rung and not _is_complete(given, one)]
            return sorted([*(one for one in trained if one["rung"] == rung), *ended], key=lambda one: one["n"])
    return own


def _is_complete(given: Given, entry: Decision) -> bool:
    outcome = given.outcomes.get(entry["n"])
    return outcome is not None and outcome.kind == "complete"


def _proposal(rules: Rules, position: int, attempt: int, tried: Sequence[Tried], seed: int) -> tuple[Choice, str]:
    """Return a choice and what it comes from."""
    if position < len(rules.portfolio) and attempt == 0:
        return rules.portfolio[position], "portfolio"
    if position < len(rules.portfolio) + len(rules.start) and attempt == 0:
        return rules.start[position - len(rules.portfolio)], "start"
    if rules.sampler == "qmc":
        return rules.spread(position + attempt + 1)[-1], "qmc"
    objectives = len(tried[0].values or ()) if tried and tried[0].values else count_objectives(rules.space.search)
    sampler = "random" if attempt > TRIES // 2 else rules.sampler
    return propose(rules.space.axes, sampler, tried, objectives, seed), sampler


def _nearest(rules: Rules, choice: Choice, group: str | None, known: set[str], rung: int) -> Choice | None:
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
            else abs(axis.share(other[axis.name]) - axis.share(choice[axis.name]))
            for axis in axes
        )

    ordered = sorted(range(len(candidates)), key=lambda index: (distance(candidates[index]), index))
    return next(
        (candidates[index] for index in ordered if rules.cell_of(candidates[index], group, rung) not in known), None
    )


def _as_tried(rules: Rules, own: Sequence[Decision], given: Given) -> list[Tried]:
    """Return what the sampler is told of the decisions of a group."""
    outcomes = {entry["n"]: given.outcomes.get(entry["n"]) for entry in own}
    values = objective_values(
        rules.space.search, [one for one in outcomes.values() if one is not None and one.kind == "complete"]
    )
    complete = iter(values)
    worst = worse_than_all(values, count_objectives(rules.space.search))
    has_limits = bool(rules.space.search.constraints) or any(
        one is not None and one.kind == "infeasible" for one in outcomes.values()
    )
    tried = []
    for entry in own:
        outcome = outcomes[entry["n"]]
        if outcome is None:
            tried.append(Tried(entry["choice"]))
        elif outcome.kind == "complete":
            limits = violations(rules.space.search, outcome, given.bases.get(entry["model"])) if has_limits else None
            tried.append(Tried(entry["choice"], next(complete), None if limits is None else {FITS: -1.0, **limits}))
        elif outcome.kind != "given_up":
            fits = {FITS: 1.0 if outcome.kind == "infeasible" else -1.0}
            unknown = dict.fromkeys(limit_names(rules.space.search), 0.0)
            tried.append(Tried(entry["choice"], worst, {**fits, **unknown} if has_limits else None))
    return tried
