"""Confirming: the best are trained with further seeds before a search ends, for the best of many is partly luck."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from massive_sft.search.objectives import limit_names, objective_values, violations
from massive_sft.search.outcomes import Outcome
from massive_sft.search.rules import Decision, Given, Rules, asks_of


def next_confirmation(rules: Rules, log: Sequence[Decision], given: Given) -> dict[str, Any] | None:
    """Return the next decision to train one of the best with another seed; None once all are decided.

    Args:
        given: the outcomes of everything that was asked.
    """
    confirm = rules.space.search.confirm
    if confirm is None:
        return None
    decided = {(entry["trial"], entry["with_seed"]) for entry in log if entry["kind"] == "confirm"}
    groups = rules.space.groups or (None,)
    for position, group in enumerate(groups):
        for place, entry in enumerate(_best(rules, log, given, position)[: confirm.top]):
            own = rules.space.point(entry["choice"], group).variant.setting.seed
            for seed in confirm.seeds:
                if seed != own and (entry["n"], seed) not in decided:
                    return {
                        "kind": "confirm",
                        "trial": entry["n"],
                        "group": position,
                        "choice": dict(entry["choice"]),
                        "with_seed": seed,
                        "cell": rules.seeded(entry["choice"], group, seed),
                        "model": entry["model"],
                        "given": {},
                        "given_hash": given.hash,
                        "why": {"place": place + 1},
                    }
    return None


def _best(rules: Rules, log: Sequence[Decision], given: Given, group: int) -> list[Decision]:
    """Return a group's complete decisions that keep the constraints, the best in the first objective first."""
    search = rules.space.search
    own = [entry for entry in asks_of(log) if entry["group"] == group]
    complete = [(entry, given.outcomes[entry["n"]]) for entry in own if entry["n"] in given.outcomes]
    able = [
        (entry, one) for entry, one in complete if one.kind == "complete" and _is_able(rules, entry, one, given.bases)
    ]
    values = objective_values(search, [one for _, one in able])
    order = sorted(range(len(able)), key=lambda index: (tuple(-value for value in values[index]), able[index][0]["n"]))
    return [able[index][0] for index in order]


def _is_able(rules: Rules, entry: Decision, outcome: Outcome, bases: Mapping[str, Outcome]) -> bool:
    if outcome.kind != "complete" or not limit_names(rules.space.search):
        return outcome.kind == "complete"
    return all(over <= 0 for over in violations(rules.space.search, outcome, bases.get(entry["model"])).values())
