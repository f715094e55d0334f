"""The space of a search ``over`` blocks: their cells, of which each differs from the others in a few factors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from massive_sft.core.fingerprint import digest, fingerprint
from massive_sft.search.observations import Factor, Target, Value
from massive_sft.search.observations import Space as Candidates
from massive_sft.search.outcomes import objective_names
from massive_sft.search.space import Axis, Choice
from massive_sft.search.weights import shares_of
from massive_sft.sweep.cell import Cell
from massive_sft.sweep.content import Contents
from massive_sft.sweep.load import Sweep
from massive_sft.sweep.point import Point
from massive_sft.sweep.schema import Mean, Search, Weights
from massive_sft.sweep.setting import Variant

CANDIDATE = "candidate"  # what a choice says: the place of a cell in the space


@dataclass(frozen=True)
class CellSpace:
    """What a search over blocks may try; read as a ``Space`` is.

    Attributes:
        cells: in an order that names and places in the file leave.
        start: how many of them, the first, are tried before the surrogate proposes.
    """

    sweep: Sweep
    search: Search
    cells: tuple[Cell, ...]
    start: int = 0

    groups: tuple[str, ...] = ()
    axes: tuple[Axis, ...] = ()

    @property
    def size(self) -> int:
        """How many cells there are."""
        return len(self.cells)

    def choices(self) -> Iterator[Choice]:
        """Yield all choices."""
        return ({CANDIDATE: index} for index in range(self.size))

    def corners(self) -> list[tuple[Choice, str | None]]:
        """Return choices that stand for the space: a cell of each model."""
        first = {cell.base: index for index, cell in reversed(list(enumerate(self.cells)))}
        return [({CANDIDATE: index}, None) for index in sorted(first.values())]

    def longest(self) -> list[Choice]:
        """Return what takes longest, as far as epochs tell: a cell of each model and setting."""
        found: dict[tuple[str, str], int] = {}
        for index in sorted(range(self.size), key=lambda index: self.cells[index].epoch):
            recipe = self.cells[index].recipe
            assert recipe is not None
            found[recipe.model_name, recipe.setting_name] = index
        return [{CANDIDATE: index} for index in sorted(found.values())]

    def cell(self, choice: Choice) -> Cell:
        """Return the cell that a choice stands for."""
        return self.cells[int(choice[CANDIDATE])]

    def named(self, choice: Choice) -> dict[str, Any]:
        """Return what tells a choice's cell apart, for people."""
        cell = self.cell(choice)
        if not self.has_weights or cell.recipe is None:
            return {"cell": str(cell.coordinates)}
        return {name: round(share, 4) for name, share in sorted(shares_of(cell.recipe.mixture).items())}

    @property
    def has_weights(self) -> bool:
        """Whether what is searched are the weights of a mixture."""
        return isinstance(self.search.mixture, Weights)

    def point(self, choice: Choice, group: str | None = None, seed: int | None = None) -> Point:
        """Return what is trained at a choice: up to the epoch of its cell."""
        cell = self.cell(choice)
        recipe = cell.recipe
        assert recipe is not None
        setting = recipe.setting if seed is None else recipe.setting.model_copy(update={"seed": seed})
        variant = Variant(recipe.setting_name, setting, cell.coordinates.variant)
        return Point(
            self.search.name, recipe.model_name, recipe.mixture, variant, recipe.schedule, recipe.horizon, (cell.epoch,)
        )

    def content(self, contents: Contents) -> dict[str, Any]:
        """Return what the space is, for the search's id."""
        return {"cells": fingerprint([cell.id for cell in self.cells]), "count": len(self.cells)}

    @cached_property
    def candidates(self) -> Candidates:
        """The cells as the surrogate sees them: what they have in common is left out."""
        if self.has_weights:
            return self._mixtures()
        columns = {
            "model": [digest(cell.base) for cell in self.cells],
            "mixture": [digest(_part(cell, "data")) for cell in self.cells],
            "setting": [digest(_part(cell, "setting")) for cell in self.cells],
            "schedule": [digest(_part(cell, "schedule")) for cell in self.cells],
            "seed": [_part(cell, "seed") for cell in self.cells],
        }
        epochs: list[Value] = [float(cell.epoch) for cell in self.cells]
        varied: dict[str, Sequence[Value]] = {name: column for name, column in columns.items() if len(set(column)) > 1}
        factors = [Factor(name, "category", tuple(sorted({str(one) for one in varied[name]}))) for name in varied]
        if len(set(epochs)) > 1:  # type: ignore[arg-type]
            varied["epoch"] = epochs
            factors.append(Factor("epoch", "number", log=True))
        return Candidates(tuple(factors), tuple(zip(*varied.values(), strict=True)) if varied else ((),))

    def _mixtures(self) -> Candidates:
        """Return the candidates as shares of datasets; those of one name are of one content."""
        shares = [shares_of(cell.recipe.mixture) for cell in self.cells if cell.recipe]
        names = tuple(sorted({name for one in shares for name in one}))
        return Candidates((Factor("mixture", "mixture", names),), tuple((one,) for one in shares))

    @cached_property
    def target(self) -> Target:
        """What the surrogate is to find."""
        objective = self.search.objective
        written = objective.maximize or objective.minimize
        names = ("mean",) if isinstance(written, Mean) else objective_names(self.search)
        has_models = any(factor.name == "model" for factor in self.candidates.factors)
        return Target(names, "model" if objective.for_each and has_models else None)

    @cached_property
    def models(self) -> Mapping[str, str]:
        """Names of models by their level in the factor."""
        return {digest(cell.base): cell.coordinates.model for cell in self.cells}


def _part(cell: Cell, name: str) -> str:
    assert cell.recipe is not None
    return cell.recipe.parts[name]
