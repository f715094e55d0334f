"""The ledger: every outcome under one storage root, the truth that all else mirrors.

Nothing here is ever overwritten. A cell's records are files ``record-1.json``, ``record-2.json``, ... and the highest
sound one counts; each is written whole under a temporary name and then linked to the next free number, which fails
when somebody else took that number in between. So a process that was stopped at any point and wakes up later cannot
replace what was written meanwhile, whatever it had verified before it was stopped.
"""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from massive_sft import files
from massive_sft.errors import Corrupt, InvalidInput, LedgerError, Problem, Unsupported
from massive_sft.fingerprint import ID_LENGTH, hash_file
from massive_sft.ledger.attempt import Attempt
from massive_sft.ledger.index import Entry, append_entries, entry_of, read_index, write_index
from massive_sft.ledger.lease import TTL, Claim, Lease, Watch, look
from massive_sft.ledger.provenance import redact
from massive_sft.ledger.record import SCHEMA, Record, Status, dump_record, load_record, newer_schema, seal, unseal

log = logging.getLogger(__name__)

FOLDERS = ("cells", "trajectories", "sweeps", "cache/tokens", "cache/requests", "cache/bases")

_ID = re.compile(rf"[0-9a-f]{{{ID_LENGTH}}}")
_RECORD = re.compile(r"record-([1-9][0-9]*)\.json")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")


class Ledger:
    """All records, attempts and leases under one storage root. Made by ``Ledger.open``.

    Attributes:
        root: the storage root.
        corrupt: the unsound files met so far, with what is wrong; each counts as not there.
    """

    def __init__(self, root: Path):
        self.root = root
        self.corrupt: dict[Path, str] = {}
        self._watch = Watch()

    @classmethod
    def open(cls, root: str | Path, create: bool = True) -> Ledger:
        """Open the ledger under ``root``; with ``create`` for writing, without it for reading only.

        Raises:
            InvalidInput: the root cannot be written (``create``), or is no ledger (not ``create``).
            Unsupported: the root is an object store, or a newer version of massive-sft made it.
            Corrupt: ``ledger.json`` is unsound.
        """
        scheme = _SCHEME.match(str(root))
        if scheme:
            raise Unsupported(
                f"storage.root: {redact(str(root))}: {scheme[1]}: is not supported yet, only folders of a local disk, "
                "NFS or Lustre; mount it or choose a folder"
            )
        ledger = cls(Path(root).expanduser().absolute())
        head = ledger.root / "ledger.json"
        try:
            if not create or head.exists():
                _check_schema(head)
            if create:
                ledger._prepare(head)
        except FileNotFoundError as error:
            if create:
                raise _not_writable(root, error) from error
            raise InvalidInput(Problem("storage.root", "is no ledger, it has no ledger.json", str(root))) from error
        except OSError as error:
            raise _not_writable(root, error) from error
        return ledger

    def _prepare(self, head: Path) -> None:
        """Make the folders, prove that files can be linked here, and make ``ledger.json`` last."""
        self.root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.root, prefix=".probe.") as probe:
            Path(probe, "a").touch()
            os.link(Path(probe, "a"), Path(probe, "b"))
        for folder in FOLDERS:
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        if not head.exists():
            files.write_json(head, {"schema": SCHEMA})

    # Where things lie

    def cell_dir(self, cell: str) -> Path:
        """Return the folder of a cell; it need not exist."""
        return self.root / "cells" / _checked(cell)

    def trajectory_dir(self, trajectory: str) -> Path:
        """Return the folder of a trajectory; it need not exist."""
        return self.root / "trajectories" / _checked(trajectory)

    def sweep_dir(self, name: str) -> Path:
        """Return the folder of a sweep by its name; it need not exist."""
        if not name or name.startswith(".") or "/" in name:
            raise ValueError(f"no name of a sweep: {name!r}")
        return self.root / "sweeps" / name

    def cache_dir(self, kind: str) -> Path:
        """Return the folder of a cache: ``tokens``, ``requests`` or ``bases``."""
        return self.root / "cache" / kind

    # Writing

    def write_cell(self, cell: str, content: Mapping[str, Any]) -> None:
        """Store what a cell is (the content its id hashes) as ``cell.json``, unless it is there.

        Raises LedgerError when other content lies under this id.
        """
        self._write_once(self.cell_dir(cell) / "cell.json", content)

    def write_spec(self, trajectory: str, content: Mapping[str, Any]) -> None:
        """Store what a trajectory is (the content its id hashes) as ``spec.json``, unless it is there.

        Raises LedgerError when other content lies under this id.
        """
        self._write_once(self.trajectory_dir(trajectory) / "spec.json", content)

    def _write_once(self, path: Path, content: Mapping[str, Any]) -> None:
        data = seal({"schema": SCHEMA, "content": content})
        try:
            unseal(found := path.read_bytes(), str(path))
            if found != data:
                raise LedgerError(f"{path}: other content lies under this id; one id must mean one thing")
            return
        except FileNotFoundError:
            pass
        except Corrupt as error:
            self.report(path, str(error))
        files.write_bytes(path, data)

    def read_cell(self, cell: str) -> dict[str, Any]:
        """Return what a cell is, as ``write_cell`` stored it. Raises FileNotFoundError, ``Corrupt``."""
        path = self.cell_dir(cell) / "cell.json"
        content: dict[str, Any] = json.loads(unseal(path.read_bytes(), str(path)))["content"]
        return content

    def write_record(self, record: Record, claim: Claim | None = None) -> Path:
        """Write a record as the cell's newest and return its path. It is the last thing written of a cell.

        Args:
            record: the outcome; secrets in its ``error`` are hidden.
            claim: the lease under which it was made; without one, nothing is fenced.

        Raises ``LeaseLost`` when the claim is no longer held: then nothing was written.
        """
        record = record if record.error is None else record.model_copy(update={"error": redact(record.error)})
        folder = self.cell_dir(record.cell)
        folder.mkdir(parents=True, exist_ok=True)
        with _temporary(folder, dump_record(record)) as data:
            while True:
                revision = max(_revisions(folder), default=0) + 1
                # The order matters: whoever takes the lease over after this check and writes, takes this number.
                if claim is not None:
                    claim.verify()
                path = folder / f"record-{revision}.json"
                try:
                    os.link(data, path)
                    break
                except FileExistsError:
                    continue
        files.sync_folder(folder)
        self._try_to_index(append_entries, [entry_of(record, revision, path)])
        return path

    # Reading

    def read_record(self, cell: str) -> Record | None:
        """Return a cell's newest sound record, or None. Unsound ones are reported in ``corrupt`` and passed over.

        Raises Unsupported when a newer version of massive-sft wrote it.
        """
        found = self._newest(self.cell_dir(cell))
        return None if found is None else found[0]

    def _newest(self, folder: Path) -> tuple[Record, int, Path] | None:
        for revision in sorted(_revisions(folder), reverse=True):
            path = folder / f"record-{revision}.json"
            try:
                record = load_record(path)
                if record.cell != folder.name:
                    raise Corrupt(f"{path}: is the record of another cell, {record.cell}")
            except Corrupt as error:
                self.report(path, str(error))
            else:
                return record, revision, path
        return None

    def file_of(self, record: Record, name: str) -> Path:
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
        for cell in self._cells():
            record = self.read_record(cell)
            if record is not None:
                yield record

    def entries(self, cells: Collection[str] | None = None) -> dict[str, Entry]:
        """Return the index entry of each cell (all, or those asked for) that has a sound record, by cell id.

        Every entry is checked against the cell's folder, and made anew where it does not fit.
        A bit that flipped on the disk and left the file's size and time alone is found by ``records``, not here.
        """
        index = self._index()
        current: dict[str, Entry] = {}
        for cell in self._cells():
            if cells is not None and cell not in cells:
                continue
            folder = self.root / "cells" / cell
            entry = index.get(cell)
            if entry is not None and entry.matches(folder):
                current[cell] = entry
            elif (newest := self._newest(folder)) is not None:
                current[cell] = entry_of(*newest)
        missed = [entry for cell, entry in current.items() if index.get(cell) != entry]
        if missed:
            self._try_to_index(append_entries, missed)
        return current

    def statuses(self, cells: Mapping[str, str | None]) -> dict[str, Status]:
        """Return how far each cell is.

        Args:
            cells: trajectory id by cell id; None for a base model's cell.

        A cell without a record is RUNNING while a lease on it or on its trajectory looks live, else WAITING.
        """
        entries = self.entries(cells)
        known = set(self._cells())
        trajectories = {trajectory for cell, trajectory in cells.items() if trajectory and cell not in entries}
        leased = {trajectory for trajectory in trajectories if _live(self.trajectory_dir(trajectory))}

        def status(cell: str, trajectory: str | None) -> Status:
            if cell in entries:
                return entries[cell].status
            running = trajectory in leased or (cell in known and _live(self.cell_dir(cell)))
            return Status.RUNNING if running else Status.WAITING

        return {cell: status(cell, trajectory) for cell, trajectory in cells.items()}

    def rebuild_index(self) -> int:
        """Write the index anew from the records, each verified; return how many cells it holds."""
        entries = self._scan()
        write_index(self.root, entries.values())
        return len(entries)

    def _scan(self) -> dict[str, Entry]:
        found = ((cell, self._newest(self.cell_dir(cell))) for cell in self._cells())
        return {cell: entry_of(*newest) for cell, newest in found if newest is not None}

    def _index(self) -> dict[str, Entry]:
        try:
            return read_index(self.root)
        except (FileNotFoundError, Corrupt) as error:
            log.info("rebuilding the index: %s", error)
        entries = self._scan()
        self._try_to_index(write_index, entries.values())
        return entries

    def _try_to_index(self, write: Callable[[Path, Iterable[Entry]], None], entries: Iterable[Entry]) -> None:
        try:
            write(self.root, entries)
        except OSError as error:
            # A full disk, or a reader of another's ledger: the answer is right, only slower next time.
            log.info("the index cannot be written: %s", error)

    def _cells(self) -> list[str]:
        try:
            names = os.listdir(self.root / "cells")
        except FileNotFoundError:
            return []
        return sorted(name for name in names if _ID.fullmatch(name))

    def report(self, path: Path, error: str) -> None:
        """Note that something on disk is unsound and counts as not there: warned of once, kept in ``corrupt``."""
        if path not in self.corrupt:
            log.warning("%s; it counts as not there", error)
        self.corrupt[path] = error

    # Attempts

    def begin(self, trajectory: str, owner: str, ttl: float = TTL) -> Attempt | None:
        """Start an attempt at a trajectory, or return None while somebody else holds it.

        Never waits. An owner that died on another machine is noticed by calling this again on the same ``Ledger``.

        Args:
            trajectory: its id.
            owner: who works on it, for people.
            ttl: seconds without a sign of life after which others may take over.
        """
        return Attempt.begin(self.trajectory_dir(trajectory), owner, self._watch, ttl)

    def lease_cell(self, cell: str, owner: str, ttl: float = TTL) -> Lease | None:
        """Take the lease on a cell, for work that is no training (scoring, measuring); None while another holds it."""
        return Lease.acquire(self.cell_dir(cell) / "lease", owner, self._watch, ttl)


def _check_schema(head: Path) -> None:
    try:
        content = files.read_json(head)
    except Corrupt:
        content = None
    schema = content.get("schema") if isinstance(content, dict) else None
    if not isinstance(schema, int) or schema < 1:
        remedy = f'with a ledger around it, replace it by {{"schema": {SCHEMA}}}'
        raise Corrupt(f"{head}: states no schema; {remedy}")
    if schema > SCHEMA:
        raise newer_schema(head, schema)


def _not_writable(root: str | Path, error: OSError) -> InvalidInput:
    rule = f"must be a folder that can be written and holds hard links ({error.strerror or error})"
    return InvalidInput(Problem("storage.root", rule, str(root)))


def _checked(identity: str) -> str:
    if not _ID.fullmatch(identity):
        raise ValueError(f"no id: {identity!r}")
    return identity


def _revisions(folder: Path) -> list[int]:
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return [int(found[1]) for found in map(_RECORD.fullmatch, names) if found]


def _live(folder: Path) -> bool:
    seen = look(folder / "lease")
    return seen is not None and seen.looks_live()


@contextmanager
def _temporary(folder: Path, data: bytes) -> Iterator[Path]:
    """Flush ``data`` to a file in ``folder`` that is gone afterwards (unless it got another name meanwhile)."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".record.", suffix=".tmp") as file:
        os.fchmod(file.fileno(), 0o644)  # a record is for all who may see the folder
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        yield Path(file.name)
