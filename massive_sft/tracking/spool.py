"""The spool: what could not be mirrored yet, on disk. Names suffice, for the ledger holds the content."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path

from massive_sft.core import files
from massive_sft.core.errors import Corrupt

log = logging.getLogger(__name__)

Item = str | Path
"""A cell by its id, or a file of the sweep by its path."""


def read_spool(path: Path) -> list[Item]:
    """Return the waiting items; none where there is no spool. Raises Corrupt, OSError."""
    try:
        lines = path.read_text().splitlines()
        return [_parsed(json.loads(line)) for line in lines]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        raise Corrupt(f"{path}: is no spool of the mirror ({error})") from error


def read_sound_spool(path: Path) -> list[Item]:
    """As ``read_spool``; a damaged one is told, and none. Raises OSError."""
    try:
        return read_spool(path)
    except Corrupt as error:
        log.warning("%s; it is written anew", error)
        return []


def write_spool(path: Path, items: Iterable[Item]) -> None:
    """Replace the spool, flushed to the disk; without items there is none. Raises OSError.

    Only the holder of the mirror's lease may do so.
    """
    lines = [json.dumps({"file": str(item)} if isinstance(item, Path) else {"cell": item}) for item in items]
    if lines:
        files.write_bytes(path, "".join(f"{line}\n" for line in lines).encode())
    else:
        path.unlink(missing_ok=True)


def _parsed(line: dict[str, str]) -> Item:
    return Path(line["file"]) if "file" in line else line["cell"]
