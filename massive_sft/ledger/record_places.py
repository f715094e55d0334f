"""Where the records of a ledger lie: together, so that a listing shows those of many cells; earlier, with the cells.

``records/<ab>/<cell>.record-<lease>-<sequence>.json``, by the first two digits of the cell's id: however many cells
there are, 256 listings show which record of each is the newest. Ledgers of schema 1 and 2 keep theirs in the cells'
folders for good, ``cells/<cell>/record-<lease>-<sequence>.json``: each of these has to be listed there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple, Protocol

from massive_sft.ledger.paths import cell_key, checked_id, is_id, listed_ids
from massive_sft.ledger.record import Revision
from massive_sft.ledger.storage import Listed, Storage

FOLDER = "records"
DIGITS = 2  # of a cell's id, that name the folder of its records


class Place(NamedTuple):
    """A record as it is listed.

    Attributes:
        cell: whose it is, by its name.
        revision: its place in the order of the cell's records.
        key: of its object in the ledger's storage.
        item: as the storage lists it.
    """

    cell: str
    revision: Revision
    key: str
    item: Listed


class RecordPlaces(Protocol):
    """The records below a ledger's root, by listings alone: none is opened."""

    def key(self, cell: str, revision: Revision) -> str:
        """Return where a record of a cell lies, or would. Raises ValueError for what is no id."""

    def of(self, cell: str) -> list[Place]:
        """Return all records of a cell, in no order."""

    def newest(self, cells: Collection[str] | None = None) -> Iterator[Place]:
        """Yield the newest record of each cell (all, or those asked for) that has one, by cell id."""


class Together:
    """Records in folders that many cells share."""

    def __init__(self, storage: Storage):
        self._storage = storage

    def key(self, cell: str, revision: Revision) -> str:
        """As ``RecordPlaces.key``."""
        return f"{FOLDER}/{checked_id(cell)[:DIGITS]}/{cell}.{revision.name}"

    def of(self, cell: str) -> list[Place]:
        """As ``RecordPlaces.of``."""
        shard = checked_id(cell)[:DIGITS]
        return [place for place in _records(shard, self._storage.list(f"{FOLDER}/{shard}")) if place.cell == cell]

    def newest(self, cells: Collection[str] | None = None) -> Iterator[Place]:
        """As ``RecordPlaces.newest``."""
        wanted = None if cells is None else frozenset(cells)
        shards = None if wanted is None else {cell[:DIGITS] for cell in wanted}
        for shard, listed in self._storage.list_each(FOLDER, shards):
            best: dict[str, Place] = {}
            for place in _records(shard, listed):
                known = best.get(place.cell)
                if known is None or known.revision < place.revision:
                    best[place.cell] = place
            yield from (best[cell] for cell in sorted(best) if wanted is None or cell in wanted)


def _records(shard: str, listed: Iterable[Listed]) -> Iterator[Place]:
    """Yield the records among what a shard's listing shows."""
    for item in listed:
        cell, _, name = item.name.partition(".")
        if cell.startswith(shard) and is_id(cell) and (revision := Revision.of(name)):
            yield Place(cell, revision, f"{FOLDER}/{shard}/{item.name}", item)


class WithCells:
    """Records in the folder of each cell: ledgers of schema 1 and 2."""

    def __init__(self, storage: Storage):
        self._storage = storage

    def key(self, cell: str, revision: Revision) -> str:
        """As ``RecordPlaces.key``."""
        return f"{cell_key(cell)}/{revision.name}"

    def of(self, cell: str) -> list[Place]:
        """As ``RecordPlaces.of``."""
        folder = cell_key(cell)
        return [
            Place(cell, revision, f"{folder}/{item.name}", item)
            for item in self._storage.list(folder)
            if (revision := Revision.of(item.name))
        ]

    def newest(self, cells: Collection[str] | None = None) -> Iterator[Place]:
        """As ``RecordPlaces.newest``."""
        wanted = None if cells is None else frozenset(cells)
        for cell in listed_ids(self._storage, "cells"):
            if wanted is None or cell in wanted:
                newest = max(self.of(cell), key=revision_of, default=None)
                if newest is not None:
                    yield newest


def revision_of(place: Place) -> Revision:
    """Return a record's rank, as a key to sort by."""
    return place.revision
