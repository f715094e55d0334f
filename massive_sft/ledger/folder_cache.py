"""Folders of an object store that this machine has copies of: by content, up to a limit, the longest unused go first.

Whoever uses a copy holds a shared lock on its folder, and only who gets it alone may write or remove it, so nothing is
taken away while a model is scored. The kernel lets go of a dead process' locks. What was half written is written anew.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.core.files import DISK_FULL, format_bytes, parse_size
from massive_sft.ledger.storage import Folder, Root

PLACE, LIMIT = "MASSIVE_SFT_CACHE", "MASSIVE_SFT_CACHE_SIZE"  # environment variables, of each machine
DEFAULT_LIMIT = "200GB"


def machine_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of this machine that copies lie in: ``MASSIVE_SFT_CACHE``, else in the user's cache folder."""
    user = environment.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(environment.get(PLACE) or f"{user}/massive-sft").expanduser().absolute()


def is_machine_full(error: Exception, root: Root) -> bool:
    """Return whether an error says that a disk of this machine is full, and not one that all machines share.

    Args:
        root: of the ledger.
    """
    if not isinstance(error, OSError) or error.errno not in DISK_FULL:
        return False
    place = str(error.filename or "")  # which an error of a writing has not
    return place.startswith(str(machine_folder())) or not (isinstance(root, Folder) or "://" in place)


@dataclass(frozen=True)
class FolderCache:
    """Copies of folders on a disk of this machine.

    Attributes:
        place: a folder of its own.
        limit_bytes: what the copies may take in all; one that is larger alone is still made, and then the only one.
    """

    place: Path
    limit_bytes: float

    @classmethod
    def of_this_machine(cls, environment: Mapping[str, str] = os.environ) -> FolderCache:
        """Return the cache that the environment names: ``MASSIVE_SFT_CACHE``, else below the user's cache folder.

        Raises InvalidInput when ``MASSIVE_SFT_CACHE_SIZE`` is no size.
        """
        size = environment.get(LIMIT) or DEFAULT_LIMIT
        try:
            limit = parse_size(size)
        except ValueError as error:
            raise InvalidInput(Problem(LIMIT, "must be a size, such as 200GB", size)) from error
        return cls(machine_folder(environment) / "snapshots", limit)

    @contextmanager
    def hold(self, key: str, size_bytes: int, fetch: Callable[[Path], None]) -> Iterator[Path]:
        """Yield the copy of a folder, which stays there while the block runs.

        Args:
            key: of its content, such as the SHA-256 of its manifest.
            size_bytes: what it takes.
            fetch: writes it into an empty folder, whole and checked, where there is none yet.

        Raises OSError, and what ``fetch`` raises; then there is no copy.
        """
        entry = self.place / key
        while (lock := _lock(entry, fcntl.LOCK_SH)) is None:
            self._add(entry, size_bytes, fetch)
        try:
            with suppress(PermissionError):  # of another user
                os.utime(entry)
            yield entry
        finally:
            os.close(lock)

    def remove(self, key: str) -> None:
        """Remove a copy that turned out to be damaged, unless somebody uses it."""
        _remove(self.place / key)

    def _add(self, entry: Path, size_bytes: int, fetch: Callable[[Path], None]) -> None:
        """Make a copy, or wait while another process does."""
        partial = entry.with_name(f".{entry.name}.partial")
        self.place.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            partial.mkdir()
        lock = _lock(partial, fcntl.LOCK_EX)
        if lock is None:  # another process made the copy of it, or removed it as a leftover
            return
        try:
            if entry.exists():
                partial.rmdir()
                return
            for path in partial.iterdir():  # of a process that was killed
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            self._make_room(size_bytes, partial)
            fetch(partial)
            os.rename(partial, entry)
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            if isinstance(error, OSError) and error.errno in DISK_FULL:
                raise OSError(error.errno, f"has no room for {format_bytes(size_bytes)}", str(self.place)) from error
            raise
        finally:
            os.close(lock)

    def _make_room(self, size_bytes: int, wanted: Path) -> None:
        """Remove what was longest unused until there is room; what is in use stays, whatever the limit says."""
        entries = sorted((path for path in self.place.iterdir() if path != wanted), key=_last_use)
        sizes = {path: _size(path) for path in entries}
        left = sum(sizes.values()) + size_bytes - self.limit_bytes
        for path in entries:
            if left > 0 and _remove(path):
                left -= sizes[path]


def _lock(folder: Path, kind: int) -> int | None:
    """Lock a folder and return the handle that holds it; None when it is not there, or not any more.

    Raises BlockingIOError where ``kind`` says not to wait, OSError where folders cannot be locked.
    """
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, kind)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(folder)):
                return handle
    except BlockingIOError:
        os.close(handle)
        raise
    except OSError as error:
        os.close(handle)
        rule = f"cannot be locked ({error.strerror}); let {PLACE} name a folder of a local disk"
        raise OSError(errno.EIO, rule, str(folder)) from error
    os.close(handle)
    return None


def _remove(folder: Path) -> bool:
    """Remove a folder that nobody uses, and no other user owns; return whether it is gone."""
    try:
        lock = _lock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    if lock is None:
        return True
    try:
        doomed = folder.with_name(f".{secrets.token_hex(8)}.removed")
        os.rename(folder, doomed)
        shutil.rmtree(doomed)
    except PermissionError:
        return False
    finally:
        os.close(lock)
    return True


def _last_use(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _size(folder: Path) -> int:
    """Return the bytes of a folder's files; those that go meanwhile, with their folders, count as nothing."""
    total = 0
    for place, _, names in os.walk(folder):  # unlike rglob, it passes over folders that are gone
        for name in names:
            with suppress(FileNotFoundError):
                total += os.lstat(os.path.join(place, name)).st_size
    return total
