"""What can be seen of a sweep's root while others work on it: a folder, or a bucket and the folders of its machines."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from massive_sft.ledger.bucket_root import BucketRoot
from massive_sft.ledger.lease import LeaseState, read_lease
from massive_sft.ledger.storage import Folder, Root

AGE_S = 1.0  # of what a bucket was seen to hold: each look costs its server as much as a training's step


class View:
    """A root that is a folder: who looks sees all of it, as it is.

    Attributes:
        storage: the root.
        tracked: the database of the tracking server that it is mirrored to.
    """

    storage: Root

    def __init__(self, root: Path):
        self.storage = Folder(root)
        self.tracked = root.with_suffix(".db")
        self._root = root

    def names(self, pattern: str) -> Iterator[str]:
        """Yield the keys of objects that match, level by level."""
        return (str(path.relative_to(self._root)) for path in self._root.glob(pattern))

    def local(self, pattern: str) -> Iterator[Path]:
        """Yield what matches of the files in place, on all machines."""
        return self._root.glob(pattern)

    def read(self, key: str) -> bytes:
        """Return an object. Raises FileNotFoundError."""
        return self.storage.get(key).data

    def lease(self, key: str) -> LeaseState | None:
        """Return the state of a lease."""
        return read_lease(self.storage.at(key))

    def refresh(self) -> None:
        """See what there is now."""


class BucketView(View):
    """A root that is a bucket: what it holds was asked for a moment ago.

    Args:
        storage: the root.
        machines: a folder that the ``MASSIVE_SFT_CACHE`` of each machine lies in.
        tracked: as of ``View``.
    """

    def __init__(self, storage: BucketRoot, machines: Path, tracked: Path):
        self.storage = self._bucket = storage
        self.tracked = tracked
        self._machines = machines
        self._seen: dict[Any, Any] = {}
        self._since = 0.0

    def names(self, pattern: str) -> Iterator[str]:
        """As ``View.names``."""
        levels = pattern.split("/")
        for parts in self._kept("names", lambda: [name.split("/") for name in self._bucket.sizes()]):
            if len(parts) == len(levels) and all(map(fnmatchcase, parts, levels)):
                yield "/".join(parts)

    def local(self, pattern: str) -> Iterator[Path]:
        """As ``View.local``."""
        return self._machines.glob(f"*/roots/{self._bucket.bucket}/{self._bucket.prefix}/{pattern}")

    def read(self, key: str) -> bytes:
        """As ``View.read``."""
        return self._kept(key, lambda: self.storage.get(key).data)

    def lease(self, key: str) -> LeaseState | None:
        """As ``View.lease``."""
        return self._kept(("lease", key), lambda: read_lease(self.storage.at(key)))

    def refresh(self) -> None:
        """As ``View.refresh``."""
        self._since = 0.0

    def _kept(self, what: Any, ask: Callable[[], Any]) -> Any:
        if time.monotonic() - self._since > AGE_S:
            self._seen.clear()
        if what not in self._seen:
            self._seen[what] = ask()
            if len(self._seen) == 1:
                self._since = time.monotonic()
        return self._seen[what]
