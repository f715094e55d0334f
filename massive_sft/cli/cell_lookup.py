"""Finds a cell by the beginning of its id: one of the sweep, or any other of its ledger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from massive_sft.core.errors import Corrupt, InvalidInput, Problem
from massive_sft.ledger.record import Record, Status
from massive_sft.ledger.store import Ledger
from massive_sft.planning.plan import CellPlan, Plan, RunPlan
from massive_sft.sweep.cell import Coordinates

MAX_LISTED = 10  # cells named when the beginning fits several


@dataclass(frozen=True)
class CellMatch:
    """A cell.

    Attributes:
        id: the whole.
        plan, run: of the sweep; ``plan`` is None for a cell that only the ledger knows, ``run`` for a base row too.
        record: its newest; None while it has none.
    """

    id: str
    plan: CellPlan | None
    run: RunPlan | None
    record: Record | None
    ledger: Ledger

    @property
    def status(self) -> Status:
        """For the sweep where it has the cell, else as the record states it."""
        if self.plan is not None:
            return self.plan.with_record(self.record).status
        return self.record.status if self.record else Status.WAITING

    @property
    def trajectory(self) -> str | None:
        return self.run.trajectory.id if self.run else self.record.trajectory if self.record else None

    @cached_property
    def coordinates(self) -> Coordinates:
        """What people call it: by the sweep, else as its record has it."""
        if self.plan is not None:
            return self.plan.cell.coordinates
        named: dict[str, Any] = dict(self.record.coordinates) if self.record else {}
        return Coordinates(**named)

    @cached_property
    def content(self) -> dict[str, Any]:
        """What the id is the hash of. Raises ``Corrupt`` or FileNotFoundError where only the ledger would know it."""
        if self.plan is not None:
            return self.plan.cell.content
        return self.ledger.read_cell(self.id)


def match_id(ids: Sequence[str], beginning: str) -> str:
    """Return the id that begins so. Raises InvalidInput when there is none, or more than one."""
    fitting = [cell for cell in ids if cell.startswith(beginning)]
    if len(fitting) != 1 or not beginning:
        rule = "is the beginning of no cell's id" if not fitting else f"is the beginning of {len(fitting)} cells' ids"
        raise InvalidInput(Problem("cell", rule, beginning, tuple((fitting or ids)[:MAX_LISTED])))
    return fitting[0]


def find_record(ledger: Ledger, beginning: str) -> Record:
    """Return the newest record of the cell whose id begins so.

    Raises:
        InvalidInput: no cell with a record begins so, or more than one does.
        Corrupt: the record is damaged.
    """
    cell = match_id(list(ledger.entries()), beginning)
    record = ledger.read_record(cell)
    if record is None:
        raise Corrupt(f"{ledger.cell_dir(cell)}: its record is damaged")
    return record


def find_cell(plan: Plan, ledger: Ledger, beginning: str) -> CellMatch:
    """Return the cell of a sweep or else of its ledger. Raises InvalidInput as ``match_id``."""
    of_sweep = {cell.cell.id: (cell, run) for run in plan.runs for cell in run.cells}
    of_sweep |= {cell.cell.id: (cell, None) for cell in plan.base}  # type: ignore[misc]
    chosen = match_id(list(dict.fromkeys([*of_sweep, *ledger.entries()])), beginning)
    cell, run = of_sweep.get(chosen, (None, None))
    return CellMatch(chosen, cell, run, ledger.read_record(chosen), ledger)
