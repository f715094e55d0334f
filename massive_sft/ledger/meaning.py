"""What each sweep on a root meant when it last ran, ``sweeps/<name>/plan.json``, and which snapshots it thus keeps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from massive_sft.errors import Corrupt
from massive_sft.files import read_json, write_json

NAME = "plan.json"
SCHEMA = 1


def write_meaning(sweep: Path, file: Mapping[str, Any], cells: Mapping[str, str], kept: Iterable[str]) -> None:
    """Write what the sweep in this folder means, unless it says so already.

    Args:
        file: its file by dotted place, every default written out.
        cells: coordinates for people, by cell id.
        kept: ids of the cells whose snapshots its policy keeps for good.
    """
    content = {"schema": SCHEMA, "file": dict(file), "cells": dict(cells), "kept": sorted(kept)}
    if read_meaning(sweep) != content:
        write_json(sweep / NAME, content)


def read_meaning(sweep: Path) -> dict[str, Any] | None:
    """Return what the sweep in this folder meant when it last ran; None where nothing sound says so."""
    try:
        content = read_json(sweep / NAME)
    except (OSError, Corrupt):
        return None
    sound = isinstance(content, dict) and content.get("schema") == SCHEMA
    kinds = {"file": dict, "cells": dict, "kept": list}
    return content if sound and all(isinstance(content.get(key), kind) for key, kind in kinds.items()) else None


def keepers(root: Path, cell: str, apart_from: str | None = None) -> list[str]:
    """Return the sweeps under a storage root that keep a cell's snapshot, by the policy of their last runs.

    One whose plan cannot be read keeps all: nobody knows what it promised.

    Args:
        apart_from: the name of a sweep that is asked about its policy of now.
    """
    found = []
    for path in (root / "sweeps").glob(f"*/{NAME}"):
        if path.parent.name == apart_from:
            continue
        try:
            stat = path.stat()
        except FileNotFoundError:  # removed just now
            continue
        kept = _kept(path.parent, stat.st_mtime_ns, stat.st_size, stat.st_ino)
        if kept is None or cell in kept:
            found.append(path.parent.name)
    return sorted(found)


@lru_cache(maxsize=256)
def _kept(sweep: Path, *version: int) -> frozenset[str] | None:
    content = read_meaning(sweep)
    return None if content is None else frozenset(content["kept"])
