"""What each sweep on a root meant when it last ran, ``sweeps/<name>/plan.json``, and which snapshots it thus keeps."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from massive_sft.ledger.storage import Storage

NAME = "plan.json"
SCHEMA = 1


def write_last_plan(sweep: Storage, file: Mapping[str, Any], cells: Mapping[str, str], kept: Iterable[str]) -> None:
    """Write what a sweep means, unless it says so already.

    Args:
        sweep: its place.
        file: its file by dotted place, every default written out.
        cells: coordinates for people, by cell id.
        kept: ids of the cells whose snapshots its policy keeps for good.
    """
    content = {"schema": SCHEMA, "file": dict(file), "cells": dict(cells), "kept": sorted(kept)}
    if read_last_plan(sweep) != content:
        sweep.put(NAME, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def read_last_plan(sweep: Storage) -> dict[str, Any] | None:
    """Return what a sweep meant when it last ran; None where nothing sound says so."""
    try:
        content = json.loads(sweep.get(NAME).data)
    except (OSError, ValueError):
        return None
    sound = isinstance(content, dict) and content.get("schema") == SCHEMA
    kinds = {"file": dict, "cells": dict, "kept": list}
    return content if sound and all(isinstance(content.get(key), kind) for key, kind in kinds.items()) else None


def sweeps_keeping_snapshot(sweeps: Storage, cell: str, apart_from: str | None = None) -> list[str]:
    """Return the sweeps of a root that keep a cell's snapshot, by the policy of their last runs.

    One whose plan cannot be read counts as keeping all.

    Args:
        sweeps: the root's sweeps, by name.
        cell: its id.
        apart_from: the name of a sweep that is left out, because its policy of now is known.
    """
    keepers = []
    for name in (item.name for item in sweeps.list() if item.name != apart_from):
        place = sweeps.at(name)
        plan = next((item for item in place.list() if item.name == NAME), None)
        try:
            kept = frozenset() if plan is None else _kept(place, plan.version())
        except FileNotFoundError:  # removed just now
            continue
        if kept is None or cell in kept:
            keepers.append(name)
    return sorted(keepers)


@lru_cache(maxsize=256)
def _kept(sweep: Storage, version: str) -> frozenset[str] | None:
    content = read_last_plan(sweep)
    return None if content is None else frozenset(content["kept"])
