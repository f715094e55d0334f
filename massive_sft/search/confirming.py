"""Confirming: the best are trained with further seeds before a search ends, for the best of many is partly luck."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, TypeGuard

from massive_sft.search.cells import CellSpace
from massive_sft.search.objectives import count_objectives, limit_names, objective_values, violations
from massive_sft.search.outcomes import Outcome, objective_names
from massive_sft.search.rules import Decision, Given, Rules, asks_of, is_confirmation
from massive_sft.search.space import Space


def next_confirmation(rules: Rules, log: Sequence[Decision], given: Given) -> dict[str, Any] | None:
    """Return the next decision to train one of the best with another seed; None once all are decided.

    Args:
        given: the outcomes of everything that was asked.
    """
    confirm = rules.space.search.confirm
    if confirm is None:
        return None
    decided = {(entry["trial"], entry["with_seed"]) for entry in log if is_confirmation(entry)}
    for objective, ordered in _answers(rules, log, given):
        for place, entry in enumerate(ordered[: confirm.top]):
            group = rules.space.groups[entry["group"]] if rules.space.groups else None
            own = rules.space.point(entry["choice"], group).variant.setting.seed
            for seed in confirm.seeds:
                if seed != own and (entry["n"], seed) not in decided:
                    return {
                        "kind": "confirm",
                        "trial": entry["n"],
                        "group": entry["group"],
                        "choice": dict(entry["choice"]),
                        "with_seed": seed,
                        "cell": rules.seeded(entry["choice"], group, seed),
                        "model": entry["model"],
                        "given": {},
                        "given_hash": given.hash,
                        "why": {"place": place + 1, **objective},
                    }
    return None


def most_confirmations(space: Space | CellSpace) -> int:
    """Return how many decisions may confirm the best of a search, at most."""
    search = space.search
    if search.confirm is None:
        return 0
    own = set(_own_seeds(space))
    others = len(set(search.confirm.seeds) - own) if len(own) == 1 else len(search.confirm.seeds)
    models = len({cell.base for cell in space.cells}) if _has_one_for_each(space) else max(1, len(space.groups))
    return models * count_objectives(search) * search.confirm.top * others


def _own_seeds(space: Space | CellSpace) -> Iterator[int]:
    """Yield the seeds that settings have by themselves; of a range its ends."""
    if isinstance(space, CellSpace):
        yield from (cell.recipe.setting.seed for cell in space.cells if cell.recipe)
    else:
        ends = (*space.corners(), *space.corners(1.0))
        yield from (space.point(choice, group).variant.setting.seed for choice, group in ends)


def _has_one_for_each(space: Space | CellSpace) -> TypeGuard[CellSpace]:
    """Whether a search over cells, which has no groups, is to find the best of each model."""
    return isinstance(space, CellSpace) and space.target.for_each is not None


def _answers(rules: Rules, log: Sequence[Decision], given: Given) -> Iterator[tuple[dict[str, str], list[Decision]]]:
    """Yield, of each model that is searched for itself and each objective, the able decisions, the best first.

    With each comes what says of which objective, where there are several.
    """
    for group in range(max(1, len(rules.space.groups))):
        able = _able(rules, [entry for entry in asks_of(log) if entry["group"] == group], given)
        values = objective_values(rules.space.search, [given.outcomes[entry["n"]] for entry in able])
        of = [entry["model"] if _has_one_for_each(rules.space) else "" for entry in able]
        names = objective_names(rules.space.search)[: count_objectives(rules.space.search)]
        for model, (column, name) in product(dict.fromkeys(of), enumerate(names)):
            own = [index for index, other in enumerate(of) if other == model]
            own.sort(key=lambda index: (-values[index][column], *(-value for value in values[index]), able[index]["n"]))
            yield {"objective": name} if len(names) > 1 else {}, [able[index] for index in own]


def _able(rules: Rules, asks: Sequence[Decision], given: Given) -> list[Decision]:
    """Return the complete decisions that keep the constraints."""
    known = [(entry, given.outcomes[entry["n"]]) for entry in asks if entry["n"] in given.outcomes]
    return [entry for entry, outcome in known if _is_able(rules, entry, outcome, given.bases)]


def _is_able(rules: Rules, entry: Decision, outcome: Outcome, bases: Mapping[str, Outcome]) -> bool:
    if outcome.kind != "complete" or not limit_names(rules.space.search):
        return outcome.kind == "complete"
    return all(over <= 0 for over in violations(rules.space.search, outcome, bases.get(entry["model"])).values())
