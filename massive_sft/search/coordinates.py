"""Where what a search tried lies on each axis of its space, 0 to 1: for charts and for what an axis matters."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from massive_sft.search.cells import CellSpace
from massive_sft.search.rules import Decision
from massive_sft.search.space import Axis, Space
from massive_sft.search.view import as_text
from massive_sft.search.weights import shares_of
from massive_sft.sweep.spec import Mixture

PARTS = ("model", "data", "setting", "variant", "schedule", "horizon", "epoch", "seed")  # of a cell's coordinates


@dataclass(frozen=True)
class Coordinate:
    """One axis, and where each of some decisions lies on it.

    Attributes:
        name: of the axis.
        ends: what is at 0 and at 1, for people.
        shares: of the decisions, in their order.
        levels: of the decisions: what is alike of values that are; equal shares where the axis is a range.
        is_range: whether values in between were possible.
        untried: what of a list no decision has.
    """

    name: str
    ends: tuple[str, str]
    shares: Sequence[float]
    levels: Sequence[Hashable]
    is_range: bool = False
    untried: Sequence[str] = ()


def coordinates(space: Space | CellSpace, entries: Sequence[Decision]) -> list[Coordinate]:
    """Return where decisions that had something trained lie on each axis of which they may differ."""
    if isinstance(space, Space):
        return [_on_axis(axis, [entry["choice"][axis.name] for entry in entries]) for axis in space.axes]
    cells = [space.cell(entry["choice"]) for entry in entries]
    if space.has_weights:
        every = [shares_of(cell.recipe.mixture) for cell in space.cells if cell.recipe]
        own = [shares_of(cell.recipe.mixture) for cell in cells if cell.recipe]
        return [_share_of(name, every, own) for name in sorted({name for one in every for name in one})]
    found = []
    for part in PARTS:
        levels = sorted({getattr(cell.coordinates, part) for cell in space.cells}, key=_in_order)
        if len(levels) > 1:
            tried = [getattr(cell.coordinates, part) for cell in cells]
            found.append(_among(part, [str(level) for level in levels], [levels.index(level) for level in tried]))
    return found


def _on_axis(axis: Axis, choices: Sequence[float | int]) -> Coordinate:
    if axis.is_range:
        shares = [axis.share(choice) for choice in choices]
        return Coordinate(axis.name, (as_text(axis.ends[0]), as_text(axis.ends[1])), shares, shares, is_range=True)
    names = [value.name if isinstance(value, Mixture) else as_text(value) for value in axis.values]
    name = f"{axis.name} / {axis.times}" if axis.times else axis.name
    return _among(name, names, [int(choice) for choice in choices])


def _among(name: str, names: Sequence[str], places: Sequence[int]) -> Coordinate:
    untried = [text for place, text in enumerate(names) if place not in places]
    shares = [place / max(1, len(names) - 1) for place in places]
    return Coordinate(name, (names[0], names[-1]), shares, places, untried=untried)


def _share_of(name: str, every: Sequence[Mapping[str, float]], own: Sequence[Mapping[str, float]]) -> Coordinate:
    """Return the shares of a dataset in mixtures, between the least and the greatest that candidates have."""
    low, high = min(one.get(name, 0.0) for one in every), max(one.get(name, 0.0) for one in every)
    shares = [(one.get(name, 0.0) - low) / ((high - low) or 1.0) for one in own]
    return Coordinate(name, (f"{low:.0%}", f"{high:.0%}"), shares, shares, is_range=True)


def _in_order(level: object) -> tuple[bool, float, str]:
    is_number = isinstance(level, int | float) and math.isfinite(level)
    return (not is_number, float(level) if is_number else 0.0, str(level))  # type: ignore[arg-type]
