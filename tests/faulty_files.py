"""A file system that misbehaves as a network file system may: it stands in for ``os`` below the ledger's storage.

What it does is real; what it says is not always true. Each client (a machine) has its own view of it.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

OLD = 12  # system calls for which a client may take an old listing, or not see what another made


class FaultyOs:
    """The module ``os``, but for lost replies, short writes, old listings, late sight and stale handles.

    Args:
        seed: of the faults.
        rate: how often each of them strikes.
        meanwhile: called before each system call: what other clients do just then.
    """

    def __init__(self, seed: int, rate: float = 0.3, meanwhile: Callable[[], None] = lambda: None):
        self.client = ""
        self._random = random.Random(seed)
        self._rate = rate
        self._meanwhile = meanwhile
        self._now = 0
        self._stale: set[tuple[str, str]] = set()
        self._listings: dict[tuple[str, str], tuple[int, list[os.DirEntry[str]]]] = {}
        self._made: dict[str, tuple[int, str]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def _step(self) -> None:
        self._now += 1
        self._meanwhile()

    def _strikes(self) -> bool:
        return self._random.random() < self._rate

    def _own(self, path: str) -> None:
        """A client sees at once what it changed itself."""
        self._made[path] = (self._now, self.client)
        self._listings.pop((self.client, os.path.dirname(path)), None)

    def write(self, handle: int, data: memoryview) -> int:
        """Take only some of the data."""
        return os.write(handle, data[: self._random.randint(1, len(data))] if self._strikes() else data)

    def link(self, source: Path, target: Path) -> None:
        """Do it; then ask again, as the answer was lost."""
        self._step()
        os.link(source, target)
        self._own(str(target))
        if self._strikes():
            os.link(source, target)

    def replace(self, source: Path, target: Path) -> None:
        """Do it; then ask again, as the answer was lost."""
        self._step()
        os.replace(source, target)
        self._own(str(target))
        if self._strikes():
            os.replace(source, target)

    def rename(self, source: Path, target: Path) -> None:
        """Do it; then ask again, as the answer was lost."""
        self._step()
        os.rename(source, target)
        self._own(str(target))
        if self._strikes():
            os.rename(source, target)

    def open(self, path: Path | str, flags: int, mode: int = 0o777) -> int:
        """See late what others made, and read once from a file that was replaced meanwhile."""
        self._step()
        if not flags & (os.O_WRONLY | os.O_RDWR):
            when, who = self._made.get(str(path), (0, self.client))
            if who != self.client and self._now - when < OLD and self._strikes():
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
            key = (self.client, str(path))
            if key in self._stale:
                self._stale.remove(key)
            elif self._strikes():
                self._stale.add(key)
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return os.open(path, flags, mode)

    def scandir(self, path: str) -> AbstractContextManager[list[os.DirEntry[str]]]:
        """Give what the client saw a while ago."""
        self._step()
        key = (self.client, path.rstrip("/"))
        when, entries = self._listings.get(key, (-OLD, []))
        if self._now - when >= OLD or not self._strikes():
            entries = list(os.scandir(path))
            self._listings[key] = (self._now, entries)
        return nullcontext(entries)
