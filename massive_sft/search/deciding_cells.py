"""What a search over cells decides next, by a surrogate of its own, and when it stops; a function like ``deciding``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from massive_sft.search.cells import CANDIDATE, CellSpace
from massive_sft.search.objectives import objective_values
from massive_sft.search.observations import Outcome as Observation
from massive_sft.search.outcomes import Outcome, objective_names
from massive_sft.search.proposing import versions
from massive_sft.search.rules import Decision, Given, Rules, asks_of, number, why_of
from massive_sft.sweep.schema import Mean


def next_cell(rules: Rules, log: Sequence[Decision], given: Given) -> dict[str, Any] | None:
    """Return the next decision, but for its number and the hash of the one before; None where all were asked."""
    space, asks = rules.space, asks_of(log)
    assert isinstance(space, CellSpace)
    from massive_sft.search.surrogate.asking import propose

    asked = {int(entry["choice"][CANDIDATE]) for entry in asks}
    left = set(range(space.size)) - asked
    if not left:
        return None
    seed = number(rules.id, len(log), 0)
    if len(asks) < space.start:
        return _asked(rules, asks, len(asks), seed, given, {})
    found = propose(space.candidates, space.target, observed(rules, asks, given), seed, left)[0]
    means = zip(space.target.objectives, found.mean, found.sd, strict=True)
    expected = {name: {"mean": mean, "sd": sd} for name, mean, sd in means}
    aim = {"objective": found.objective, "model": found.level, "gain": found.acquisition, "expected": expected}
    return _asked(rules, asks, found.candidate, seed, given, {} if found.objective is None else aim)


def _asked(
    rules: Rules, asks: Sequence[Decision], candidate: int, seed: int, given: Given, aim: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the decision to try a candidate; ``aim`` is what the surrogate expects of it, empty at the start."""
    assert isinstance(rules.space, CellSpace)
    choice = {CANDIDATE: candidate}
    return {
        "kind": "ask",
        "group": 0,
        "choice": choice,
        "cell": rules.space.cell(choice).id,
        "model": rules.model_of(choice, None),
        "sampler": "surrogate" if aim else "start",
        "seed": seed,
        "try": 0,
        "given_hash": given.hash,
        "versions": versions(),
        "why": {**why_of(asks, given), **aim},
    }


def observed(rules: Rules, asks: Sequence[Decision], given: Given) -> list[Observation]:
    """Return what the surrogate is told of the decisions: not those that were given up, of which nothing is known."""
    known = [entry for entry in asks if (one := given.outcomes.get(entry["n"])) is not None and one.kind == "complete"]
    values = dict(
        zip(
            (entry["n"] for entry in known),
            objective_values(rules.space.search, [given.outcomes[entry["n"]] for entry in known]),
            strict=True,
        )
    )
    told = []
    for entry in asks:
        outcome, candidate = given.outcomes.get(entry["n"]), int(entry["choice"][CANDIDATE])
        if outcome is None:
            told.append(Observation(candidate, status="pending"))
        elif outcome.kind == "complete":
            told.append(Observation(candidate, values[entry["n"]], _variances(rules, outcome)))
        elif outcome.kind != "given_up":
            told.append(Observation(candidate, status="diverged"))
    return told


def _variances(rules: Rules, outcome: Outcome) -> tuple[float, ...]:
    """Return the variances of an outcome's objectives; none where one is not known, or they are scaled."""
    objective = rules.space.search.objective
    written = objective.maximize or objective.minimize
    names = objective_names(rules.space.search)
    if not set(names) <= outcome.errors.keys():
        return ()
    errors = [outcome.errors[name] ** 2 for name in names]
    if isinstance(written, Mean):
        return () if written.scale == "z" else (math.fsum(errors) / len(errors) ** 2,)
    return tuple(errors)


def judge_stop(rules: Rules, log: Sequence[Decision], given: Given) -> dict[str, Any] | None:
    """Return the decision to stop a search over cells, or not to; None where that is not to be judged now."""
    search, space = rules.space.search, rules.space
    asks = asks_of(log)
    if search.stop is None or not isinstance(space, CellSpace) or not asks or len(asks) % search.at_once:
        return None
    if log[-1]["kind"] in ("stop", "go_on") or not any(one.kind == "complete" for one in given.outcomes.values()):
        return None
    from massive_sft.search.surrogate.stopping import judge

    seed = number(rules.id, len(log), "stop")
    told, stop = observed(rules, asks, given), search.stop
    given_up = {int(entry["choice"][CANDIDATE]) for entry in asks} - {one.candidate for one in told}
    verdict = judge(space.candidates, space.target, told, seed, stop.regret, stop.probability, given_up)
    return {
        "kind": "stop" if verdict.stop else "go_on",
        "regret": search.stop.regret,
        "probability": search.stop.probability,
        "seed": seed,
        "given_hash": given.hash,
        "versions": versions(),
        "why": {"probability": verdict.probability, "regret": verdict.regret},
    }
