"""The records of a ledger, over any storage: the outcome of each cell, and what the index knows of it.

Nothing here is ever overwritten. The highest record of a cell counts (``Revision``), and each is written whole where
none is yet. So a process that was stopped at any point and wakes up later, whatever it had verified before, neither
replaces what was written meanwhile nor comes to stand above it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress

from massive_sft.core.errors import Corrupt, LeaseLost
from massive_sft.ledger.index import Entry, Index, make_entry
from massive_sft.ledger.lease import Claim
from massive_sft.ledger.paths import cell_key
from massive_sft.ledger.record import Record, Revision, Status, dump_record, load_record
from massive_sft.ledger.record_places import Place, RecordPlaces, revision_of
from massive_sft.ledger.storage import Blob, Storage

log = logging.getLogger(__name__)


class Records:
    """All records below one root. It can be sent to other processes.

    Args:
        storage: the root.
        places: where they lie in it.
        report: called with the key of a record that is unsound, and what is wrong with it.
    """

    def __init__(self, storage: Storage, places: RecordPlaces, report: Callable[[str, str], None]):
        self.places = places
        self._storage = storage
        self._report = report
        self._index = Index(storage.at("index"))
        self._unsound: set[Entry] = set()

    def write(self, record: Record, claim: Claim | None = None) -> str:
        """Write a record as its cell's newest and return its key; arguments and errors as ``Ledger.write_record``."""
        data, cell = dump_record(record), record.cell
        newest = max((place.revision for place in self.places.of(cell)), default=Revision())
        own = self._storage.at(f"{cell_key(cell)}/lease")
        lease = claim.number if claim is not None and claim.lease == own else newest.lease
        if newest.lease > lease:
            place = f"{self._storage}/{self.places.key(cell, newest)}"
            raise LeaseLost(f"{place}: was written since attempt {lease} lost the lease")
        revision = newest.next() if newest.lease == lease else Revision(lease, 1)
        while True:
            # The order matters: whoever takes the lease over after this check writes above this number.
            if claim is not None:
                claim.verify()
            key = self.places.key(cell, revision)
            if self._storage.put_if_absent(key, data):
                break
            revision = revision.next()  # and never by listing again, which may say the same for a minute
        self._try_to_index(lambda: self._index.add([make_entry(record, revision.name, self._storage.get(key).version)]))
        return key

    def read(self, cell: str) -> Record | None:
        """Return a cell's newest record, or None; as ``Ledger.read_record``."""
        newest = max(self.places.of(cell), key=revision_of, default=None)
        found = None if newest is None else self._read(newest)
        return None if found is None else found[0]

    def read_all(self) -> Iterator[Record]:
        """Yield the newest sound record of each cell, by cell id; each is verified."""
        for place in self.places.newest():
            found = self._read(place)
            if found is not None:
                yield found[0]

    def history(self, cell: str) -> Iterator[Record]:
        """Yield a cell's sound records, the newest first; where the newest is unsound, none, as ``read``."""
        for place in sorted(self.places.of(cell), key=revision_of, reverse=True):
            found = self._read(place)
            if found is None:
                return
            yield found[0]

    def entries(self, cells: Collection[str] | None = None) -> dict[str, Entry]:
        """Return the index entry of each cell (all, or those asked for) that has a sound record, by cell id.

        Each record that may be changed in place is looked at, and it is read where the index does not know it so. A bit
        that flipped on the disk and left size and time alone is found by whoever reads the record.
        """
        return self._collect(cells, by_listing=not self._storage.changes_in_place)

    def listed_entries(self, cells: Collection[str] | None = None) -> dict[str, Entry]:
        """Return what ``entries`` does by listings alone, which saves a call for each record.

        So records that are new, gone, or other files than before are seen. What was changed in place is not, until
        ``entries`` looked at it or somebody read it, in whatever process.
        """
        return self._collect(cells, by_listing=True)

    def _collect(self, cells: Collection[str] | None, by_listing: bool) -> dict[str, Entry]:
        known = self._index.read()
        current, missed = {}, []
        for place in self.places.newest(cells):
            entry = known.listed(place) if by_listing else None
            if entry is None and self._storage.changes_in_place:
                with suppress(FileNotFoundError):  # removed just now
                    entry = known.of_version(place, place.item.version())
            if entry is None and (found := self._read(place)) is not None:
                entry = make_entry(found[0], place.revision.name, found[1].version)
                missed.append(entry)
            if entry is not None:
                current[place.cell] = entry
        if missed:
            self._try_to_index(lambda: self._index.add_now(missed))
        self._try_to_index(self._index.merge)
        return current

    def _read(self, place: Place) -> tuple[Record, Blob] | None:
        """Return a record with its object; None where it is unsound, which is reported."""
        where = f"{self._storage}/{place.key}"
        try:
            blob = self._storage.get(place.key)
        except FileNotFoundError:
            self._report(place.key, f"{where}: cannot be seen yet")
            return None
        try:
            record = load_record(blob.data, where)
            if record.cell != place.cell:
                raise Corrupt(f"{where}: is the record of another cell, {record.cell}")
        except Corrupt as error:
            self._report(place.key, str(error))
            self._mark_unsound(place, blob.version)
            return None
        return record, blob

    def _mark_unsound(self, place: Place, version: str) -> None:
        """Have whoever trusts listings look at this record from now on."""
        unsound = Entry(place.cell, None, Status.WAITING, place.revision.name, (), version)
        if unsound not in self._unsound:
            self._unsound.add(unsound)
            self._try_to_index(lambda: self._index.add_now([unsound]))

    def _try_to_index(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            # A full disk, or a reader of another's ledger: the answer is right, only slower next time.
            log.info("the index cannot be written: %s", error)
