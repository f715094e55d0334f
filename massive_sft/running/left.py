"""What a run of a sweep has to do, told before anything heavy is loaded."""

from __future__ import annotations

from contextlib import suppress
from enum import Enum, auto

from massive_sft.planning.changes import save_last_plan
from massive_sft.planning.plan import Plan
from massive_sft.report.source import is_current


class Left(Enum):
    """What is left to do of a sweep."""

    NOTHING = auto()
    REPORT = auto()
    """Every cell is done, but the report is not of them: the last run was killed at its end, or names changed."""
    CELLS = auto()


def find_left(selected: Plan, whole: Plan) -> Left:
    """Return what is left to do of the cells that are wanted, and of the report, which is of the whole sweep."""
    if not all(cell.is_done for cell in selected.cells):
        return Left.CELLS
    return Left.REPORT if selected.cells and not is_current(whole) else Left.NOTHING


def note_plan(selected: Plan, whole: Plan) -> None:
    """Keep what a sweep means now, by which others on the root know what it keeps, where nothing is left to do."""
    if selected.cells:
        with suppress(OSError):  # of a root that cannot be written nothing can be removed either
            save_last_plan(whole, selected.open_ledger(create=False))
