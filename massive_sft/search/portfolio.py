"""What was best for other models: the first choices of a search, from what the ledger has already."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from massive_sft.core.errors import Corrupt
from massive_sft.core.fingerprint import fingerprint
from massive_sft.ledger.record import Record, Status
from massive_sft.ledger.store import Ledger
from massive_sft.planning.requirements import Requirement
from massive_sft.search.objectives import objective_values
from massive_sft.search.outcomes import Outcome, Reader
from massive_sft.search.space import Axis, Choice, Space
from massive_sft.sweep.content import flattened

NEAR = 0.02  # of the length of an axis: values this near are one choice


def find_portfolio(
    space: Space, reader: Reader, asked: Sequence[Requirement], own: Mapping[str, str], ledger: Ledger, count: int
) -> list[Choice]:
    """Return so many choices, at most: for each other model and training set in turn what was best, then second best.

    Args:
        asked: of a cell of the search, by whose labels other cells are read.
        own: what hashes the search's models: what is known of them is no transfer.
    """
    tasks = defaultdict[str, list[tuple[Choice, Outcome]]](list)
    for record, content in _others(ledger, own):
        choice, outcome = choice_of(space, content), _outcome(reader, asked, record)
        if choice is not None and outcome is not None:
            tasks[f"{fingerprint(content['base'])} {fingerprint(content['data'])}"].append((choice, outcome))
    orders = []
    for _, known in sorted(tasks.items()):
        values = objective_values(space.search, [outcome for _, outcome in known])
        ranked = sorted(range(len(known)), key=lambda i, of=values: (-math.fsum(of[i]), i))  # type: ignore[misc]
        orders.append([known[index][0] for index in ranked])
    found: list[Choice] = []
    for place in range(max(map(len, orders), default=0)):
        for order in orders:
            if place < len(order) and not any(_is_near(space, order[place], other) for other in found):
                found.append(order[place])
    return found[:count]


def _others(ledger: Ledger, own: Mapping[str, str]) -> Iterator[tuple[Record, Mapping[str, Any]]]:
    for cell, entry in sorted(ledger.entries().items()):
        if entry.status is not Status.COMPLETE:
            continue
        with suppress(FileNotFoundError, Corrupt):
            content = ledger.read_cell(cell)
            record = ledger.read_record(cell) if "setting" in content else None
            if record is not None and fingerprint(content["base"]) not in own.values():
                yield record, content


def _outcome(reader: Reader, asked: Sequence[Requirement], record: Record) -> Outcome | None:
    """Return a record's outcome by the labels of benchmarks: another model's ends of answers make another id."""
    answered = {one.benchmark: one.asked for one in record.scores.values()}
    alike = [_renamed(item, answered[item.label]) if item.label in answered else item for item in asked]
    outcome = reader.outcome(record, alike)
    return outcome if outcome is not None and outcome.kind == "complete" else None


def _renamed(item: Requirement, identity: str) -> Requirement:
    return replace(item, id=identity)


def choice_of(space: Space, content: Mapping[str, Any]) -> Choice | None:
    """Return the choice nearest to what a cell is; None where the space has none like it."""
    fields = dict(flattened(content["setting"]))
    own = dict(flattened(space.content_of_setting()))
    if fields.get("method") != own.get("method"):
        return None
    choice: dict[str, float | int] = {}
    for axis in space.axes:
        if axis.name == "mixture":
            parts = sorted(fingerprint(part) for part in content["data"]["parts"])
            value: Any = fingerprint({"parts": parts, "sample_seed": content["data"]["sample_seed"]})
            place = axis.contents.index(value) if value in axis.contents else 0
        elif axis.name == "model":
            place = 0
        else:
            value = fields.get(axis.name)
            if axis.times is not None and isinstance(value, int | float):
                value = value / (fields.get(axis.times) or value)
            found = _nearest(axis, value)
            if found is None:
                return None
            place = found  # type: ignore[assignment]
        choice[axis.name] = place
    return choice


def _nearest(axis: Axis, value: Any) -> float | int | None:
    if axis.is_range:
        is_within = isinstance(value, int | float) and axis.ends[0] <= value <= axis.ends[1]
        return axis.rounded(value) if is_within else None
    if axis.kind == "ordered" and isinstance(value, int | float):
        return min(range(len(axis.values)), key=lambda index: abs(_ratio(axis.values[index], value)))
    return axis.values.index(value) if value in axis.values else None


def _ratio(one: float, other: float) -> float:
    """Return how far two numbers are apart, as the logarithm of their ratio."""
    return math.log(max(one, 1e-30) / max(other, 1e-30))


def _is_near(space: Space, one: Choice, other: Choice) -> bool:
    return all(abs(axis.share(one[axis.name]) - axis.share(other[axis.name])) <= NEAR for axis in space.axes)
