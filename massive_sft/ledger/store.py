"""The ledger: every outcome under one storage root, the truth that all else mirrors.

Nothing here is ever overwritten. A cell's records are objects ``record-<lease>-<sequence>.json``, the highest counts,
and each is written whole where none is yet. So a process that was stopped at any point and wakes up later, whatever it
had verified before, neither replaces what was written meanwhile nor comes to stand above it.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

from massive_sft.core.checksummed_json import seal, unseal
from massive_sft.core.errors import Corrupt, LeaseLost, LedgerError, Unsupported
from massive_sft.core.fingerprint import canonical_json, hash_file
from massive_sft.ledger import marker
from massive_sft.ledger.attempt import Attempt
from massive_sft.ledger.index import Entry, Index, make_entry
from massive_sft.ledger.lease import TTL_S, Claim, Lease, LeaseWatch, read_lease
from massive_sft.ledger.paths import LedgerPaths, cell_key, checked_id
from massive_sft.ledger.provenance import redact
from massive_sft.ledger.record import SCHEMA, Record, Revision, Status, dump_record, load_record
from massive_sft.ledger.storage import Folder, Listed

log = logging.getLogger(__name__)

FOLDERS = ("cells", "trajectories", "sweeps", "cache/tokens", "cache/requests", "cache/bases")

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")


@dataclass(frozen=True)
class CellState:
    """How far a cell is, and what was asked of it and is there (``Record.answers``)."""

    status: Status
    answers: tuple[str, ...] = ()


class Ledger(LedgerPaths):
    """All records, attempts and leases under one storage root. Made by ``Ledger.open``.

    Attributes:
        corrupt: the unsound files met so far, with what is wrong; each counts as not there.
    """

    def __init__(self, root: Path):
        super().__init__(Folder(root))
        self.corrupt: dict[Path, str] = {}
        self._watch = LeaseWatch()
        self._index = Index(self.storage.at("index"))

    @classmethod
    def open(cls, root: str | Path, create: bool = True, place: str = "storage.root") -> Ledger:
        """Open the ledger under a root.

        Args:
            root: local folder.
            create: for writing, and made where it is not there; else for reading only.
            place: where the root is named, for what is said of it.

        Raises:
            InvalidInput: the root cannot be written (``create``), or is no ledger (not ``create``).
            Unsupported: the root is an object store, or a newer version of massive-sft made it.
            Corrupt: ``ledger.json`` is unsound.
        """
        scheme = _SCHEME.match(str(root))
        if scheme:
            raise Unsupported(
                f"{place}: {redact(str(root))}: {scheme[1]}: is not supported yet, only folders of a local disk, "
                "NFS or Lustre; mount it or choose a folder"
            )
        ledger = cls(Path(root).expanduser().absolute())
        if create:
            marker.prepare(ledger.storage, FOLDERS, place)
        else:
            marker.check(ledger.storage, place)
        return ledger

    # Writing

    def write_cell(self, cell: str, content: Mapping[str, Any]) -> None:
        """Store what a cell is (the content its id hashes) as ``cell.json``, unless it is there.

        Raises LedgerError when other content lies under this id.
        """
        self._write_once(f"{cell_key(cell)}/cell.json", content)

    def write_spec(self, trajectory: str, content: Mapping[str, Any]) -> None:
        """Store what a trajectory is (the content its id hashes) as ``spec.json``, unless it is there.

        Raises LedgerError when other content lies under this id.
        """
        self._write_once(f"trajectories/{checked_id(trajectory)}/spec.json", content)

    def _write_once(self, key: str, content: Mapping[str, Any]) -> None:
        path = self.storage.local(key)
        try:
            if _content(self.storage.get(key).data, str(path)) != json.loads(canonical_json(content)):
                raise LedgerError(f"{path}: other content lies under this id; one id must mean one thing")
            return
        except FileNotFoundError:
            pass
        except Corrupt as error:
            self.report_corrupt(path, str(error))
        self.storage.put(key, seal({"schema": SCHEMA, "content": content}))

    def read_cell(self, cell: str) -> dict[str, Any]:
        """Return what a cell is, as ``write_cell`` stored it. Raises FileNotFoundError, ``Corrupt``."""
        key = f"{cell_key(cell)}/cell.json"
        content: dict[str, Any] = _content(self.storage.get(key).data, f"{self.root}/{key}")
        return content

    def write_record(self, record: Record, claim: Claim | None = None) -> Path:
        """Write a record as the cell's newest and return its path. It is the last thing written of a cell.

        Args:
            record: the outcome; secrets in its ``error`` are hidden.
            claim: the lease under which it was made. Only one on the cell itself orders the records of its owners;
                another one is verified, and without one nothing is fenced.

        Raises ``LeaseLost`` when the claim is no longer held: then nothing was written.
        """
        record = record if record.error is None else record.model_copy(update={"error": redact(record.error)})
        data, prefix = dump_record(record), cell_key(record.cell)
        newest = max((revision for revision, _ in self._revisions(prefix)), default=Revision())
        ordered = claim is not None and claim.lease == self.lease_of(self.cell_dir(record.cell))
        lease = claim.number if claim is not None and ordered else newest.lease
        if newest.lease > lease:
            raise LeaseLost(f"{self.root}/{prefix}: attempt {lease} lost the lease, {newest.name} was written since")
        revision = newest.next() if newest.lease == lease else Revision(lease, 1)
        while True:
            # The order matters: whoever takes the lease over after this check writes above this number.
            if claim is not None:
                claim.verify()
            key = f"{prefix}/{revision.name}"
            if self.storage.put_if_absent(key, data):
                break
            revision = revision.next()  # and never by listing again, which may say the same for a minute
        self._try_to_index(lambda: self._index.add([make_entry(record, revision.name, self.storage.get(key).version)]))
        return self.storage.local(key)

    # Reading

    def read_record(self, cell: str) -> Record | None:
        """Return a cell's newest record, or None.

        When that one is unsound, it is reported in ``corrupt`` and the cell has none: an older one may have been
        superseded because it was wrong.

        Raises Unsupported when a newer version of massive-sft wrote it.
        """
        newest_record = self._newest(cell_key(cell))
        return None if newest_record is None else newest_record[0]

    def history(self, cell: str) -> Iterator[Record]:
        """Yield a cell's sound records, the newest first; where the newest is unsound, none, as ``read_record``.

        Raises Unsupported when a newer version of massive-sft wrote one.
        """
        prefix = cell_key(cell)
        for _, item in sorted(self._revisions(prefix), key=itemgetter(0), reverse=True):
            path = self.storage.local(f"{prefix}/{item.name}")
            try:
                yield load_record(self.storage.get(f"{prefix}/{item.name}").data, str(path))
            except (FileNotFoundError, Corrupt) as error:
                self.report_corrupt(path, str(error))
                return

    def _revisions(self, prefix: str) -> Iterator[tuple[Revision, Listed]]:
        for item in self.storage.list(prefix):
            if item.name.startswith("record-") and (revision := Revision.of(item.name)):
                yield revision, item

    def _latest(self, prefix: str) -> Listed | None:
        latest = max(self._revisions(prefix), key=itemgetter(0), default=None)
        return None if latest is None else latest[1]

    def _newest(self, prefix: str) -> tuple[Record, str, str] | None:
        """Return a cell's newest record with its name and version."""
        item = self._latest(prefix)
        if item is None:
            return None
        path = self.storage.local(f"{prefix}/{item.name}")
        try:
            blob = self.storage.get(f"{prefix}/{item.name}")
            record = load_record(blob.data, str(path))
            if record.cell != path.parent.name:
                raise Corrupt(f"{path}: is the record of another cell, {record.cell}")
        except FileNotFoundError:
            self.report_corrupt(path, f"{path}: cannot be seen yet")
        except Corrupt as error:
            self.report_corrupt(path, str(error))
        else:
            return record, item.name, blob.version
        return None

    def verified_file(self, record: Record, name: str) -> Path:
        """Return the path of a file that a record rests on, once its content is seen to be what the record says.

        Args:
            name: its path below the storage root, one of ``record.files``.

        Raises FileNotFoundError, or ``Corrupt`` when it has changed since.
        """
        path = self.root / name
        if hash_file(path) != record.files[name]:
            raise Corrupt(f"{path}: does not match the checksum in the record of {record.cell}")
        return path

    def records(self) -> Iterator[Record]:
        """Yield every cell's newest sound record, by cell id; each is verified."""
        for cell in self.ids("cells"):
            record = self.read_record(cell)
            if record is not None:
                yield record

    def entries(self, cells: Collection[str] | None = None) -> dict[str, Entry]:
        """Return the index entry of each cell (all, or those asked for) that has a sound record, by cell id.

        Every entry is checked against the cell's files, and made anew where it does not fit.
        A bit that flipped on the disk and left the file's size and time alone is found by ``records``, not here.
        """
        index = self._index.read()
        current, missed = {}, []
        for cell in self.ids("cells"):
            if cells is not None and cell not in cells:
                continue
            prefix = f"cells/{cell}"
            item = self._latest(prefix)
            if item is None:
                continue
            with suppress(FileNotFoundError):  # removed just now
                entry = index.get((cell, item.version()))
                if entry is not None and entry.record == item.name:
                    current[cell] = entry
                    continue
            newest = self._newest(prefix)
            if newest is not None:
                current[cell] = make_entry(*newest)
                missed.append(current[cell])
        if missed:
            self._try_to_index(lambda: self._index.add(missed))
        self._try_to_index(self._index.merge)
        return current

    def states(self, cells: Mapping[str, str | None]) -> dict[str, CellState]:
        """Return how far each cell is.

        Args:
            cells: trajectory id by cell id; None for a base model's cell.

        A cell without a record is RUNNING while a lease on it or on its trajectory looks live, else WAITING.
        """
        entries = self.entries(cells)
        left = {cell: trajectory for cell, trajectory in cells.items() if cell not in entries}
        known, begun = (set(self.ids("cells")), set(self.ids("trajectories"))) if left else (set(), set())
        leased = {run for run in {*left.values()} & begun if run and self._is_live(self.trajectory_dir(run))}

        def state(cell: str) -> CellState:
            if cell in entries:
                return CellState(entries[cell].status, entries[cell].answers)
            running = left[cell] in leased or (cell in known and self._is_live(self.cell_dir(cell)))
            return CellState(Status.RUNNING if running else Status.WAITING)

        return {cell: state(cell) for cell in cells}

    def statuses(self, cells: Mapping[str, str | None]) -> dict[str, Status]:
        """Return the status of each cell, as ``states``."""
        return {cell: state.status for cell, state in self.states(cells).items()}

    def _is_live(self, home: Path) -> bool:
        seen = read_lease(self.lease_of(home))
        return seen is not None and seen.seems_live()

    def _try_to_index(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            # A full disk, or a reader of another's ledger: the answer is right, only slower next time.
            log.info("the index cannot be written: %s", error)

    def report_corrupt(self, path: Path, error: str) -> None:
        """Note that something on disk is unsound and counts as not there: warned of once, kept in ``corrupt``."""
        if path not in self.corrupt:
            log.warning("%s; it counts as not there", error)
        self.corrupt[path] = error

    # Attempts

    def begin_attempt(self, trajectory: str, owner: str, ttl_s: float = TTL_S) -> Attempt | None:
        """Start an attempt at a trajectory, or return None while somebody else holds it.

        Never waits. An owner that died on another machine is noticed by calling this again on the same ``Ledger``.

        Args:
            trajectory: its id.
            owner: who works on it, for people.
            ttl_s: seconds without a sign of life after which others may take over.
        """
        place = self.storage.at(f"trajectories/{checked_id(trajectory)}")
        return Attempt.begin(trajectory, place, owner, self._watch, ttl_s)

    def lease_cell(self, cell: str, owner: str, ttl_s: float = TTL_S) -> Lease | None:
        """Take the lease on a cell, for work that is no training (scoring, measuring); None while another holds it."""
        return self.lease_folder(self.cell_dir(cell), owner, ttl_s)

    def lease_folder(self, home: Path, owner: str, ttl_s: float = TTL_S) -> Lease | None:
        """Take the lease on a cell's or a trajectory's folder; None while another holds it."""
        revisions = self._revisions(home.relative_to(self.root).as_posix())
        above = max((revision.lease for revision, _ in revisions), default=0)
        return Lease.acquire(self.lease_of(home), owner, self._watch, ttl_s, above)


def _content(data: bytes, place: str) -> Any:
    return json.loads(unseal(data, place))["content"]
