"""The mirror: one writer in a thread that brings the tracker to what the ledger says, whatever the tracker does.

It never holds the sweep up. What the tracker should show follows from the ledger and from what the sweep asks, so on
every connection each cell's newest record is compared with the checksum that its run carries (``shown``), and what
differs is written. A crash at any point, a lost connection, a deleted store, a record of another process: all end in
the same comparison.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from massive_sft.core.errors import InvalidInput, MassiveSFTError, Problem
from massive_sft.ledger.lease import Lease, LeaseWatch, this_process
from massive_sft.ledger.marker import ledger_id
from massive_sft.ledger.provenance import redact
from massive_sft.ledger.store import Ledger
from massive_sft.sweep.cell import Coordinates
from massive_sft.tracking.address import PLACE, database_path, resolve_uri
from massive_sft.tracking.artifacts import copy_artifact, write_cell_artifacts
from massive_sft.tracking.client import TRACKER_ERRORS, is_outage
from massive_sft.tracking.connection_check import tracking_problem
from massive_sft.tracking.queue import Pending, Queue
from massive_sft.tracking.shown import Shown
from massive_sft.tracking.source import AsAsked, AsRecorded, CellSource, Unreadable, readable
from massive_sft.tracking.spool import Item, read_sound_spool, write_spool
from massive_sft.tracking.store import is_locked, open_store
from massive_sft.tracking.sweep_run import Origin
from massive_sft.tracking.tracker import Tracker, shorten

log = logging.getLogger(__name__)

FIRST_DELAY_S, MAX_DELAY_S = 1.0, 60.0
"""Seconds between tries while the tracker does not answer."""
MOMENT_S, SAY_EVERY_S = 2.0, 30.0
"""Seconds until it is said what the end waits for, the first time and again."""
SPOOL = "mirror-spool.jsonl"
LEASE = "mirror-lease"
SHOWN = "mirror-shown.jsonl"
AS_RECORDED = AsRecorded()


class _Busy(MassiveSFTError):
    """Another process mirrors this sweep."""


class Mirror:
    """Mirrors one sweep. Made by ``Mirror.open``; ``close`` must be called at the end."""

    def __init__(self, ledger: Ledger, sweep: str, cells: Mapping[str, Coordinates], uri: str, as_asked: AsAsked):
        self._ledger = Ledger(ledger.storage)  # an own one: it is read in another thread
        self._sweep = sweep
        self._uri = uri
        self._source = CellSource(self._ledger, cells, as_asked)
        self._place = ledger.sweep(sweep)
        self._folder = ledger.sweep_dir(sweep)
        self._watch = LeaseWatch()
        self._lease: Lease | None = None
        self._tracker: Tracker | None = None
        self._shown = Shown(self._folder / SHOWN)
        self._queue = Queue()
        self._problem = ""
        self._spooled = False
        self._caught_up = False  # on this connection
        self._unseen = True  # nobody has looked yet what the tracker lacks
        self._elsewhere = ""
        self._repeated: set[str] = set()  # cells, whose calls may have been lost and were made again
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)

    @classmethod
    def open(
        cls,
        ledger: Ledger,
        sweep: str,
        cells: Mapping[str, Coordinates],
        tracking_uri: str,
        as_asked: AsAsked = AS_RECORDED,
    ) -> Mirror:
        """Connect to the tracker and start to mirror: first what was missed before, then what is ``put``.

        Where another process mirrors this sweep, or has the local store locked, its turn is awaited; meanwhile
        everything stays pending.

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
        problem = tracking_problem(tracking_uri, PLACE, ledger.root, sweep)
        if problem:
            raise InvalidInput(problem)
        mirror = cls(ledger, sweep, cells, uri, as_asked)
        try:
            mirror._first_connection()
        except TRACKER_ERRORS as error:
            mirror._release()
            if not is_locked(error):
                raise InvalidInput(Problem(PLACE, f"cannot be used ({shorten(error)})", redact(uri))) from error
            mirror._problem = f"another process holds it ({shorten(error)})"
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

    @property
    def elsewhere(self) -> str:
        """The storage roots of other ledgers that have a sweep of this name on the tracker; empty where none has."""
        return self._elsewhere

    def put(self, cell: str) -> None:
        """Mirror a cell's newest record soon. Returns at once and raises nothing."""
        self._queue.put([cell])

    def artifact(self, path: Path) -> None:
        """Upload a file of the sweep (its YAML, the report) to the parent run soon. Returns at once."""
        self._queue.put([path.absolute()])

    def close(self, timeout_s: float | None = None, say: Callable[[str], None] = lambda _: None) -> Pending:
        """Write what waits, and return what could not be written; the next run or ``mirror_all`` takes it up.

        While the tracker does not answer it is asked once more, not for long.

        Args:
            timeout_s: seconds to wait at most; None to wait as long as things are being written.
            say: told what is waited for, when that takes longer than a moment, and now and then how far it is.
        """
        self._queue.close()
        deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s
        pause = MOMENT_S
        while self._thread.is_alive() and (left_s := deadline - time.monotonic()) > 0:
            self._thread.join(min(pause, left_s))
            if self._thread.is_alive() and left_s > pause:
                say(self._waits_for(left_s - pause))
            pause = SAY_EVERY_S
        if not self._thread.is_alive():
            self._release()
        reasons = [self._problem, *self._queue.refused.values(), "time was up before everything was written"]
        items = self.pending
        return Pending(items, next(filter(None, reasons)) if items or self._unseen else "", self._unseen)

    def _waits_for(self, left_s: float) -> str:
        items = self.pending
        files = sum(isinstance(item, Path) for item in items)
        what = f"{len(items) - files} cells and {files} files to write" if items else "it to take the last of it"
        limit = "" if left_s == math.inf else f", at most {left_s:.0f} s more"
        return f"waiting for the tracker: {what}{limit}{f' ({self._problem})' if self._problem else ''}"

    # Only the thread runs what follows, but for the first connection, which comes before it.

    def _work(self) -> None:
        delay = FIRST_DELAY_S
        while True:
            item: Item | None = None
            try:
                tracker = self._connect()
                self._catch_up(tracker)
                if not self._queue.items:
                    self._recovered()
                item = self._queue.take()
                if item is not None:
                    self._write(tracker, item)
                elif not self._queue_missed():
                    self._end(tracker)
                    # A process that was refused the lease until now has left its records to this one.
                    if not self._queue_missed():
                        return
            except Exception as error:  # noqa: BLE001 - whatever the tracker does, it must not end the sweep
                if item is not None and _is_at_fault(error):
                    self._refuse(item, error)
                    continue
                self._suspend(error, item)
                if self._queue.closing and not self._awaits(error):
                    return
                self._queue.pause(delay)
                delay = min(2 * delay, MAX_DELAY_S)
            else:
                delay = FIRST_DELAY_S
                self._queue.done()
                self._recovered()

    def _awaits(self, error: Exception) -> bool:
        """Wait a while at the end for the lease of a process that may be dead, as its standing still will tell."""
        if not isinstance(error, _Busy) or self._watch.saw_life(self._place.at(LEASE)):
            return False
        time.sleep(FIRST_DELAY_S)
        return True

    def _end(self, tracker: Tracker) -> None:
        for cell in self._repeated:
            tracker.look_again(cell)
        self._repeated.clear()
        tracker.finish()
        self._release()

    def _first_connection(self) -> None:
        try:
            self._connect()
        except _Busy as error:
            self._problem, self._unseen = str(error), False

    def _connect(self) -> Tracker:
        """Take the lease and find the sweep on the tracker; does nothing while all of that holds."""
        path = database_path(self._uri)
        if self._tracker is None and path is not None:
            open_store(path)
        if self._lease is None or not self._lease.held():
            self._release()
            owner = this_process()
            self._lease = Lease.acquire(self._place.at(LEASE), owner, self._watch)
            if self._lease is None:
                raise _Busy("another process mirrors this sweep; at its end it writes what is missing")
            self._spooled = (self._folder / SPOOL).exists()
            self._queue.put(read_sound_spool(self._folder / SPOOL))
        if self._tracker is None:
            origin = Origin(self._sweep, str(self._ledger.storage), ledger_id(self._ledger.storage))
            self._tracker = Tracker(self._uri, origin, self._source.began, self._shown, self._folder)
            self._elsewhere = self._tracker.elsewhere
            self._caught_up = False
        return self._tracker

    def _catch_up(self, tracker: Tracker) -> None:
        """Queue what the runs do not show yet; once for each connection, for it may read them all."""
        if not self._caught_up:
            tracker.recall()
            self._queue_missed()
            self._caught_up, self._unseen = True, False

    def _release(self) -> None:
        self._tracker = None
        if self._lease is not None:
            self._lease.release()
            self._lease = None

    def _queue_missed(self) -> bool:
        """Queue the cells whose newest record the tracker does not show; return whether there are any.

        Those that wait or were refused are known already.
        """
        cells = {item for item in self._queue.items if isinstance(item, str)}
        missed = self._source.missed(self._shown, cells)
        self._queue.put(missed)
        return bool(missed)

    def _write(self, tracker: Tracker, item: Item) -> None:
        if isinstance(item, Path):
            with readable(str(item)):
                is_there = item.is_file()
            if is_there:
                tracker.attach(lambda folder: copy_artifact(item, folder))
            else:
                log.warning("%s is gone and cannot be mirrored", item)
        else:
            known = self._shown.cells.get(item)
            if known is None or known.version != self._source.version(item):
                record, run, curve = self._source.read(item)
                tracker.write(run, curve, lambda folder: write_cell_artifacts(self._ledger, record, folder))

    def _recovered(self) -> None:
        if self._problem:
            log.info("the tracker answers again")
        self._problem = ""
        if self._spooled:
            self._spool()

    def _refuse(self, item: Item, error: Exception) -> None:
        """Set an item aside that is itself at fault, so that the others go on."""
        if self._queue.refuse(shorten(error)):
            log.warning("%s cannot be mirrored: %s", item, shorten(error))
        self._tracker = None
        self._spool()

    def _suspend(self, error: Exception, item: Item | None) -> None:
        """Keep everything for later: the tracker does not answer, or another process has its turn."""
        self._queue.postpone()
        if isinstance(item, str):
            self._repeated.add(item)
        self._tracker = None
        if not self._problem and not isinstance(error, _Busy):
            path = self._folder / SPOOL
            log.warning("the tracker is lost (%s); what it lacks is in %s and written later", shorten(error), path)
        self._problem = shorten(error)
        self._spool()

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
    ledger: Ledger,
    sweep: str,
    cells: Mapping[str, Coordinates],
    tracking_uri: str,
    as_asked: AsAsked = AS_RECORDED,
    say: Callable[[str], None] = lambda _: None,
    files: Iterable[Path] = (),
) -> Pending:
    """Bring the tracker to what the ledger says of a sweep: catch up, or rebuild a store that was deleted.

    Arguments and errors are those of ``Mirror.open`` and ``Mirror.close``; ``files`` of the sweep go with its cells,
    those that are there. Returns what could not be written.
    """
    # All runs are looked at: some may have been removed on the tracker by hand.
    (ledger.sweep_dir(sweep) / SHOWN).unlink(missing_ok=True)
    mirror = Mirror.open(ledger, sweep, cells, tracking_uri, as_asked)
    for cell in ledger.entries(cells):
        mirror.put(cell)
    for path in files:
        if path.exists():
            mirror.artifact(path)
    return mirror.close(say=say)


def _is_at_fault(error: Exception) -> bool:
    """Whether the item in hand cannot be mirrored, while the tracker answers and nobody else has its turn."""
    return isinstance(error, Unreadable) or not (isinstance(error, _Busy) or is_outage(error))
