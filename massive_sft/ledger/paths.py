"""Where things lie under a storage root: cells, trajectories, snapshots, sweeps, caches, leases."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from massive_sft.core.fingerprint import ID_LENGTH
from massive_sft.ledger.storage import Folder, Storage

_ID = re.compile(rf"[0-9a-f]{{{ID_LENGTH}}}")


class LedgerPaths:
    """The places of a ledger, which need not exist. Names are listed here, no file is opened.

    Attributes:
        root: the storage root, as a local folder.
        storage: the same, as what everything is written through.
    """

    def __init__(self, storage: Folder):
        self.storage = storage

    @property
    def root(self) -> Path:
        return self.storage.local()

    @property
    def sweeps(self) -> Folder:
        """What the sweeps of this root say of themselves, each below its name."""
        return self.storage.at("sweeps")

    def cell_dir(self, cell: str) -> Path:
        """Return the folder of a cell; it need not exist."""
        return self.storage.local(cell_key(cell))

    def trajectory_dir(self, trajectory: str) -> Path:
        """Return the folder of a trajectory; it need not exist."""
        return self.storage.local(f"trajectories/{checked_id(trajectory)}")

    def snapshot_dir(self, trajectory: str, epoch: int) -> Path:
        """Return the folder where a snapshot of a trajectory is published; it need not exist."""
        return self.trajectory_dir(trajectory) / "snapshots" / f"epoch-{epoch}"

    def training_dirs(self, trajectory: str) -> list[Path]:
        """Return the folders that say how a trajectory's trainings went, in the order in which they count.

        First ``epoch-<n>``, published with that snapshot while its training went on, by epoch; then ``attempt-<n>``,
        of finished trainings, by attempt.
        """
        home = self.trajectory_dir(trajectory) / "training"
        return [
            path
            for kind in ("epoch", "attempt")
            for path in sorted(home.glob(f"{kind}-*"), key=lambda path: int(path.name.rpartition("-")[2]))
        ]

    def sweep_dir(self, name: str) -> Path:
        """Return the folder of a sweep by its name; it need not exist."""
        return self.sweep(name).local()

    def sweep(self, name: str) -> Folder:
        """Return the place of a sweep by its name."""
        if not name or name.startswith(".") or "/" in name:
            raise ValueError(f"no name of a sweep: {name!r}")
        return self.sweeps.at(name)

    def cache_dir(self, kind: str) -> Path:
        """Return the folder of a cache: ``tokens``, ``requests`` or ``bases``."""
        return self.storage.local(f"cache/{kind}")

    def cell_and_trajectory_dirs(self) -> Iterator[Path]:
        """Yield the folders of all trajectories and cells: what a lease guards each."""
        for kind in ("trajectories", "cells"):
            yield from (self.storage.local(f"{kind}/{name}") for name in self.ids(kind))

    def lease_of(self, home: Path) -> Folder:
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


def checked_id(identity: str) -> str:
    """Return an id unchanged. Raises ValueError for what is none, so that no other path is ever made of it."""
    if not is_id(identity):
        raise ValueError(f"no id: {identity!r}")
    return identity
