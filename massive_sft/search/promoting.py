"""Rungs: which trainings go on to the next epoch that is looked at, and which checkpoint of the others is let go.

Asynchronous successive halving whose losers are parked, not stopped: whoever is among the better part of a rung, once
more results are there, goes on from its checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from massive_sft.search.objectives import objective_values
from massive_sft.search.proposing import versions
from massive_sft.search.rules import Decision, Given, Rules, trained_of, why_of


def next_promotion(rules: Rules, log: Sequence[Decision], given: Given) -> dict[str, Any] | None:
    """Return the decision to promote a training, or to drop a parked one; None where neither is due."""
    search = rules.space.search
    if search.rungs is None:
        return None
    for rung in range(len(search.rungs.at) - 2, -1, -1):
        for group in range(max(1, len(rules.space.groups))):
            found = _best_parked(rules, log, given, rung, group)
            if found is not None:
                return _promoted(rules, log, given, *found, rung + 1)
    return _drop(rules, log, given)


def ranked(rules: Rules, log: Sequence[Decision], given: Given, rung: int, group: int) -> list[tuple[float, Decision]]:
    """Return what is complete at a rung with its value, the best first; equal ones in the order of their decisions."""
    own = [entry for entry in _at(log, rung, group) if _kind(given, entry) == "complete"]
    values = objective_values(rules.space.search, [given.outcomes[entry["n"]] for entry in own])
    return sorted(
        ((value[0], entry) for value, entry in zip(values, own, strict=True)), key=lambda each: (-each[0], each[1]["n"])
    )


def _at(log: Sequence[Decision], rung: int, group: int) -> list[Decision]:
    return [entry for entry in trained_of(log) if entry["group"] == group and entry["rung"] == rung]


def _kind(given: Given, entry: Decision) -> str:
    outcome = given.outcomes.get(entry["n"])
    return "pending" if outcome is None else outcome.kind


def trial_of(entry: Decision) -> int:
    """Return the number of the decision that asked for a training first."""
    return int(entry.get("trial", entry["n"]))


def _best_parked(
    rules: Rules, log: Sequence[Decision], given: Given, rung: int, group: int
) -> tuple[Decision, int, int] | None:
    """Return what is promoted from a rung, its place there, and how many are; None where nothing is."""
    assert rules.space.search.rungs is not None
    known = sum(_kind(given, entry) != "pending" for entry in _at(log, rung, group))
    places = math.floor(known * rules.space.search.rungs.keep + 1e-9)
    gone = {trial_of(entry) for entry in _at(log, rung + 1, group)} | _dropped(log)
    for place, (_, entry) in enumerate(ranked(rules, log, given, rung, group)[:places]):
        if trial_of(entry) not in gone:
            return entry, place, known
    return None


def _promoted(
    rules: Rules, log: Sequence[Decision], given: Given, entry: Decision, place: int, known: int, rung: int
) -> dict[str, Any]:
    group = rules.space.groups[entry["group"]] if rules.space.groups else None
    own = [one for one in log if "cell" in one and one["group"] == entry["group"]]
    return {
        "kind": "promote",
        "trial": trial_of(entry),
        "group": entry["group"],
        "choice": dict(entry["choice"]),
        "cell": rules.cell_of(entry["choice"], group, rung),
        "model": entry["model"],
        "rung": rung,
        "given_hash": given.hash,
        "versions": versions(),
        "why": why_of(own, given) | {"place": place + 1, "of": known},
    }


def parked(log: Sequence[Decision], given: Given, top: int) -> Iterator[Decision]:
    """Yield the last decision of each training that waits for a promotion."""
    last: dict[int, Decision] = {trial_of(entry): entry for entry in trained_of(log)}
    gone = _dropped(log)
    yield from (
        entry
        for trial, entry in last.items()
        if trial not in gone and entry["rung"] < top and _kind(given, entry) == "complete"
    )


def _dropped(log: Sequence[Decision]) -> set[int]:
    return {entry["trial"] for entry in log if entry["kind"] == "drop"}


def _drop(rules: Rules, log: Sequence[Decision], given: Given) -> dict[str, Any] | None:
    """Return the decision to let the checkpoint of the least promising go, where all take more than they may."""
    rungs = rules.space.search.rungs
    assert rungs is not None
    if rules.parked_most is None:
        return None
    waiting = list(parked(log, given, len(rungs.at) - 1))
    taken = sum(rules.state_bytes(entry["model"]) for entry in waiting)
    if taken <= rules.parked_most:
        return None
    shares: Mapping[int, tuple[int, float]] = {
        trial_of(entry): (rung, -place / len(order))
        for rung in range(len(rungs.at))
        for group in range(max(1, len(rules.space.groups)))
        for order in [ranked(rules, log, given, rung, group)]
        for place, (_, entry) in enumerate(order)
    }
    worst = min(waiting, key=lambda entry: (shares[trial_of(entry)], -entry["n"]))
    return {
        "kind": "drop",
        "trial": trial_of(worst),
        "given_hash": given.hash,
        "why": {"bytes": taken, "at_most": rules.parked_most, "rung": worst["rung"]},
    }
