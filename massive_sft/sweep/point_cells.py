"""The cells of what searches choose, or may choose."""

from __future__ import annotations

from collections.abc import Collection

from massive_sft.sweep.cell import Cell, CellMaker
from massive_sft.sweep.content import Contents
from massive_sft.sweep.load import Sweep
from massive_sft.sweep.point import Point


def find_parked(sweep: Sweep, contents: Contents) -> frozenset[str]:
    """Return the ids of the trajectories that may be promoted by a search, from what they can go on from."""
    maker = PointCells(sweep, contents)
    cells = (maker.of(point)[0] for point in sweep.points if point.parks)
    return frozenset(cell.recipe.id for cell in cells if cell.recipe)


class PointCells:
    """Makes the cells of points, whether the sweep has them or not; models and mixtures are looked at once."""

    def __init__(self, sweep: Sweep, contents: Contents):
        self._maker = CellMaker(sweep, contents)

    def of(self, point: Point) -> tuple[Cell, ...]:
        """Return the cells of a point, in the order of its epochs."""
        return tuple(self._maker.of_point(point))

    def of_blocks(self, names: Collection[str]) -> dict[str, Cell]:
        """Return the cells of blocks by their ids, each once."""
        blocks = [index for index, block in enumerate(self._maker.sweep.file.blocks) if block.name in names]
        return {cell.id: cell for index in blocks for cell in self._maker.of_block(index)}

    def base_of(self, point: Point) -> Cell:
        """Return the cell of the base model that a point trains."""
        return self._maker.base_cell(point.model)
