"""The snapshot of the cell that comes next, opened while the present one is scored: fetched, checked, and read."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from massive_sft.ledger.store import Ledger
from massive_sft.models.host_memory import may_keep
from massive_sft.models.location import folder_states
from massive_sft.models.warm_model import Tensors, WarmModel, read_tensors
from massive_sft.planning.plan import CellPlan, RunPlan
from massive_sft.running.outcome import open_snapshot, snapshot_folder

log = logging.getLogger(__name__)

Upcoming = Callable[[], "tuple[CellPlan, RunPlan | None] | None"]
Opened = tuple[Path, dict[str, str]]


@dataclass
class _Ahead:
    """A snapshot that is being opened.

    Attributes:
        key: its trajectory and epoch, once they are known.
        found: where it is, and its hashes.
        states: what the files in the ledger were known by before they were checked.
        tensors: of its files; None where they were not kept.
        held: ends what holds it.
    """

    key: tuple[str, int | None] | None = None
    found: Opened | None = None
    states: object = None
    tensors: Tensors | None = None
    held: ExitStack = field(default_factory=ExitStack)
    thread: threading.Thread = field(default_factory=threading.Thread)


class ReadAhead:
    """Opens snapshots as ``open_snapshot`` does, and while one is used, the next in another thread.

    What is read stays on the host where it is a small part of what is free (``host_memory``), else what is fetched and
    checked is likely to be in the system's cache of files. What fails ahead is done, and said, when its turn comes.

    Args:
        upcoming: returns the cell that will probably be next, once there is one, with its run; None for none.
        warm: is offered the tensors that were read.
    """

    def __init__(self, upcoming: Upcoming, warm: WarmModel):
        self._upcoming, self._warm = upcoming, warm
        self._ahead: _Ahead | None = None

    @contextmanager
    def open(self, ledger: Ledger, trajectory: str, epoch: int) -> Iterator[Opened | None]:
        """As ``open_snapshot``."""
        ahead = self._taken(ledger, trajectory, epoch)
        with ExitStack() as held:
            if ahead is not None and ahead.found is not None:
                held.push(ahead.held)
                found: Opened | None = ahead.found
                self._warm.offer(ahead.found[0], ahead.tensors)
                ahead.tensors = None  # so that they go once they are copied
                held.callback(self._warm.offer, ahead.found[0], None)
            else:
                found = held.enter_context(open_snapshot(ledger, trajectory, epoch))
            if self._ahead is None:
                self._ahead = _Ahead()
                self._ahead.thread = threading.Thread(target=self._open_next, args=(ledger, self._ahead), daemon=True)
                self._ahead.thread.start()
            yield found

    def _taken(self, ledger: Ledger, trajectory: str, epoch: int) -> _Ahead | None:
        """Return the snapshot if it was opened ahead, whole and as it was; wait for it where it is being opened."""
        ahead = self._ahead
        if ahead is None or (ahead.thread.is_alive() and ahead.key != (trajectory, epoch)):
            return None  # what is next may not be known yet
        ahead.thread.join()
        self._ahead = None
        is_it = ahead.key == (trajectory, epoch) and ahead.found is not None
        if is_it and folder_states(snapshot_folder(ledger, trajectory, epoch)) == ahead.states:
            return ahead
        ahead.held.close()
        return None

    def _open_next(self, ledger: Ledger, ahead: _Ahead) -> None:
        try:
            cell, run = self._upcoming() or (None, None)
            if cell is None or run is None:
                return
            ahead.key = key = run.trajectory.id, cell.cell.epoch
            ahead.states = folder_states(snapshot_folder(ledger, *key))
            found = ahead.held.enter_context(open_snapshot(ledger, *key))
            if found is not None:
                tensors = read_tensors(found[0])
                if may_keep(sum(tensor.nbytes for tensor in tensors.values())):
                    ahead.tensors = {name: tensor.clone() for name, tensor in tensors.items()}
                ahead.found = found
        except Exception as error:  # noqa: BLE001 - it is met again, and told of, when the cell's turn comes
            log.info("not read ahead: %s", error)
