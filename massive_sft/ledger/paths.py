"""Where things lie under a storage root: cells, trajectories, snapshots, sweeps, caches, leases."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from massive_sft.core.fingerprint import ID_LENGTH
from massive_sft.ledger.storage import Root, Storage

_ID = re.compile(rf"[0-9a-f]{{{ID_LENGTH}}}")
_OF_TRAINING = re.compile(r"(?P<kind>epoch|attempt)-(?P<number>\d+)(?P<snapshot>-[0-9a-f]{8})?")


class LedgerPaths:
    """The places of a ledger, which need not exist. Names are listed here, no file is opened.

    Attributes:
        storage: what everything is written through.
        root: where files of it lie on this machine: the storage root itself, of an object store the copies of it.
    """

    def __init__(self, storage: Root):
        self.storage = storage

    @property
    def root(self) -> Path:
        return self.storage.local()

    @property
    def sweeps(self) -> Root:
        """What the sweeps of this root say of themselves, each below its name."""
        return self.storage.at("sweeps")

    def cell(self, cell: str) -> Root:
        """Return the place of a cell."""
        return self.storage.at(cell_key(cell))

    def cell_dir(self, cell: str) -> Path:
        """Return the folder of a cell; it need not exist."""
        return self.storage.local(cell_key(cell))

    def trajectory(self, trajectory: str) -> Root:
        """Return the place of a trajectory."""
        return self.storage.at(f"trajectories/{checked_id(trajectory)}")

    def trajectory_dir(self, trajectory: str) -> Path:
        """Return the folder of a trajectory; it need not exist."""
        return self.storage.local(f"trajectories/{checked_id(trajectory)}")

    def snapshots(self, trajectory: str) -> frozenset[str]:
        """Return the names, ``epoch-<n>``, of the snapshots that are published of a trajectory; none is looked at."""
        return frozenset(item.name for item in self.trajectory(trajectory).list("snapshots"))

    def has_snapshot(self, trajectory: str, epoch: int) -> bool:
        """Return whether a snapshot is published; it is not looked at."""
        return f"epoch-{epoch}" in self.snapshots(trajectory)

    def training_dirs(self, trajectory: str) -> list[Path]:
        """Return the folders that say how a trajectory's trainings went, in the order in which they count.

        First ``epoch-<n>``, published with that snapshot while its training went on, by epoch, each before
        ``epoch-<n>-<snapshot>``, with one that was made again and differs; then ``attempt-<n>``, of finished trainings,
        by attempt.
        """
        home = self.trajectory(trajectory).at("training")
        found = [match for item in home.list() if (match := _OF_TRAINING.fullmatch(item.name))]
        found.sort(key=lambda one: (one["kind"] == "attempt", int(one["number"]), one["snapshot"] or ""))
        return [home.fetch(match[0]) for match in found]

    def sweep_dir(self, name: str) -> Path:
        """Return the folder of a sweep by its name; it need not exist."""
        return self.sweep(name).local()

    def sweep(self, name: str) -> Root:
        """Return the place of a sweep by its name."""
        if not name or name.startswith(".") or "/" in name:
            raise ValueError(f"no name of a sweep: {name!r}")
        return self.sweeps.at(name)

    def cache_dir(self, kind: str) -> Path:
        """Return the folder of a cache: ``tokens``, ``requests``, ``perplexity``.

        Where the root is an object store each machine has its own.
        """
        return self.storage.local(f"cache/{kind}")

    def cell_and_trajectory_dirs(self) -> Iterator[Path]:
        """Yield the folders of all trajectories and cells: what a lease guards each."""
        for kind in ("trajectories", "cells"):
            yield from (self.storage.local(f"{kind}/{name}") for name in self.ids(kind))

    def lease_of(self, home: Path) -> Root:
        """Return where the leases on a cell's or a trajectory's folder lie."""
        return self.storage.at(f"{home.relative_to(self.root).as_posix()}/lease")

    def ids(self, kind: str) -> list[str]:
        """Return the ids of all ``cells`` or ``trajectories`` that have a folder, sorted."""
        return listed_ids(self.storage, kind)


def listed_ids(storage: Storage, kind: str) -> list[str]:
    """Return the ids that are names below a prefix, sorted."""
    return sorted(item.name for item in storage.list(kind) if is_id(item.name))


def is_id(name: str) -> bool:
    """Whether a name has the form of an id."""
    return _ID.fullmatch(name) is not None


def cell_key(cell: str) -> str:
    """Return the key of a cell's folder in the storage. Raises ValueError for what is no id."""
    return f"cells/{checked_id(cell)}"


def texts_file(asked: str) -> str:
    """Return the name of a cell's file with the log-likelihoods of a set of texts.

    Args:
        asked: what the measure is asked by, which ends in its hash.
    """
    return f"texts-{checked_id(asked.rpartition(' ')[2])}.parquet"


def checked_id(identity: str) -> str:
    """Return an id unchanged. Raises ValueError for what is none, so that no other path is ever made of it."""
    if not is_id(identity):
        raise ValueError(f"no id: {identity!r}")
    return identity
