"""Leases and records of several machines over a file system that lies: old listings, lost answers, late sight.

Each seed is another course of events: machines take the lease on one cell, write records, stand still in the middle of
a system call while others go on, come back, and forget what they watched.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from faulty_files import FaultyOs
from test_ledger import CELL, make_record, record_files, revision_of

from massive_sft.core import files
from massive_sft.core.errors import LeaseLost
from massive_sft.ledger import storage
from massive_sft.ledger.lease import Lease, read_lease
from massive_sft.ledger.record import Record, Revision, Status
from massive_sft.ledger.storage import Folder
from massive_sft.ledger.store import Ledger

SEEDS, STEPS, MACHINES = range(60), 60, 3
TTL_S = 4000.0  # seconds; no thread beats within a test


class World:
    """Machines that share one root, and what they were told."""

    def __init__(self, root: Path, seed: int, monkeypatch: pytest.MonkeyPatch):
        self.root, self.random, self.clock = root, random.Random(seed), 0.0
        Ledger.open(root)
        self.system = FaultyOs(seed, meanwhile=self._meanwhile)
        monkeypatch.setattr(files, "os", self.system)
        monkeypatch.setattr(storage, "os", self.system)
        self.taken: dict[int, Lease] = {}
        self.written: dict[Path, Record] = {}
        self.newest = Revision()
        self._busy: list[Machine] = []
        self.machines = [Machine(self, f"machine {number}") for number in range(MACHINES)]

    def step(self) -> None:
        """Let one machine that does not stand in a call do something."""
        free = [machine for machine in self.machines if machine not in self._busy]
        if free:
            machine = self.random.choice(free)
            self._busy.append(machine)
            before, self.system.client = self.system.client, machine.name
            machine.act()
            self.system.client = before
            self._busy.remove(machine)

    def _meanwhile(self) -> None:
        if self._busy and self.random.random() < 0.1:
            self.step()

    def wrote(self, path: Path, record: Record) -> None:
        """Note what a machine was told, and that what counts never goes back."""
        assert path not in self.written
        self.written[path] = record
        newest = max(map(revision_of, os.listdir(path.parent)))
        assert newest >= self.newest
        self.newest = newest


class Machine:
    """One client of the file system with a ledger of its own."""

    def __init__(self, world: World, name: str):
        self.world, self.name, self.lease = world, name, None
        self.start()

    def start(self) -> None:
        """Begin as a new process does: it has watched nothing yet."""
        self.lease: Lease | None = None
        self.ledger = Ledger(Folder(self.world.root))
        self.ledger._watch._clock = lambda: self.world.clock

    def act(self) -> None:
        """Do something that a run might do now."""
        if self.lease is None:
            self.world.random.choice([self.take, self.take, self.take, self.wait])()
        else:
            self.world.random.choice([self.write, self.write, self.beat, self.wait, self.release, self.die])()

    def wait(self) -> None:
        self.world.clock += TTL_S * self.world.random.choice([0.1, 0.6, 1.0])

    def take(self) -> None:
        lease = self.ledger.lease_cell(CELL, self.name, TTL_S)
        if lease is not None:
            assert lease.claim.number not in self.world.taken, "two owners of one number"
            self.world.taken[lease.claim.number] = self.lease = lease

    def write(self) -> None:
        assert self.lease is not None
        number = self.lease.claim.number
        outcome = {"status": self.world.random.choice([Status.COMPLETE, Status.DIVERGED]), "attempt": number}
        record = make_record(**outcome, training={"who": self.name, "nth": len(self.world.written)})
        try:
            path = self.ledger.write_record(record, self.lease.claim)
        except LeaseLost:
            self.lease = None
            return
        assert revision_of(path.name).lease == number
        self.world.wrote(path, record)

    def beat(self) -> None:
        assert self.lease is not None
        self.lease.beat()

    def release(self) -> None:
        assert self.lease is not None
        self.lease.release()
        self.lease = None

    def die(self) -> None:
        self.start()


@pytest.fixture
def root() -> Iterator[Path]:
    """A folder in memory where there is one: each step flushes."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        yield Path(folder)


def test_misbehaving_files_leave_one_owner_every_record_and_the_newest_owners_on_top(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owners = records = superseded = 0
    for seed in SEEDS:
        with monkeypatch.context() as patch:
            world = World(root / str(seed), seed, patch)
            for _ in range(STEPS):
                world.step()
        ledger = Ledger.open(root / str(seed), create=False)
        home = ledger.cell_dir(CELL)
        seen = read_lease(ledger.lease_of(home))
        held = [number for number, lease in world.taken.items() if lease.held()]
        assert held in ([], [max(world.taken, default=0)]), seed
        # Whoever was told that it has the lease has it, and nobody else: a lost answer leaves no owner that knows nothing.
        assert sorted(world.taken) == sorted(int(path.name) for path in (home / "lease").glob("[0-9]*")), seed
        assert (seen.number if seen else 0) == max(world.taken, default=0), seed
        # Each record is there once, as it was written.
        assert set(record_files(ledger.root, CELL)) == set(world.written), seed
        assert not ledger.corrupt, seed
        if world.written:
            top = max(world.written)
            assert ledger.read_record(CELL) == world.written[top], seed
            assert revision_of(top.name) == world.newest, seed
            assert Ledger(ledger.storage).entries()[CELL].revision == world.newest, seed
        owners += len(world.taken)
        records += len(world.written)
        superseded += len(world.taken) - len(held)
        for lease in world.taken.values():
            with suppress(OSError):
                lease.release()
    assert (
        owners > 3 * len(SEEDS) and records > 3 * len(SEEDS) and superseded > 2 * len(SEEDS)
    )  # it was put to the test
