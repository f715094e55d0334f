"""The index of a ledger: what each record says of itself, a sealed line each, so that statuses need not open them all.

It is an accelerator and never the truth: an entry is believed only for the very record that a listing shows, or whose
version was asked for, and what it lacks is read from the records. Each writer has objects of its own below ``index/``,
so that none can tear another's; an unsound line is passed over.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields

from massive_sft.core.checksummed_json import seal, unseal
from massive_sft.core.errors import Corrupt
from massive_sft.ledger.record import Record, Revision, Status
from massive_sft.ledger.record_places import Place
from massive_sft.ledger.storage import Listed, Storage

ROTATE = 256  # entries, after which a writer begins another object: each write writes the whole of it
MERGE = 64  # objects, from which on they are merged into one
AT_ONCE = 10  # objects that are read at a time: a far store takes a tenth of a second for each
PAUSE_S = 1.0  # seconds between two writes; what a killed process had not written is read from the records


@dataclass(frozen=True, slots=True)
class Entry:
    """What the index keeps of a cell's newest record.

    Attributes:
        cell, trajectory, status: as in the record; WAITING for one that is unsound in this version, and thus none.
        record: its revision, as it is named.
        answers: what was asked of the cell and is there (``Record.answers``).
        version: of the record's file (``Storage``).
    """

    cell: str
    trajectory: str | None
    status: Status
    record: str
    answers: tuple[str, ...]
    version: str

    @property
    def revision(self) -> Revision:
        """The record's place in the order of the cell's records."""
        return Revision.of(self.record) or Revision()


_FIELDS = {field.name for field in fields(Entry)}


class Known:
    """All that an index says, by what is to be seen of a record."""

    def __init__(self, entries: Iterable[Entry]):
        self._by_version: dict[tuple[str, str, str], Entry] = {}
        self._by_mark: dict[tuple[str, str, str], Entry | None] = {}
        for entry in entries:
            self._by_version[entry.cell, entry.record, entry.version] = entry
            listed = (entry.cell, entry.record, entry.version.partition("-")[0])
            if self._by_mark.setdefault(listed, entry) != entry:
                self._by_mark[listed] = None  # it was changed in place: only its version tells which of them it is

    def listed(self, place: Place) -> Entry | None:
        """Return what a record says by its listing alone; None where that does not tell."""
        return _sound(self._by_mark.get((place.cell, place.revision.name, place.item.mark)))

    def of_version(self, place: Place, version: str) -> Entry | None:
        """Return what a record says of this version; None where that is not known, or it is unsound."""
        return _sound(self._by_version.get((place.cell, place.revision.name, version)))


def _sound(entry: Entry | None) -> Entry | None:
    return None if entry is None or entry.status is Status.WAITING else entry


def make_entry(record: Record, name: str, version: str) -> Entry:
    """Return the entry of the record of this name and version."""
    return Entry(record.cell, record.trajectory, record.status, name, record.answers, version)


class Index:
    """The index below one prefix. Each instance is a writer; a copy that is sent to another process is another one."""

    def __init__(self, storage: Storage, clock: Callable[[], float] = time.monotonic):
        self._storage = storage
        self._clock = clock
        self._read: dict[str, tuple[str, list[Entry]]] = {}
        self._own: list[Entry] = []
        self._name = ""
        self._written = -PAUSE_S
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[Index], tuple[Storage]]:
        return Index, (self._storage,)

    def read(self) -> Known:
        """Return all entries, those of this writer included. Raises OSError."""
        with self._lock:
            listed = {item.name: item for item in self._storage.list()}
            with ThreadPoolExecutor(AT_ONCE) as threads:
                now = threads.map(self._read_now, listed.values())
                self._read = {name: known for name, known in zip(listed, now, strict=True) if known is not None}
            every = (entry for _, entries in self._read.values() for entry in entries)
            return Known((*every, *self._own))

    def _read_now(self, item: Listed) -> tuple[str, list[Entry]] | None:
        """Return an object's version and entries; None where another process merged it just now."""
        try:
            known = self._read.get(item.name)
            if known is not None and known[0] == item.version():
                return known
            data, version, _ = self._storage.get(item.name)
            return version, list(_parsed(data))
        except FileNotFoundError:
            return None

    def add(self, entries: Iterable[Entry]) -> None:
        """Add entries; they are written at once, or with the next ones. Raises OSError."""
        with self._lock:
            self._own += entries
            if self._clock() - self._written >= PAUSE_S or len(self._own) >= ROTATE:
                self._write()

    def add_now(self, entries: Iterable[Entry]) -> None:
        """Add entries, and write them at once: other readers of this process may ask for them. Raises OSError."""
        with self._lock:
            self._own += entries
            self._write()

    def merge(self) -> None:
        """Make one object of many: of those read last, with the newest entries of each cell alone. Raises OSError."""
        with self._lock:
            if len(self._read) < MERGE:
                return
            newest: dict[str, Revision] = {}
            every = [entry for _, entries in self._read.values() for entry in entries] + self._own
            for entry in every:
                newest[entry.cell] = max(entry.revision, newest.get(entry.cell, Revision()))
            merged, self._name = [*self._read], ""
            self._own = list({entry for entry in every if entry.revision == newest[entry.cell]})
            self._write()
            for name in merged:
                self._storage.delete(name)

    def _write(self) -> None:
        self._name = self._name or _new_name()
        self._storage.put(self._name, b"".join(seal(asdict(entry)) for entry in self._own))
        self._written = self._clock()
        if len(self._own) >= ROTATE:
            self._own, self._name = [], ""


def _new_name() -> str:
    return f"{secrets.token_hex(8)}.jsonl"


def _parsed(data: bytes) -> Iterable[Entry]:
    for line in data.splitlines(keepends=True):
        try:
            content = json.loads(unseal(line, "index").decode())
        except Corrupt:
            continue  # torn: the record itself is read
        if content.keys() == _FIELDS:  # else another version wrote it
            yield Entry(**content | {"status": Status(content["status"]), "answers": tuple(content["answers"])})
