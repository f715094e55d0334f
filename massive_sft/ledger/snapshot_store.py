"""Snapshots that lie in an object store: what the ledger holds in their place, how they get there, and back.

The ledger's folder of such a snapshot holds ``stored.json``: the address of a prefix that no other upload ever writes
to, and size and SHA-256 of each file there. It is written before the upload, in the attempt's folder, and published
after it. So whatever lies in the store is named by a folder of the ledger, from its first byte on, and whoever removes
such a folder, published or not, can remove that too: ``remove_folder``.
"""

from __future__ import annotations

import errno
import logging
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from massive_sft.core import files
from massive_sft.core.errors import Corrupt
from massive_sft.core.fingerprint import hash_file
from massive_sft.ledger.bucket import Bucket
from massive_sft.ledger.folder_cache import FolderCache
from massive_sft.ledger.manifest import NAME as MANIFEST
from massive_sft.ledger.manifest import seal_folder, verify_folder

log = logging.getLogger(__name__)

NAME = "stored.json"
SCHEMA = 1


@dataclass(frozen=True)
class StoredFolder:
    """A sealed folder in an object store.

    Attributes:
        place: below which its files lie, the manifest last.
        hashes: SHA-256 by path, as ``manifest.verify_folder`` returns them of the folder itself.
        sizes: bytes by path.
    """

    place: Bucket
    hashes: Mapping[str, str]
    sizes: Mapping[str, int]

    @classmethod
    def read(cls, folder: Path) -> StoredFolder | None:
        """Return what a folder of the ledger stands for; None for one that holds its files itself.

        Raises Corrupt when that cannot be told.
        """
        path = folder / NAME
        try:
            content = files.read_json(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            if content["schema"] != SCHEMA:
                raise Corrupt(f"{path}: is of schema {content['schema']}, this version reads {SCHEMA}")
            entries = content["files"]
            hashes = {name: str(entry["sha256"]) for name, entry in entries.items()}
            sizes = {name: int(entry["bytes"]) for name, entry in entries.items()}
            return cls(Bucket.of(content["at"]), hashes, sizes)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise Corrupt(f"{path}: says of no folder where it lies ({error})") from error

    def write(self, folder: Path) -> None:
        """Write it as ``stored.json`` into a folder of the ledger."""
        entries = {name: {"bytes": size, "sha256": self.hashes[name]} for name, size in self.sizes.items()}
        files.write_json(folder / NAME, {"schema": SCHEMA, "at": str(self.place), "files": entries})

    @property
    def size_bytes(self) -> int:
        return sum(self.sizes.values())

    def require_complete(self) -> None:
        """Raise Corrupt unless the store has every file in its size, OSError when it cannot be asked.

        Contents are looked at where they are fetched.
        """
        there = self.place.sizes()
        wrong = sorted(name for name, size in self.sizes.items() if there.get(name) != size)
        if wrong:
            raise Corrupt(f"{self.place}: lacks {', '.join(wrong)}, or has it in another size")

    @contextmanager
    def open(self, cache: FolderCache) -> Iterator[Path]:
        """Yield a copy of the folder on this machine, checked, which stays while the block runs.

        Raises Corrupt when the store has other contents or lacks one, OSError when it cannot be asked.
        """
        key, is_new = self.hashes[MANIFEST], False

        def fetch(target: Path) -> None:
            nonlocal is_new
            self._fetch(target)
            is_new = True

        for _ in range(2):
            with cache.hold(key, self.size_bytes, fetch) as copy:
                if is_new or self._is_sound(copy):
                    yield copy
                    return
            log.warning("%s: is damaged, and fetched again", copy)
            cache.remove(key)
        raise OSError(errno.EIO, "is damaged, and in use by another process", str(copy))

    def _fetch(self, target: Path) -> None:
        try:
            for name in self.hashes:
                self.place.download(name, target / name)
        except FileNotFoundError as error:
            raise Corrupt(f"{error.filename}: is missing") from error
        wrong = sorted(name for name, value in self.hashes.items() if hash_file(target / name) != value)
        if wrong:
            raise Corrupt(f"{self.place}: differs from its manifest in {', '.join(wrong)}")

    def _is_sound(self, copy: Path) -> bool:
        try:
            return verify_folder(copy) == self.hashes
        except Corrupt:
            return False


def store_folder(
    source: Path,
    pointer: Path,
    place: Bucket,
    told: Callable[[], None],
    known: Mapping[str, str] | None = None,
) -> StoredFolder:
    """Seal a finished folder and upload it; it is gone from here then.

    Args:
        source: the folder.
        pointer: the folder that is to be published in its place.
        place: where those of one trajectory and epoch lie; each upload is given a prefix of its own below.
        told: called once ``pointer`` names it, before anything is uploaded.
        known: as of ``seal_folder``.

    Raises:
        OSError: the store refuses, or cannot be asked. What is there of it by then, ``pointer`` names.
    """
    hashes = seal_folder(source, known)
    sizes = {name: (source / name).stat().st_size for name in hashes}
    stored = StoredFolder(place.at(secrets.token_hex(8)), hashes, sizes)
    stored.write(pointer)
    told()
    if not stored.place.upload(source, ""):
        raise FileExistsError(errno.EEXIST, "is written by somebody else", str(stored.place))
    return stored


def verify_stored(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of a published snapshot's files by path, as ``verify_folder`` does, wherever they lie.

    Contents in an object store are not read: it is asked for their names and sizes.

    Raises Corrupt when it is not there as its manifest says, OSError when a store cannot be asked.
    """
    hashes = verify_folder(folder)
    stored = StoredFolder.read(folder)
    if stored is None:
        return hashes
    stored.require_complete()
    return dict(stored.hashes)


@contextmanager
def open_folder(folder: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """Yield where a published snapshot can be read on this machine while the block runs, and its hashes by file.

    Raises Corrupt when it does not match its manifest, OSError when its store cannot be asked.
    """
    hashes = verify_folder(folder)
    stored = StoredFolder.read(folder)
    if stored is None:
        yield folder, hashes
        return
    with stored.open(FolderCache.of_this_machine()) as copy:
        yield copy, dict(stored.hashes)


def remove_folder(folder: Path) -> None:
    """Remove a folder of the ledger with all that snapshots in it have in object stores.

    Several processes may do it at once. Raises OSError where a store refuses or cannot be asked; the folder still names
    what is left then.
    """
    for path in sorted(folder.rglob(NAME)):
        try:
            stored = StoredFolder.read(path.parent)
        except Corrupt as error:
            log.warning("%s; what it stood for may be left in the store", error)
            continue
        if stored is not None:
            stored.place.delete("")
    shutil.rmtree(folder, onerror=_go_on_without)


def _go_on_without(call: object, path: str, error: tuple[type, BaseException, object]) -> None:
    if not isinstance(error[1], FileNotFoundError):  # which another process has just removed
        raise error[1]


def stored_bytes(folder: Path) -> int:
    """Return what snapshots in a folder of the ledger take in object stores; what is damaged counts nothing."""
    total = 0
    for path in (path for path in files.walk(folder) if path.name == NAME):
        try:
            stored = StoredFolder.read(path.parent)
        except Corrupt:
            continue
        total += stored.size_bytes if stored is not None else 0
    return total
