"""The runs of a sweep that are going on, on any machine that shares the root, and how to end them.

Each run holds a lease in a place of its own, so that a run that was killed shows as such. A request to end it is a
file there, which only this run reads. The place is removed when the run ends.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from massive_sft.ledger.lease import Lease, LeaseState, read_lease
from massive_sft.ledger.storage import Storage

CANCEL = "cancel.json"


@dataclass(frozen=True)
class Run:
    """A run of a sweep.

    Attributes:
        place: its registration.
        name: who runs it, ``host:pid``.
        since: when it registered, ISO 8601 in UTC.
    """

    place: Storage
    name: str
    since: str

    def request_end(self, by: str) -> None:
        """Request that it ends; it polls about once a second. Raises OSError where nothing can be written."""
        if self.place.list():
            self.place.put(CANCEL, json.dumps({"schema": 1, "by": by}).encode())

    def end_requested(self) -> bool:
        """Whether the end was requested."""
        try:
            self.place.get(CANCEL)
        except FileNotFoundError:
            return False
        return True

    def is_live(self) -> bool:
        """Whether it still goes on, as far as can be seen from here."""
        seen = read_lease(self.place)
        return seen is not None and seen.seems_live()


@contextmanager
def register_run(sweeps: Storage, sweep: str, owner: str) -> Iterator[Run]:
    """Let others see, while the block runs, that a run of a sweep goes on.

    What dead runs of any sweep left is removed: of this machine once they are gone, of others once they stood still
    for ten times the time of a lease. That is told by the storage's clock alone, as this run has just written there.
    Raises OSError where nothing can be written.

    Args:
        sweeps: the root's sweeps, by name.
        sweep: the name of this one.
        owner: who runs it.
    """
    place = sweeps.at(f"{sweep}/runs/{secrets.token_hex(8)}")
    lease = Lease.acquire(place, owner)
    if lease is None:
        raise FileExistsError(f"{place}: is held by another run")
    try:
        seen = read_lease(place)
        if seen is None:
            raise FileNotFoundError(f"{place}: cannot be seen yet")
        _remove_dead(sweeps, seen.modified)
        yield _run(place, seen)
    finally:
        lease.release()
        with suppress(OSError):
            place.delete("")  # a request that comes in between is for a run that ended


def _remove_dead(sweeps: Storage, now: float) -> None:
    for run, state in (registration for name in sweeps.list() for registration in _runs(sweeps.at(name.name))):
        if state.released or not state.seems_live(now):
            with suppress(OSError):  # of another user, or removed by another process
                run.place.delete("")


def find_live_runs(sweep: Storage) -> list[Run]:
    """Return the runs of a sweep that go on, as far as can be seen, the oldest first."""
    return sorted((run for run, seen in _runs(sweep) if seen.seems_live()), key=lambda run: run.since)


def find_possible_runs(sweep: Storage) -> list[Run]:
    """Return the runs of a sweep of which it is not certain that they are over."""
    return [run for run, seen in _runs(sweep) if not (seen.released or seen.owner_is_gone())]


def _runs(sweep: Storage) -> Iterator[tuple[Run, LeaseState]]:
    """Yield all registrations. One that is only half made holds no lease yet and is none."""
    for item in sweep.list("runs"):
        place = sweep.at(f"runs/{item.name}")
        seen = read_lease(place)
        if seen is not None:
            yield _run(place, seen), seen


def _run(place: Storage, seen: LeaseState) -> Run:
    return Run(place, str(seen.owner.get("name", "unknown")), str(seen.owner.get("since", "")))
