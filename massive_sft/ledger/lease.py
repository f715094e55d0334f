"""Leases: at most one owner at a time of a folder's work, over any storage and without comparing clocks.

A lease is a prefix with objects ``1``, ``2``, ... Taking it is writing the next number where none is yet, which only
one of several takers can. The highest number is the owner, and everybody below has lost it for good. The owner raises
a *beat counter* in its own object, and never touches another: a process that was stopped for an hour can only write
into its own, superseded one. A taker takes over when the owner released the lease, when the owner's process is gone
from this very machine, or when the counter stood still for the owner's ``ttl_s`` by the taker's own clock.

A listing may be old by a minute (NFS), so an owner may learn late that it lost. Whatever is published under a lease is
therefore ordered by the lease's number (records), or published only once (folders).
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from massive_sft.core.errors import LeaseLost
from massive_sft.ledger.process_identity import is_running, process_identity
from massive_sft.ledger.storage import Storage

TTL_S = 60.0
"""Seconds without a beat after which others may take over; an owner beats four times as often."""


def this_process() -> str:
    """Return this process as an owner's name for people: host and process id."""
    return f"{socket.gethostname()}:{os.getpid()}"


@dataclass(frozen=True)
class LeaseState:
    """The state of a lease: the content of its highest object.

    Attributes:
        number: the object's number.
        owner: its first line; empty when it is damaged (a machine that lost power) or cannot be seen yet.
        beat: the counter, -1 before the first.
        released: the owner gave it back.
        modified: time of the last write by the storage's own clock, seconds.
        waits: the owner keeps others away, and waits itself for what it needs to begin.
    """

    number: int
    owner: dict[str, Any]
    beat: int
    released: bool
    modified: float
    waits: bool = False

    @property
    def progress(self) -> tuple[int, int]:
        """What changes as long as an owner lives: the number and the beat."""
        return self.number, self.beat

    def owner_is_gone(self) -> bool:
        """Whether the owner ran on this machine and its process is no more; False when that cannot be known."""
        return is_running(self.owner.get("process")) is False

    def seems_live(self, now: float | None = None) -> bool:
        """Whether a process seems to hold it, by one read: for display, never for taking over.

        An owner elsewhere counts as live for ten ``ttl_s`` after its last write; one here for as long as its process is
        there, even where it is stopped.

        Args:
            now: the time by the storage's own clock; None trusts this machine's instead, which only a status may.
        """
        if self.released:
            return False
        running = is_running(self.owner.get("process"))
        age = (time.time() if now is None else now) - self.modified
        return age <= 10 * self.ttl_s(TTL_S) if running is None else running

    def ttl_s(self, default: float) -> float:
        """Return the owner's seconds without a beat after which it counts as dead; ``default`` where it states none."""
        stated = self.owner.get("ttl")
        return float(stated) if isinstance(stated, int | float) else default


def read_lease(lease: Storage, least: int = 0) -> LeaseState | None:
    """Return the state of a lease, or None when it was never held.

    Args:
        least: a number that was held, whether the listing shows it yet or not.
    """
    for _ in range(2):
        listed = _highest(lease)
        number = max(listed, least)
        if number == 0:
            return None
        try:
            blob = lease.get(str(number))
        except FileNotFoundError:
            continue  # what is listed is gone (a registration that ended), or cannot be seen yet
        head, _, tail = blob.data.partition(b"\n")
        try:
            owner = json.loads(head)
        except ValueError:
            owner = None
        if not isinstance(owner, dict):
            owner = {}
        beat, _, state = tail.partition(b" ")
        counter = int(beat) if beat.isdigit() else -1
        word = state.strip()
        return LeaseState(number, owner, counter, word == b"released", blob.modified, word == b"waiting")
    return LeaseState(number, {}, -1, False, time.time()) if number == listed else None


class LeaseWatch:
    """Remembers when each lease last changed, by an own monotonic clock.

    Args:
        clock: returns seconds that never go back.
        ttl_s: seconds of standstill that make a lease stale when its owner did not live to state its own.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, ttl_s: float = TTL_S):
        self._clock = clock
        self._ttl_s = ttl_s
        self._changed: dict[Storage, tuple[tuple[int, int], float]] = {}
        self._first: dict[Storage, tuple[int, int]] = {}

    def may_be_taken(self, lease: Storage, seen: LeaseState | None) -> bool:
        """Whether the lease may be taken now. A lease of another machine is never free at the first look."""
        if seen is None or seen.released or seen.owner_is_gone():
            return True
        state, now = seen.progress, self._clock()
        last, since = self._changed.get(lease, (None, now))
        if last != state:
            since = now
        self._changed[lease] = (state, since)
        return now - since >= seen.ttl_s(self._ttl_s)

    def saw_life(self, lease: Storage) -> bool:
        """Whether somebody certainly holds a lease and lives: runs on this machine, or beat since the first call here.

        Who waits for a lease need not wait on then; one that stands still can be taken in the end. One that cannot be
        read counts as held.
        """
        try:
            seen = read_lease(lease)
        except OSError:
            return True
        if seen is None or seen.released:
            return False
        return (
            bool(is_running(seen.owner.get("process"))) or self._first.setdefault(lease, seen.progress) != seen.progress
        )


@dataclass(frozen=True)
class Claim:
    """The right to publish under a lease; can be sent to other processes, where it can be verified too."""

    lease: Storage
    number: int
    token: str

    def verify(self) -> None:
        """Raise ``LeaseLost`` unless this claim's owner still holds the lease."""
        try:
            seen = read_lease(self.lease, self.number)
        except OSError as error:
            raise LeaseLost(f"{self.lease}: the lease cannot be read ({error}), so nothing may be published") from error
        if seen is None or not self.is_of(seen):
            now = "nobody" if seen is None else f"{seen.owner.get('name', 'unknown')} (attempt {seen.number})"
            raise LeaseLost(f"{self.lease}: attempt {self.number} lost the lease, held now by {now}")
        if seen.released:
            raise LeaseLost(f"{self.lease}: attempt {self.number} released the lease already")

    def is_of(self, seen: LeaseState) -> bool:
        """Whether this claim's owner is the one that a look at the lease showed."""
        return (seen.number, seen.owner.get("token")) == (self.number, self.token)

    def held(self) -> bool:
        """Whether this claim's owner still holds the lease."""
        try:
            self.verify()
        except LeaseLost:
            return False
        return True


@dataclass
class Lease:
    """A lease this process holds; a background thread beats until ``release``. Also a context manager."""

    claim: Claim
    _head: bytes
    _ttl_s: float
    _state: str = "held"
    _beat: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def acquire(
        cls,
        lease: Storage,
        owner: str,
        watch: LeaseWatch | None = None,
        ttl_s: float = TTL_S,
        above: int = 0,
        waits: bool = False,
    ) -> Lease | None:
        """Try once to take a lease; return None when another process holds it or was faster.

        Args:
            lease: where it lies.
            owner: a name for people.
            watch: shared between tries, so that an owner elsewhere can be seen to stand still.
            ttl_s: seconds without a beat after which others may take this lease over.
            above: a number that was held once, though the lease may not know it any more (removed by hand).
            waits: whether what it is taken for is still to begin: ``begin`` says so.

        Raises OSError when the storage refuses.
        """
        watch = watch or LeaseWatch()
        seen = read_lease(lease)
        if not watch.may_be_taken(lease, seen):
            return None
        claim = Claim(lease, max(0 if seen is None else seen.number, above) + 1, secrets.token_hex(8))
        head = {
            "name": owner,
            "token": claim.token,
            "ttl": ttl_s,
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
            "process": process_identity(os.getpid()),
        }
        taken = cls(claim, json.dumps(head).encode() + b"\n", ttl_s, "waiting" if waits else "held")
        if not lease.put_if_absent(str(claim.number), taken._content(taken._state)):
            return None
        threading.Thread(target=taken._keep_beating, name=f"lease-{claim.number}", daemon=True).start()
        return taken

    def beat(self) -> None:
        """Raise the counter by one. Raises OSError when the disk refuses."""
        with self._lock:
            self._write(self._state)

    def begin(self) -> None:
        """Say that the work is in hand, not waited for any more. What the disk refuses now, a later beat says."""
        with self._lock, suppress(OSError):
            self._state = "held"
            if not self._stop.is_set():
                self._write(self._state)

    def held(self) -> bool:
        """Whether this process still holds the lease."""
        return self.claim.held()

    def verify(self) -> None:
        """Raise ``LeaseLost`` unless this process still holds the lease."""
        self.claim.verify()

    def release(self) -> None:
        """Give the lease back, so that others need not wait. Calling it twice, or after losing it, is harmless."""
        with self._lock:
            if not self._stop.is_set():
                self._stop.set()
                self._write("released")

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _write(self, state: str) -> None:
        seen = read_lease(self.claim.lease, self.claim.number)
        if seen is None or not self.claim.is_of(seen):
            self._stop.set()  # and the number may be another's by now, where somebody removed the leases by hand
            return
        self._beat += 1
        self.claim.lease.overwrite(str(self.claim.number), self._content(state))

    def _content(self, state: str) -> bytes:
        """Return the object's content, always of the same length."""
        return self._head + f"{self._beat:020d} {state:8}\n".encode()

    def _keep_beating(self) -> None:
        while not self._stop.wait(self._ttl_s / 4):
            try:
                self.beat()
            except OSError:
                # A full disk or an unreachable server for a moment. Beating goes on when it comes back; if that
                # takes longer than the ttl_s somebody takes over, and publishing says so.
                continue


def _highest(lease: Storage) -> int:
    return max((int(item.name) for item in lease.list() if item.name.isdecimal()), default=0)
