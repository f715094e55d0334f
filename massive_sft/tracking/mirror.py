"""The mirror: one writer in a thread that brings the tracker to what the ledger says, whatever the tracker does.

It never holds the sweep up. What the tracker should show follows from the ledger and from what the sweep asks, so on
every connection each cell's newest record is compared with the checksum that its run carries, and what differs is
written. A crash at any point, a lost connection, a deleted store, a record of another process: all end in the same
comparison.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from massive_sft.core.errors import Corrupt, InvalidInput, MassiveSFTError, Problem
from massive_sft.ledger.lease import Lease, LeaseWatch, this_process
from massive_sft.ledger.provenance import redact
from massive_sft.ledger.record import Record
from massive_sft.ledger.store import Ledger
from massive_sft.sweep.cell import Coordinates
from massive_sft.tracking.address import PLACE, database_path, resolve_uri
from massive_sft.tracking.artifacts import copy_artifact, write_cell_artifacts
from massive_sft.tracking.client import TRACKER_ERRORS, is_outage
from massive_sft.tracking.connection_check import tracking_problem
from massive_sft.tracking.curve import RunCurve, loss_curve
from massive_sft.tracking.queue import Pending, Queue
from massive_sft.tracking.run_fields import CellRun, describe_record, span, version
from massive_sft.tracking.spool import Item, read_spool, write_spool
from massive_sft.tracking.store import make_store, relocate_artifacts
from massive_sft.tracking.tracker import Tracker, WriteArtifacts

log = logging.getLogger(__name__)

FIRST_DELAY_S, MAX_DELAY_S = 1.0, 60.0
"""Seconds between tries while the tracker does not answer."""
SPOOL = "mirror-spool.jsonl"

AsAsked = Callable[[Record], Record]
"""Returns a record as far as the sweep asks for it: another sweep on the same root may have made it, or added to it."""


def _as_recorded(record: Record) -> Record:
    return record


class _Busy(MassiveSFTError):
    """Another process mirrors this sweep."""


class _Unreadable(MassiveSFTError):
    """What the ledger holds of an item cannot be read."""


class Mirror:
    """Mirrors one sweep. Made by ``Mirror.open``; ``close`` must be called at the end."""

    def __init__(self, ledger: Ledger, sweep: str, cells: Mapping[str, Coordinates], uri: str, as_asked: AsAsked):
        self._ledger = Ledger(ledger.root)  # an own one: it is read in another thread
        self._sweep = sweep
        self._cells = dict(cells)
        self._base_rows = {names.model: cell for cell, names in cells.items() if names.method == "none"}
        self._uri = uri
        self._as_asked = as_asked
        self._place = ledger.sweep(sweep)
        self._folder = ledger.sweep_dir(sweep)
        self._watch = LeaseWatch()
        self._lease: Lease | None = None
        self._tracker: Tracker | None = None
        self._queue = Queue()
        self._problem = ""
        self._spooled = False
        self._repeated = False  # a call may have been lost and is made again
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)

    @classmethod
    def open(
        cls,
        ledger: Ledger,
        sweep: str,
        cells: Mapping[str, Coordinates],
        tracking_uri: str,
        as_asked: AsAsked = _as_recorded,
    ) -> Mirror:
        """Connect to the tracker and start to mirror: first what was missed before, then what is ``put``.

        Where another process mirrors this sweep, its turn is awaited; meanwhile everything stays pending.

        Args:
            ledger: open for writing.
            sweep: its name.
            cells: the names of the sweep's cells by id.
            tracking_uri: the sweep file's ``tracking.mlflow``.
            as_asked: makes of each record what the sweep shows of it; called in the mirror's thread.

        Raises:
            InvalidInput: the address is wrong, or no server answers there.
        """
        uri = resolve_uri(tracking_uri, ledger.root)
        problem = tracking_problem(tracking_uri, PLACE, ledger.root)
        if problem:
            raise InvalidInput(problem)
        mirror = cls(ledger, sweep, cells, uri, as_asked)
        try:
            mirror._first_connection()
        except TRACKER_ERRORS as error:
            mirror._release()
            raise InvalidInput(Problem(PLACE, f"cannot be used ({_short(error)})", redact(uri))) from error
        except MassiveSFTError:
            mirror._release()
            raise
        mirror._thread.start()
        return mirror

    @property
    def uri(self) -> str:
        """The resolved address, secrets hidden."""
        return redact(self._uri)

    @property
    def problem(self) -> str:
        """Why nothing is written at the moment, for people; empty when all is well."""
        return self._problem

    @property
    def pending(self) -> tuple[Item, ...]:
        """What is not mirrored yet: ids of cells, paths of files."""
        return self._queue.items

    def put(self, cell: str) -> None:
        """Mirror a cell's newest record soon. Returns at once and raises nothing."""
        self._queue.put([cell])

    def artifact(self, path: Path) -> None:
        """Upload a file of the sweep (its YAML, the report) to the parent run soon. Returns at once."""
        self._queue.put([path.absolute()])

    def close(self, timeout_s: float | None = None) -> Pending:
        """Write what waits, and return what could not be written; the next run or ``mirror_all`` takes it up.

        While the tracker does not answer it is asked once more, not for long.

        Args:
            timeout_s: seconds to wait at most; None to wait as long as things are being written.
        """
        self._queue.close()
        self._thread.join(timeout_s)
        if not self._thread.is_alive():
            self._release()
        reasons = [self._problem, *self._queue.refused.values(), "time was up before everything was written"]
        items = self.pending
        return Pending(items, next(filter(None, reasons)) if items else "")

    # Only the thread runs what follows, but for the first connection, which comes before it.

    def _work(self) -> None:
        delay = FIRST_DELAY_S
        while True:
            item: Item | None = None
            try:
                tracker = self._connect()
                if not self._queue.items:
                    self._recovered()
                item = self._queue.take()
                if item is not None:
                    self._write(tracker, item)
                elif not self._queue_missed(tracker):
                    self._end(tracker)
                    # A process that was refused the lease until now has left its records to this one.
                    if not self._queue_missed(tracker):
                        return
            except Exception as error:  # noqa: BLE001 - whatever the tracker does, it must not end the sweep
                if item is not None and not isinstance(error, _Busy) and not is_outage(error):
                    self._refuse(item, error)
                    continue
                self._suspend(error)
                if self._queue.closing:
                    return
                self._queue.pause(delay)
                delay = min(2 * delay, MAX_DELAY_S)
            else:
                delay = FIRST_DELAY_S
                self._queue.done()
                self._recovered()

    def _end(self, tracker: Tracker) -> None:
        if self._repeated:
            tracker.refresh()
            self._repeated = False
        tracker.finish()
        self._release()

    def _first_connection(self) -> None:
        path = database_path(self._uri)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            make_store(path)
            relocate_artifacts(path)
        try:
            self._connect()
        except _Busy as error:
            self._problem = str(error)

    def _connect(self) -> Tracker:
        """Take the lease, find the runs, and queue what they do not show yet; does nothing while all of that holds."""
        if self._lease is None or not self._lease.held():
            self._release()
            owner = this_process()
            self._lease = Lease.acquire(self._place.at("mirror-lease"), owner, self._watch)
            if self._lease is None:
                raise _Busy("another process mirrors this sweep; at its end it writes what is missing")
            self._queue.put(self._read_spool())
        if self._tracker is None:
            self._tracker = Tracker(self._uri, self._sweep, self._ledger.root, self._began)
            self._queue_missed(self._tracker)
        return self._tracker

    def _release(self) -> None:
        self._tracker = None
        if self._lease is not None:
            self._lease.release()
            self._lease = None

    def _queue_missed(self, tracker: Tracker) -> bool:
        """Queue the cells whose newest record the tracker does not show; return whether there are any.

        Those that wait or were refused are known already.
        """
        known = set(self._queue.items)
        bases = {model: self._base_of(model) for model in self._base_rows}
        records = ((cell, self._newest(cell)) for cell in self._cells if cell not in known)
        missed = [
            cell
            for cell, record in records
            if record and tracker.known.get(cell) != version(record, bases.get(self._cells[cell].model))
        ]
        self._queue.put(missed)
        return bool(missed)

    def _began(self) -> int:
        """Return when the sweep's first cell was begun, in milliseconds since 1970; now when there is none."""
        records = (self._ledger.read_record(cell) for cell in self._cells)
        return min((span(record)[0] for record in records if record), default=round(time.time() * 1000))

    def _base_of(self, model: str) -> Record | None:
        row = self._base_rows.get(model)
        return None if row is None else self._newest(row)

    def _newest(self, cell: str) -> Record | None:
        record = self._ledger.read_record(cell)
        return None if record is None else self._as_asked(record)

    def _write(self, tracker: Tracker, item: Item) -> None:
        if isinstance(item, Path):
            if item.is_file():
                tracker.attach(_readable(lambda folder: copy_artifact(item, folder)))
            else:
                log.warning("%s is gone and cannot be mirrored", item)
        else:
            record, run, curve = self._read(item)
            if tracker.known.get(item) != run.version:
                tracker.write(run, curve, _readable(lambda folder: write_cell_artifacts(self._ledger, record, folder)))

    def _read(self, cell: str) -> tuple[Record, CellRun, RunCurve | None]:
        try:
            record = self._newest(cell)
            if record is None:
                raise _Unreadable(f"{cell} has no record")
            names = self._cells.get(cell)
            base = None if names is None else self._base_of(names.model)
            run = describe_record(record, self._ledger.read_cell(cell), names, str(self._ledger.root), base)
            return record, run, loss_curve(self._ledger, record)
        except OSError as error:
            raise _Unreadable(f"{cell} cannot be read: {error}") from error

    def _recovered(self) -> None:
        if self._problem:
            log.info("the tracker answers again")
        self._problem = ""
        if self._spooled:
            self._spool()

    def _refuse(self, item: Item, error: Exception) -> None:
        """Set an item aside that is itself at fault, so that the others go on."""
        if self._queue.refuse(_short(error)):
            log.warning("%s cannot be mirrored: %s", item, _short(error))
        self._tracker = None
        self._spool()

    def _suspend(self, error: Exception) -> None:
        """Keep everything for later: the tracker does not answer, or another process has its turn."""
        self._queue.postpone()
        self._repeated |= self._tracker is not None
        self._tracker = None
        if not self._problem and not isinstance(error, _Busy):
            path = self._folder / SPOOL
            log.warning("the tracker is lost (%s); what it lacks is in %s and written later", _short(error), path)
        self._problem = _short(error)
        self._spool()

    def _read_spool(self) -> list[Item]:
        try:
            items = read_spool(self._folder / SPOOL)
        except Corrupt as error:
            log.warning("%s; it is written anew", error)
            items = []
        self._spooled = (self._folder / SPOOL).exists()
        return items

    def _spool(self) -> None:
        """Let the spool on disk list what is pending; only the lease's holder may."""
        if self._lease is None:
            return
        items = self.pending
        try:
            write_spool(self._folder / SPOOL, items)
        except OSError as error:
            log.warning("%s cannot be written (%s)", self._folder / SPOOL, error)
        self._spooled = bool(items)


def mirror_all(
    ledger: Ledger, sweep: str, cells: Mapping[str, Coordinates], tracking_uri: str, as_asked: AsAsked = _as_recorded
) -> Pending:
    """Bring the tracker to what the ledger says of a sweep: catch up, or rebuild a store that was deleted.

    Arguments and errors are those of ``Mirror.open``. Returns what could not be written.
    """
    mirror = Mirror.open(ledger, sweep, cells, tracking_uri, as_asked)
    for cell in ledger.entries(cells):
        mirror.put(cell)
    return mirror.close()


def _readable(attach: WriteArtifacts) -> WriteArtifacts:
    """Tell an own file that cannot be read from a tracker that cannot be reached; both are OSErrors."""

    def checked(folder: Path) -> None:
        try:
            attach(folder)
        except (OSError, ValueError) as error:
            raise _Unreadable(f"its files cannot be read: {error}") from error

    return checked


def _short(error: Exception) -> str:
    return redact(str(error) or type(error).__name__).partition("\n")[0][:300]
