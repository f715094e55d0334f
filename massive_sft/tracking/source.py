"""What a sweep's ledger says of its cells, as the mirror asks it."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Protocol

from massive_sft.core.errors import Corrupt, MassiveSFTError, Unsupported
from massive_sft.core.fingerprint import fingerprint
from massive_sft.ledger.index import Entry
from massive_sft.ledger.record import Record
from massive_sft.ledger.store import Ledger
from massive_sft.planning.outcome import newest_as_asked
from massive_sft.sweep.cell import Coordinates
from massive_sft.tracking.curve import RunCurve, loss_curve
from massive_sft.tracking.run_fields import NO_TEMPLATES, CellRun, describe_record, span, version
from massive_sft.tracking.shown import Shown


class Unreadable(MassiveSFTError):
    """What the ledger holds of an item cannot be read."""


@contextmanager
def readable(what: str) -> Iterator[None]:
    """Tell an own file that cannot be read from a tracker that cannot be reached: both are OSErrors.

    Raises ``Unreadable``, with what is read in the block.
    """
    try:
        yield
    except (OSError, ValueError, Corrupt, Unsupported) as error:
        raise Unreadable(f"{what} cannot be read: {error}") from error


class AsAsked(Protocol):
    """Takes of records what the sweep asks for: another sweep on the same root may have made them, or added to them."""

    def __call__(self, record: Record) -> Record:
        """Return a record as far as the sweep asks for it."""

    @property
    def templates(self) -> Mapping[str, str]:
        """Names of templates, as for ``metric_names.score_values``."""

    def stamp(self, cell: str) -> str:
        """Return what is the same as long as the same is asked of a cell."""

    def tags(self, cell: str) -> Mapping[str, str]:
        """Return what else is to be said of a cell."""


class AsRecorded:
    """Takes records as they are."""

    def __call__(self, record: Record) -> Record:
        """Return the record."""
        return record

    @property
    def templates(self) -> Mapping[str, str]:
        """Return none."""
        return NO_TEMPLATES

    def stamp(self, cell: str) -> str:
        """Return the same for every cell."""
        return ""

    def tags(self, cell: str) -> Mapping[str, str]:
        """Return nothing."""
        return {}


class CellSource:
    """The records of a sweep's cells, as the sweep asks for them. For one thread.

    A cell of which something cannot be read raises ``Unreadable`` by itself, and hides no other.

    Args:
        ledger: read only.
        cells: the names of the sweep's cells by id.
        as_asked: makes of each record what the sweep shows of it.
    """

    def __init__(self, ledger: Ledger, cells: Mapping[str, Coordinates], as_asked: AsAsked):
        self._ledger = ledger
        self._cells = cells  # more may come while a search goes on
        self._base_rows = {names.model: cell for cell, names in cells.items() if names.method == "none"}
        self._as_asked = as_asked
        self._templates = as_asked.templates

    def began(self) -> int:
        """Return when the sweep's first cell was begun, in milliseconds since 1970; now when there is none."""
        began = []
        for cell in tuple(self._cells):
            with suppress(Unreadable):  # which is said where the cell is to be written
                record = self.newest(cell)
                began += [] if record is None else [span(record)[0]]
        return min(began, default=round(time.time() * 1000))

    def newest(self, cell: str) -> Record | None:
        """Return a cell's record as ``planning.outcome.newest_as_asked``; None where there is none."""
        with readable(f"the record of {cell}"):
            return newest_as_asked(cell, self._ledger, self._as_asked)

    def version(self, cell: str) -> tuple[str, str] | None:
        """Return what tells what a cell's run should show from another state of it; None where it has no record."""
        record, names = self.newest(cell), self._cells.get(cell)
        base = None if names is None else self._base_of(names.model)
        return None if record is None else version(record, base, self._templates)

    def read(self, cell: str) -> tuple[Record, CellRun, RunCurve | None]:
        """Return a cell's record, what to show of it, and its loss curve."""
        with readable(cell):
            record = self.newest(cell)
            if record is None:
                raise Unreadable(f"{cell} has no record")
            names = self._cells.get(cell)
            base = None if names is None else self._base_of(names.model)
            content, place = self._ledger.read_cell(cell), str(self._ledger.storage)
            run = describe_record(record, content, names, place, base, self._templates)
            run = replace(run, tags={**run.tags, **self._as_asked.tags(cell)})
            return record, run, loss_curve(self._ledger, record)

    def missed(self, shown: Shown, but: Collection[str]) -> list[str]:
        """Return the cells whose newest record the tracker does not show, without those of ``but``.

        A record is opened only where neither it, nor its base model's, nor what is asked of them is known to be as
        when it was last compared; what that finds is noted down in ``shown``. One that cannot be read is among them:
        whoever writes it learns why.
        """
        cells = tuple(self._cells)
        entries = self._ledger.entries(cells)
        bases: dict[str, Record | None] = {}
        missed, stamps = [], {}
        for cell in (cell for cell in cells if cell in entries and cell not in but):
            known, stamp = shown.cells.get(cell), self._stamp(cell, entries)
            if known is not None and known.stamp == stamp:
                continue
            model = self._cells[cell].model
            try:
                record = self.newest(cell)
                if model not in bases:
                    bases[model] = self._base_of(model)
            except Unreadable:
                missed.append(cell)
                continue
            if record is None:
                continue
            if known is None or known.version != version(record, bases[model], self._templates):
                missed.append(cell)
            else:
                stamps[cell] = stamp
        shown.stamp(stamps)
        return missed

    def _stamp(self, cell: str, entries: Mapping[str, Entry]) -> str:
        """Return what is the same as long as a cell's run should show the same."""
        rows = (cell, self._base_rows.get(self._cells[cell].model))
        found = ((row, entries[row]) for row in rows if row is not None and row in entries)
        return fingerprint([[entry.record, entry.version, self._as_asked.stamp(row)] for row, entry in found])

    def _base_of(self, model: str) -> Record | None:
        row = self._base_rows.get(model)
        return None if row is None else self.newest(row)
