"""What is needed of a place that holds a ledger or its snapshots, and the first such place: a folder.

Every rule of the ledger (one owner, nothing overwritten, whole or not at all) rests on these few operations alone. The
other place is a bucket of an object store: for snapshots ``bucket.py``, for a ledger ``bucket_root.py``.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, NamedTuple, Protocol

from massive_sft.core import files


class Blob(NamedTuple):
    """An object as it was read.

    Attributes:
        data: its content.
        version: differs whenever the object was written anew.
        modified: when it was written by the storage's own clock, in seconds; only differences between two of them
            mean anything.
    """

    data: bytes
    version: str
    modified: float


class Listed(NamedTuple):
    """Something right below a prefix: an object, or a longer prefix.

    Attributes:
        name: below the prefix that was listed.
        version: returns an object's version as ``Blob`` has it; raises FileNotFoundError when it is gone.
        mark: what the listing itself tells of an object's version: its beginning up to the first ``-``. It is another
            one when another object took the name; an object that was changed in place may keep it. Empty when unknown.
    """

    name: str
    version: Callable[[], str]
    mark: str = ""


class Storage(Protocol):
    """Objects of bytes under keys such as ``cells/<id>/cell.json``. It can be sent to other processes, and compared.

    A *sealed folder* is one that ``manifest.seal_folder`` has finished: its manifest is what makes it count.

    Attributes:
        changes_in_place: whether an object may be changed under its name and keep its mark, by whoever reaches it.

    What one process has written, ``get`` gives every other one sooner or later; ``list`` may be old by a minute. All
    methods raise OSError when the storage refuses, and leave everything as it was then.
    """

    changes_in_place: ClassVar[bool]

    def __hash__(self) -> int:
        """Equal ones are the same place."""

    def at(self, prefix: str) -> Storage:
        """Return the storage of the keys below a prefix."""

    def get(self, key: str) -> Blob:
        """Return an object, whole. Raises FileNotFoundError."""

    def put(self, key: str, data: bytes) -> None:
        """Write an object; it replaces an older one at once. The last of several writers wins."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write an object unless there is one; return whether it was written. Of several writers exactly one wins.

        True also where the storage did it and its answer was lost.
        """

    def overwrite(self, key: str, data: bytes) -> None:
        """Replace an object by one of the same length, without needing room; a reader may meet some of both.

        For beats, whose only writer owns the key. Raises FileNotFoundError.
        """

    def list(self, prefix: str = "") -> list[Listed]:
        """Return what lies right below a prefix, in no order; nothing where there is no such prefix."""

    def list_each(self, prefix: str, names: Collection[str] | None = None) -> Iterator[tuple[str, Sequence[Listed]]]:
        """Yield ``list`` of each prefix right below one (all, or those named), in their order, if anything is there."""

    def delete(self, key: str) -> None:
        """Remove an object, or everything below a prefix, if it is there."""

    def upload(self, folder: Path, prefix: str) -> bool:
        """Make a sealed local folder what lies below a prefix, and take it away from where it was.

        Who can read the manifest there can read all of it. Returns False, and leaves the local folder, when there is a
        sealed folder below the prefix already. Raises FileNotFoundError when there is none to upload.
        """

    def download(self, key: str, path: Path) -> None:
        """Copy an object of any size to a new local file, whose folder is made. Raises FileNotFoundError."""


class Root(Storage, Protocol):
    """A storage that a ledger lies in: what must be files in place lies in a folder of this machine.

    Of a folder those are its own files, and there is nothing to fetch or to push. Of an object store they are copies,
    or not published yet. A *place* is a prefix that a folder is published at, whole, by ``upload`` or ``push``.

    Attributes:
        rule: what must be so of it, for who names one of which it is not.
    """

    rule: ClassVar[str]

    def at(self, prefix: str) -> Root:
        """As ``Storage.at``."""

    def local(self, prefix: str = "") -> Path:
        """Return where the files below a prefix are read and written on this machine."""

    def exists(self, key: str = "") -> bool:
        """Whether an object is there; by default, whether anything is."""

    def fetch(self, prefix: str) -> Path:
        """Return where this machine has what is published at a place, whole; nothing is there where nothing is.

        Whether it is sound is for the caller to verify. Raises Corrupt where it cannot be told what is published.
        """

    def fetch_file(self, key: str) -> Path:
        """Return where this machine has one object, or a file right in a place; likewise."""

    def push(self, prefix: str) -> None:
        """Publish the local folder of a place, and leave it there; nothing happens where one is published."""

    def set_aside(self, prefix: str, folder: Path) -> None:
        """Make what is published at a place a local folder, and nothing be there. Raises FileNotFoundError."""

    def move(self, key: str, target: str) -> None:
        """Have an object, or all below a prefix, lie elsewhere, where nothing is; nothing happens where nothing is.

        A process that is killed in it may leave some of it in both places.
        """

    def leftovers(self) -> Sequence[str]:
        """Return the prefixes of uploads that were never finished; whoever still works on one is not asked."""

    def size_bytes(self, prefix: str) -> int:
        """Return what lies below a prefix, or what an object takes; links to other files count in full."""


@dataclass(frozen=True)
class Folder:
    """A folder of a local disk, NFS or Lustre as a ``Root``: the keys are paths below it.

    Attributes:
        root: an absolute path; it need not exist yet.
    """

    rule: ClassVar[str] = "must be a folder that can be written and holds hard links"
    changes_in_place: ClassVar[bool] = True
    root: Path

    def at(self, prefix: str) -> Folder:
        """As ``Storage.at``."""
        return Folder(self.root / prefix)

    def get(self, key: str) -> Blob:
        """As ``Storage.get``."""
        data, stat = files.read_bytes(self.root / key)
        return Blob(data, _version(stat), stat.st_mtime)

    def put(self, key: str, data: bytes) -> None:
        """As ``Storage.put``."""
        files.write_bytes(self.root / key, data)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """As ``Storage.put_if_absent``."""
        return files.create_bytes(self.root / key, data)

    def overwrite(self, key: str, data: bytes) -> None:
        """As ``Storage.overwrite``."""
        files.overwrite_bytes(self.root / key, data)

    def list(self, prefix: str = "") -> list[Listed]:
        """As ``Storage.list``; without the temporary files of writers, whose names begin with a dot."""
        try:
            with os.scandir(f"{self.root}/{prefix}") as entries:
                return [
                    Listed(entry.name, partial(_version_at, entry.path), str(entry.inode()))
                    for entry in entries
                    if entry.name[0] != "."
                ]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def list_each(self, prefix: str, names: Collection[str] | None = None) -> Iterator[tuple[str, Sequence[Listed]]]:
        """As ``Storage.list_each``."""
        for name in sorted({item.name for item in self.list(prefix)} if names is None else names):
            if listed := self.list(f"{prefix}/{name}"):
                yield name, listed

    def delete(self, key: str) -> None:
        """As ``Storage.delete``."""
        path = self.root / key
        with suppress(FileNotFoundError):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def upload(self, folder: Path, prefix: str) -> bool:
        """As ``Storage.upload``, by a rename: the folder must lie on the same file system."""
        return files.move_folder(folder, self.root / prefix)

    def download(self, key: str, path: Path) -> None:
        """As ``Storage.download``."""
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.root / key, path)

    def local(self, prefix: str = "") -> Path:
        """As ``Root.local``."""
        return self.root / prefix

    def exists(self, key: str = "") -> bool:
        """As ``Root.exists``."""
        return (self.root / key).exists()

    def fetch(self, prefix: str) -> Path:
        """As ``Root.fetch``."""
        return self.root / prefix

    def fetch_file(self, key: str) -> Path:
        """As ``Root.fetch_file``."""
        return self.root / key

    def push(self, prefix: str) -> None:
        """As ``Root.push``: it is there."""

    def set_aside(self, prefix: str, folder: Path) -> None:
        """As ``Root.set_aside``, by a rename."""
        files.move_folder(self.root / prefix, folder)

    def move(self, key: str, target: str) -> None:
        """As ``Root.move``, by a rename."""
        (self.root / target).parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            os.rename(self.root / key, self.root / target)

    def leftovers(self) -> Sequence[str]:
        """As ``Root.leftovers``: a rename leaves none."""
        return []

    def size_bytes(self, prefix: str) -> int:
        """As ``Root.size_bytes``."""
        return files.size_bytes(self.root / prefix)

    def __str__(self) -> str:
        return str(self.root)


def _version_at(path: str) -> str:
    return _version(os.stat(path))


def _version(stat: os.stat_result) -> str:
    return f"{stat.st_ino}-{stat.st_mtime_ns}-{stat.st_size}"
