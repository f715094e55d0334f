"""The ledger: every outcome under one storage root, the truth that all else mirrors."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from massive_sft.core.checksummed_json import seal, unseal
from massive_sft.core.errors import Corrupt, LedgerError, Unsupported
from massive_sft.core.fingerprint import canonical_json, hash_file
from massive_sft.ledger import marker
from massive_sft.ledger.attempt import Attempt
from massive_sft.ledger.index import Entry
from massive_sft.ledger.lease import TTL_S, Claim, Lease, LeaseWatch, read_lease
from massive_sft.ledger.paths import LedgerPaths, cell_key, checked_id
from massive_sft.ledger.provenance import redact
from massive_sft.ledger.record import SCHEMA, Record, Revision, Status
from massive_sft.ledger.records import Records
from massive_sft.ledger.storage import Folder, Root

log = logging.getLogger(__name__)

FOLDERS = ("cells", "trajectories", "sweeps", "cache/tokens", "cache/requests", "cache/bases")

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")


@dataclass(frozen=True)
class CellState:
    """How far a cell is, what was asked of it and is there (``Record.answers``), and its record's name, if any."""

    status: Status
    answers: tuple[str, ...] = ()
    record: str = ""


class Ledger(LedgerPaths):
    """All records, attempts and leases under one storage root. Made by ``Ledger.open``.

    Attributes:
        corrupt: the unsound files met so far, with what is wrong; each counts as not there.
    """

    def __init__(self, storage: Root):
        super().__init__(storage)
        self.corrupt: dict[Path, str] = {}
        self._watch = LeaseWatch()

    @cached_property
    def _records(self) -> Records:
        return Records(self.storage, marker.record_places(self.storage), self._report_record)

    def _report_record(self, key: str, error: str) -> None:
        self.report_corrupt(self.storage.local(key), error)

    @classmethod
    def open(cls, root: str | Path | Root, create: bool = True, place: str = "storage.root") -> Ledger:
        """Open the ledger under a root.

        Args:
            root: a folder, by its path, or any storage.
            create: for writing, and made where it is not there; else for reading only.
            place: where the root is named, for what is said of it.

        Raises:
            InvalidInput: the root cannot be written (``create``), or is no ledger (not ``create``).
            Unsupported: the root is an address, or a newer version of massive-sft made it.
            Corrupt: ``ledger.json`` is unsound.
        """
        ledger = cls(_folder_at(root, place) if isinstance(root, str | Path) else root)
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
        return self.storage.local(self._records.write(record, claim))

    # Reading

    def read_record(self, cell: str) -> Record | None:
        """Return a cell's newest record, or None.

        When that one is unsound, it is reported in ``corrupt`` and the cell has none: an older one may have been
        superseded because it was wrong.

        Raises Unsupported when a newer version of massive-sft wrote it.
        """
        return self._records.read(cell)

    def history(self, cell: str) -> Iterator[Record]:
        """Yield a cell's sound records, the newest first; where the newest is unsound, none, as ``read_record``.

        Raises Unsupported when a newer version of massive-sft wrote one.
        """
        return self._records.history(cell)

    def verified_file(self, record: Record, name: str) -> Path:
        """Return the path of a file that a record rests on, once its content is seen to be what the record says.

        Args:
            name: its path below the storage root, one of ``record.files``.

        Raises FileNotFoundError, or ``Corrupt`` when it has changed since.
        """
        path = self.storage.local(name)
        if not path.is_file() or hash_file(path) != record.files[name]:
            path = self.storage.fetch_file(name)
            if hash_file(path) != record.files[name]:
                raise Corrupt(f"{path}: does not match the checksum in the record of {record.cell}")
        return path

    def records(self) -> Iterator[Record]:
        """Yield every cell's newest sound record, by cell id; each is verified."""
        return self._records.read_all()

    def record_path(self, cell: str, revision: Revision) -> Path:
        """Return the file of a cell's record; it need not exist."""
        return self.storage.local(self._records.places.key(cell, revision))

    def entries(self, cells: Collection[str] | None = None) -> dict[str, Entry]:
        """Return the index entry of each cell (all, or those asked for) that has a sound record, by cell id.

        Every entry is checked against the record's file, and made anew where it does not fit.
        A bit that flipped on the disk and left the file's size and time alone is found by ``records``, not here.
        """
        return self._records.entries(cells)

    def states(self, cells: Mapping[str, str | None]) -> dict[str, CellState]:
        """Return how far each cell is.

        Args:
            cells: trajectory id by cell id; None for a base model's cell.

        A cell without a record is RUNNING while a lease on it or on its trajectory looks live, else WAITING: so too
        where the owner only waits, as a training does for its workers.
        """
        return self._states(cells, self._records.entries(cells))

    def listed_states(self, cells: Mapping[str, str | None]) -> dict[str, CellState]:
        """Return how far each cell is as listings tell it, which takes half of the file calls.

        Records that are new, gone, or other files than before are seen as by ``states``. One that was edited or damaged
        in place counts until ``states`` or ``entries`` looked at it, or somebody read it, in whatever process.
        """
        return self._states(cells, self._records.listed_entries(cells))

    def _states(self, cells: Mapping[str, str | None], entries: Mapping[str, Entry]) -> dict[str, CellState]:
        left = {cell: trajectory for cell, trajectory in cells.items() if cell not in entries}
        known, begun = (set(self.ids("cells")), set(self.ids("trajectories"))) if left else (set(), set())
        leased = {run for run in {*left.values()} & begun if run and self._is_live(self.trajectory_dir(run))}

        def state(cell: str) -> CellState:
            if cell in entries:
                return CellState(entries[cell].status, entries[cell].answers, entries[cell].record)
            running = left[cell] in leased or (cell in known and self._is_live(self.cell_dir(cell)))
            return CellState(Status.RUNNING if running else Status.WAITING)

        return {cell: state(cell) for cell in cells}

    def statuses(self, cells: Mapping[str, str | None]) -> dict[str, Status]:
        """Return the status of each cell, as ``states``."""
        return {cell: state.status for cell, state in self.states(cells).items()}

    def is_in_work(self, cell: str, trajectory: str | None) -> bool:
        """Return whether somebody trains or scores a cell now, one that has a record too: as of one that is RUNNING.

        Args:
            trajectory: its training's; None to ask whether somebody scores it alone.
        """
        return self._is_live(self.cell_dir(cell)) or (
            trajectory is not None and self._is_live(self.trajectory_dir(trajectory))
        )

    def _is_live(self, home: Path) -> bool:
        seen = read_lease(self.lease_of(home))
        return seen is not None and not seen.waits and seen.seems_live()

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

    def is_free(self, cell: str) -> bool:
        """Return whether the lease on a cell could be taken; of an owner elsewhere only several looks can tell."""
        lease = self.lease_of(self.cell_dir(cell))
        return self._watch.may_be_taken(lease, read_lease(lease))

    def is_training_free(self, trajectory: str) -> bool:
        """Return whether the lease on a trajectory could be taken, as ``is_free``."""
        lease = self.lease_of(self.trajectory_dir(trajectory))
        return self._watch.may_be_taken(lease, read_lease(lease))

    def lease_folder(self, home: Path, owner: str, ttl_s: float = TTL_S) -> Lease | None:
        """Take the lease on a cell's or a trajectory's folder; None while another holds it."""
        places = self._records.places.of(home.name) if home.parent.name == "cells" else []
        above = max((place.revision.lease for place in places), default=0)
        return Lease.acquire(self.lease_of(home), owner, self._watch, ttl_s, above)


def _folder_at(root: str | Path, place: str) -> Folder:
    """Return the folder that a path means. Raises Unsupported for an address."""
    scheme = _SCHEME.match(str(root))
    if scheme:
        rule = "must be a folder of a local disk, NFS or Lustre (a sweep's storage.root may be s3://BUCKET/PREFIX)"
        raise Unsupported(f"{place}: {rule}, got {redact(str(root))}")
    return Folder(Path(root).expanduser().absolute())


def _content(data: bytes, place: str) -> Any:
    return json.loads(unseal(data, place))["content"]
