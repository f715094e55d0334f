"""Where the records of a ledger lie: ``cells/<cell>/record-<lease>-<sequence>.json``, told by listings alone."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

from massive_sft.ledger.paths import cell_key, listed_ids
from massive_sft.ledger.record import Revision
from massive_sft.ledger.storage import Listed, Storage


class Place(NamedTuple):
    """A record as it is listed.

    Attributes:
        cell: whose it is, by its place.
        revision: its rank among the cell's records.
        key: of its object in the ledger's storage.
        item: as the storage lists it.
    """

    cell: str
    revision: Revision
    key: str
    item: Listed


class RecordPlaces:
    """The records below a ledger's root; none is opened."""

    def __init__(self, storage: Storage):
        self._storage = storage

    def key(self, cell: str, revision: Revision) -> str:
        """Return where a record of a cell lies, or would. Raises ValueError for what is no id."""
        return f"{cell_key(cell)}/{revision.name}"

    def of(self, cell: str) -> list[Place]:
        """Return all records of a cell, in no order."""
        folder = cell_key(cell)
        return [
            Place(cell, revision, f"{folder}/{item.name}", item)
            for item in self._storage.list(folder)
            if item.name.startswith("record-") and (revision := Revision.of(item.name))
        ]

    def newest(self, cells: Collection[str] | None = None) -> Iterator[Place]:
        """Yield the newest record of each cell (all, or those asked for) that has one, by cell id."""
        wanted = None if cells is None else frozenset(cells)
        for cell in listed_ids(self._storage, "cells"):
            if wanted is None or cell in wanted:
                newest = max(self.of(cell), key=revision_of, default=None)
                if newest is not None:
                    yield newest


def revision_of(place: Place) -> Revision:
    """Return a record's rank, as a key to sort by."""
    return place.revision
