"""Attempts: one try at a trajectory, written under its own number and published whole, once, by the lease's owner."""

from __future__ import annotations

import json
import logging
import math
import secrets
import shutil
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from massive_sft.core.errors import Corrupt, LeaseLost
from massive_sft.ledger.bucket import Bucket
from massive_sft.ledger.lease import TTL_S, Claim, Lease, LeaseWatch
from massive_sft.ledger.manifest import seal_folder, verify_folder
from massive_sft.ledger.snapshot_store import NAME as STORED
from massive_sft.ledger.snapshot_store import StoredFolder, remove_folder, store_folder
from massive_sft.ledger.storage import Root

log = logging.getLogger(__name__)

RESUME = "resume"  # below a trajectory: what an unfinished training can go on from
KEPT = "kept"  # the same: what a finished one left, for whoever asks for a later epoch
ASIDE = "invalidated"  # the same, and below a cell: what was set aside because it is wrong, in numbered folders
LATEST = "latest.json"  # in there: the ``name`` of the folder that counts


@dataclass(frozen=True)
class Published:
    """A folder of a trajectory that is there to stay.

    Attributes:
        folder: where it lies.
        files: SHA-256 by path below the storage root, as ``Record.files`` keeps them.
        ours: False when an earlier attempt had published it already, and that one was kept.
    """

    folder: Path
    files: dict[str, str]
    is_own: bool


@dataclass(frozen=True)
class Attempt:
    """One try at a trajectory. Can be sent to other processes and publish there; the lease's beat stays behind.

    Attributes:
        trajectory: id of the trajectory.
        storage: what lies below it.
        claim: the right to publish.
        lease: what keeps the claim alive; None in a process the attempt was sent to.
    """

    trajectory: str
    storage: Root
    claim: Claim
    lease: Lease | None = field(default=None, compare=False, repr=False)

    @classmethod
    def begin(
        cls, trajectory: str, storage: Root, owner: str, watch: LeaseWatch, ttl_s: float = TTL_S
    ) -> Attempt | None:
        """Take the lease of a trajectory and make the attempt's folder; None while another holds it.

        It counts as waiting until ``take_up``. Raises OSError, and holds no lease, where the disk refuses.
        """
        while True:
            lease = Lease.acquire(storage.at("lease"), owner, watch, ttl_s, waits=True)
            if lease is None:
                return None
            attempt = cls(trajectory, storage, lease.claim, lease)
            with ExitStack() as refused:
                refused.callback(lease.release)  # else this process would wait for itself
                attempt.folder.parent.mkdir(parents=True, exist_ok=True)
                # Where somebody removed the leases by hand to unlock it, numbers began again: the next one is tried.
                with suppress(FileExistsError):
                    attempt.folder.mkdir()
                    refused.pop_all()
                    return attempt

    @property
    def home(self) -> Path:
        """The trajectory's folder on this machine."""
        return self.storage.local()

    @property
    def folder(self) -> Path:
        """``attempts/<number>`` below it, where everything is written before it is published."""
        return self.storage.local(f"attempts/{self.number}")

    @property
    def number(self) -> int:
        """The attempt's number, from 1."""
        return self.claim.number

    def publish(self, relative: str, source: Path | None = None, known: Mapping[str, str] | None = None) -> Published:
        """Move a finished folder of this attempt to a place under its trajectory, whole or not at all.

        A manifest with the SHA-256 of every file is written into it first. Where an earlier attempt published a
        folder that still matches its manifest, that one is kept; one that does not is set aside in this attempt.

        Args:
            relative: the place, below the trajectory.
            source: the folder; by default what lies at the same place below this attempt.
            known: as of ``seal_folder``.

        Raises:
            LeaseLost: another attempt owns the trajectory; nothing was moved.
            FileNotFoundError: this attempt has no such folder.
            LedgerError: the folder is empty or holds links.
        """
        if Path(relative).is_absolute() or ".." in Path(relative).parts:
            raise ValueError(f"must be a path below the attempt, got {relative!r}")
        source, target = source or self.folder / relative, self.home / relative
        hashes = seal_folder(source, known)
        self.claim.verify()
        is_own = self.storage.upload(source, relative)
        while not is_own:
            self.claim.verify()
            try:
                hashes = verify_folder(self.storage.fetch(relative))
                break
            except Corrupt as error:
                log.warning("%s; it is set aside and published anew", error)
            self.set_aside(relative)
            is_own = self.storage.upload(source, relative)
        place = f"trajectories/{self.trajectory}/{Path(relative).as_posix()}"
        return Published(target, {f"{place}/{name}": value for name, value in hashes.items()}, is_own)

    def publish_stored(
        self, relative: str, source: Path, store: Bucket, copied: str, known: Mapping[str, str] | None = None
    ) -> Published:
        """Upload a finished folder of this attempt, and publish a folder that says where it lies now.

        Args:
            relative: the place, below the trajectory.
            source: the folder; it is gone from here then.
            store: where all trajectories' lie.
            copied: a file of it that the ledger gets a copy of.
            known: as of ``seal_folder``.

        Raises:
            LeaseLost: another attempt owns the trajectory; nothing is left of what was uploaded.
            LedgerError: the folder is empty or holds links.
            OSError: the disk or the store refuses; what is there by then, ``clean_up`` removes.
        """
        pointer = source.with_name(f"{source.name}-{secrets.token_hex(4)}")  # a process that was killed left its own
        pointer.mkdir()
        shutil.copyfile(source / copied, pointer / copied)
        key = f"attempts/{self.number}/{pointer.name}"
        place = store.at(f"{self.trajectory}/{Path(relative).name}")
        stored = store_folder(source, pointer, place, lambda: self.storage.push(key), known)
        try:
            self.claim.verify()
            return self.publish(relative, pointer)
        except (LeaseLost, FileNotFoundError):  # whoever took over may have removed what names it
            stored.place.delete("")
            raise

    def set_aside(self, relative: str) -> None:
        """Move what is published at a place below the trajectory into this attempt, where ``clean_up`` removes it.

        Raises ``LeaseLost`` when another attempt owns the trajectory; then it may be that one's, and stays.
        """
        aside = self.folder / f"aside-{secrets.token_hex(4)}"
        self.claim.verify()
        self.storage.set_aside(relative, aside)
        try:
            self.claim.verify()
        except LeaseLost:
            self.storage.upload(aside, relative)
            raise

    def take_up(self) -> None:
        """Say that its training is in hand. Without effect in a process the attempt was sent to."""
        if self.lease is not None:
            self.lease.begin()

    def release(self) -> None:
        """Give the trajectory back. Harmless when the lease is lost or lives in another process."""
        if self.lease is not None:
            self.lease.release()

    def remove_checkpoint(self) -> None:
        """Remove what the trajectory could go on from. Raises ``LeaseLost`` when another attempt owns it."""
        self.claim.verify()
        self.storage.delete(f"{RESUME}/{LATEST}")
        self.storage.delete(RESUME)

    def clean_up(self) -> None:
        """Remove what attempts wrote and did not publish, here and in object stores; their logs stay.

        Raises ``LeaseLost`` when another attempt owns the trajectory.
        """
        self.claim.verify()
        for upload in self.storage.leftovers():
            self.storage.delete(upload)
        for key in find_leftovers(self.storage, self.number):
            try:
                remove_leftover(self.storage, key)
            except (OSError, Corrupt) as error:
                log.warning("%s/%s is left to gc: %s", self.storage, key, error)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"lease": None}

    def __enter__(self) -> Attempt:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def find_leftovers(trajectory: Root, last: float = math.inf) -> list[str]:
    """Return the folders that attempts up to ``last`` wrote below their trajectory and did not publish from there."""
    numbers = [name for name in _folders_of(trajectory, "attempts") if name.isdecimal() and int(name) <= last]
    return [f"attempts/{number}/{name}" for number in numbers for name in _folders_of(trajectory, f"attempts/{number}")]


def remove_leftover(trajectory: Root, key: str) -> None:
    """Remove a folder of an attempt with what it uploaded, unless that is published: then only what named it.

    Raises OSError where disk or store refuse, Corrupt where it cannot be told what is published.
    """
    folder = trajectory.fetch(key)
    for path in list(folder.rglob(STORED)):
        if StoredFolder.read(path.parent) in published_folders(trajectory):
            path.unlink()
    remove_folder(folder)
    trajectory.delete(key)


def published_folders(trajectory: Root) -> list[StoredFolder]:
    """Return what a trajectory's snapshots that lie in object stores are there, those that are set aside too."""
    homes = ["snapshots", *(f"{ASIDE}/{item.name}/snapshots" for item in trajectory.list(ASIDE))]
    places = (f"{home}/{item.name}" for home in homes for item in trajectory.list(home))
    found = map(StoredFolder.read, map(trajectory.fetch, places))
    return [stored for stored in found if stored is not None]


def find_stale_checkpoints(storage: Root) -> list[str]:
    """Return the places below a trajectory's ``resume`` and ``kept`` that do not count, here or for all.

    Their writer was killed, or superseded.
    """
    stale: list[str] = []
    for folder in (RESUME, KEPT):
        name = counting_checkpoint(storage, folder)
        there = {item.name for item in storage.list(folder)} | _folders(storage.local(folder))
        stale += [f"{folder}/{own}" for own in sorted(there - {name, LATEST})]
    return stale


def counting_checkpoint(storage: Root, folder: str) -> str:
    """Return the name of the checkpoint that counts below a trajectory's ``resume`` or ``kept``.

    Empty where none does, or nobody can tell which.
    """
    try:
        return str(json.loads(storage.get(f"{folder}/{LATEST}").data)["name"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return ""


def _folders_of(storage: Root, prefix: str) -> list[str]:
    """Return the names of the folders below a prefix, of those that are published and of those on this machine."""
    return sorted({item.name for item in storage.list(prefix) if not item.mark} | _folders(storage.local(prefix)))


def _folders(place: Path) -> set[str]:
    return {path.name for path in place.iterdir() if path.is_dir()} if place.is_dir() else set()
