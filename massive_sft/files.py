"""Atomic writes: a reader sees the old file or the new one, never a part of one."""

from __future__ import annotations

import errno
import gzip
import json
import os
import tempfile
import zlib
from pathlib import Path
from typing import Any

from massive_sft.errors import Corrupt


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` under a temporary name beside ``path``, flush it to the disk, then rename it.

    Parent folders are made. Raises OSError when the disk refuses; ``path`` is then as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), 0o644)  # a ledger is for all who may see its folder
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON, one key a line, with a final newline. NaN is refused (ValueError)."""
    write_bytes(path, (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises FileNotFoundError when it is missing, ``Corrupt`` when it does not parse."""
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise Corrupt(f"{path}: is not valid JSON ({error})") from error


def read_compressed_lines(path: Path) -> list[str]:
    """Return the lines of a gzip file. Raises FileNotFoundError, ``Corrupt`` when it is damaged."""
    try:
        return gzip.decompress(path.read_bytes()).decode().split("\n")
    except FileNotFoundError:
        raise
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise Corrupt(f"{path}: cannot be read ({error})") from error


FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_REFUSED = FULL | {errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.EFBIG, errno.EMFILE}


def refusal(error: OSError) -> str | None:
    """Return what to tell people when the disk refused; None when it is something else, which is a bug."""
    if error.errno not in _REFUSED:
        return None
    place = f"{error.filename}: " if error.filename else "the disk refuses: "
    remedy = "; make room, then run the same command to go on" if error.errno in FULL else ""
    return f"{place}{error.strerror}{remedy}"


def sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` survive a power loss (POSIX: fsync of the directory)."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def size_text(count: float) -> str:
    """Return a number of bytes for people: decimal units, three digits."""
    size, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            break
        size /= 1000
    return f"{size:.3g} {unit}" if size < 1000 else f"{size:,.0f} {unit}"
