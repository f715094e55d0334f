"""Files that are whole or not there, on any POSIX file system, also where the reply to a request may get lost.

A network file system asks again when no answer came. If the first request had succeeded, the second is refused: the
name exists, or the source is gone. What counts is therefore never what the system says, but whether what lies there
afterwards is the very file that was written (its inode). All files are made with the permissions that the user's
umask and the folder's default ACL give.
"""

from __future__ import annotations

import difflib
import errno
import gzip
import json
import os
import re
import secrets
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISDIR
from typing import Any, TypeVar

from massive_sft.core.errors import Corrupt

STALE_TRIES = 3
T = TypeVar("T")


def read_bytes(path: Path) -> tuple[bytes, os.stat_result]:
    """Return a file's content and what the system says of that very file. Raises FileNotFoundError, OSError."""

    def read() -> tuple[bytes, os.stat_result]:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC), "rb") as file:
            return file.read(), os.fstat(file.fileno())

    return _again_if_stale(read)


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` under a temporary name beside ``path``, flush it to the disk, then rename it.

    Parent folders are made. Raises OSError when the disk refuses; ``path`` is then as it was.
    """
    with _flushed(path, data) as (temporary, stat):
        try:
            os.replace(temporary, path)
        except OSError:
            if not _is(path, stat):
                raise
    sync_folder(path.parent)


def create_bytes(path: Path, data: bytes) -> bool:
    """Write ``data`` to ``path`` unless something is there; return whether it was written. Of several writers one wins.

    Parent folders are made. Raises OSError when the disk refuses.
    """
    with _flushed(path, data) as (temporary, stat):
        try:
            os.link(temporary, path)
        except OSError as error:
            if not _is(path, stat):
                if isinstance(error, FileExistsError):
                    return False
                raise
    sync_folder(path.parent)
    return True


def overwrite_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` over a file of the same length, in place: no room is needed. A reader may meet some of both.

    Raises FileNotFoundError, and OSError when the disk refuses.
    """
    handle = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        _write_all(handle, data)
        os.fsync(handle)  # a network file system shows it to others only then
    finally:
        os.close(handle)


def move_folder(source: Path, target: Path) -> bool:
    """Rename a folder; return False when ``target`` is there already. POSIX checks and renames in one step."""
    source_stat = os.stat(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.rename(source, target)
    except OSError as error:
        if not _is(target, source_stat):
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return False
            raise
    sync_folder(target.parent)
    return True


@contextmanager
def _flushed(path: Path, data: bytes) -> Iterator[tuple[Path, os.stat_result]]:
    """Flush ``data`` to a temporary file beside ``path``, whose name is gone afterwards."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        try:
            _write_all(handle, data)
            os.fsync(handle)
            stat = os.fstat(handle)
        finally:
            os.close(handle)
        yield temporary, stat
    finally:
        with suppress(OSError):  # renamed away; or else left to ``gc``
            os.unlink(temporary)


def _write_all(handle: int, data: bytes) -> None:
    """Write all of ``data``: the system may take less of it at a time."""
    left = memoryview(data)
    while left:
        left = left[os.write(handle, left) :]


def _is(path: Path, stat: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.stat(path), stat)
    except FileNotFoundError:
        return False


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as ``json_bytes``. Raises OSError when the disk refuses."""
    write_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """Return ``value`` as JSON, one key a line, with a final newline. NaN is refused (ValueError)."""
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises FileNotFoundError when it is missing, ``Corrupt`` when it does not parse."""
    try:
        return json.loads(read_bytes(path)[0])
    except ValueError as error:
        raise Corrupt(f"{path}: is not valid JSON ({error})") from error


def read_compressed_lines(path: Path) -> list[str]:
    """Return the lines of a gzip file. Raises OSError, ``Corrupt`` when it is damaged."""
    return decompress_lines(path.read_bytes(), str(path))


def decompress_lines(data: bytes, path: str) -> list[str]:
    """Return the lines of a gzip file's content. Raises ``Corrupt``, which names ``path``, when it is damaged."""
    try:
        return gzip.decompress(data).decode().split("\n")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise Corrupt(f"{path}: cannot be read ({error})") from error


DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_REFUSED = DISK_FULL | {errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.EFBIG, errno.EMFILE}


def walk(folder: Path) -> Iterator[Path]:
    """Yield all files and folders below a folder, each before what is in it; links are not followed.

    Others may work in it: what goes meanwhile is passed over, or is gone once it was yielded.
    """
    for place, folders, names in os.walk(folder):
        yield from (Path(place, name) for name in (*folders, *names))


def size_bytes(path: Path) -> int:
    """Return the bytes of a file, or of all files below a folder; hard links to other files count in full.

    What is gone, or goes meanwhile, counts as nothing.
    """
    total = 0
    for file in (path, *walk(path)):
        with suppress(FileNotFoundError):
            stat = file.lstat()
            total += 0 if S_ISDIR(stat.st_mode) else stat.st_size
    return total


def explain_os_error(error: OSError) -> str | None:
    """Return a sentence for an error of the disk (full, read-only, no permission); None for others, which are bugs."""
    if error.errno not in _REFUSED:
        return None
    place = f"{error.filename}: " if error.filename else "the disk refuses: "
    remedy = "; make room, then run the same command to go on" if error.errno in DISK_FULL else ""
    return f"{place}{error.strerror}{remedy}"


def name_beside(path: Path) -> str:
    """Return `` (did you mean X?)`` with the name that is closest to one that is not there; empty where none is."""
    beside: list[str] = []
    with suppress(OSError):
        beside = difflib.get_close_matches(path.name, os.listdir(path.parent), n=1, cutoff=0.8)
    return f" (did you mean {beside[0]}?)" if beside else ""


def user_cache_file(name: str) -> Path | None:
    """Return where a file of the user's cache folder lies; None for a user without a home folder."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "massive-sft" / name
    except RuntimeError:
        return None


def sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` survive a power loss (POSIX: fsync of the directory)."""

    def sync() -> None:
        handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    _again_if_stale(sync)


def _again_if_stale(call: Callable[[], T]) -> T:
    """Call again when a handle is stale: the path leads to another file by now (NFS)."""
    for _ in range(STALE_TRIES - 1):
        try:
            return call()
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
    return call()


_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def parse_size(text: str) -> float:
    """Return ``2TB`` as 2e12. Raises ValueError for what is no size."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kMGT]?)B", text)
    if match is None:
        raise ValueError(f"is no size: {text!r}")
    return float(match[1]) * _UNITS[match[2]]


def format_bytes(count: float) -> str:
    """Return a number of bytes for people: decimal units, three digits."""
    size, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            break
        size /= 1000
    return f"{size:.3g} {unit}" if size < 1000 else f"{size:,.0f} {unit}"
