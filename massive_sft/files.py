"""Atomic writes: a reader sees the old file or the new one, never a part of one."""

from __future__ import annotations

import json
import os
import tempfile
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


def sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` survive a power loss (POSIX: fsync of the directory)."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
