"""What each sweep on a root meant when it last ran, ``sweeps/<name>/plan.json``, and what it thus keeps.

That are snapshots, and states that a longer training goes on from.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from massive_sft.ledger.storage import Storage

NAME = "plan.json"
SCHEMA = 1


def write_last_plan(
    sweep: Storage,
    file: Mapping[str, Any],
    cells: Mapping[str, str],
    kept: Iterable[str],
    states: Iterable[str],
    asked: Iterable[str],
    trainings: Iterable[str],
) -> None:
    """Write what a sweep means, unless it says so already.

    Args:
        sweep: its place.
        file: its file by dotted place, every default written out.
        cells: coordinates for people, by cell id.
        kept: ids of the cells whose snapshots its policy keeps for good.
        states: ids of the trajectories whose last state it keeps.
        asked: ids of all that is asked of its cells.
        trainings: ids of its trajectories.
    """
    content = {"schema": SCHEMA, "file": dict(file), "cells": dict(cells), "kept": sorted(kept), "asked": sorted(asked)}
    content["trainings"] = sorted(trainings)
    if listed := sorted(states):
        content["states"] = listed
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
    return _sweeps_listing(sweeps, "kept", cell, apart_from)


def sweeps_keeping_state(sweeps: Storage, trajectory: str, apart_from: str | None = None) -> list[str]:
    """Return the sweeps of a root that keep a trajectory's last state, as ``sweeps_keeping_snapshot``."""
    return _sweeps_listing(sweeps, "states", trajectory, apart_from)


def sweeps_asking_for_training(sweeps: Storage, trajectory: str) -> list[str]:
    """Return the sweeps of a root whose last runs asked for a trajectory; one that cannot tell counts as asking."""
    return _sweeps_listing(sweeps, "trainings", trajectory, None)


def _sweeps_listing(sweeps: Storage, key: str, identity: str, apart_from: str | None) -> list[str]:
    keepers = []
    for name in (item.name for item in sweeps.list() if item.name != apart_from):
        place = sweeps.at(name)
        plan = next((item for item in place.list() if item.name == NAME), None)
        try:
            listed = frozenset() if plan is None else _listed(place, plan.version(), key)
        except FileNotFoundError:  # removed just now
            continue
        if listed is None or identity in listed:
            keepers.append(name)
    return sorted(keepers)


@lru_cache(maxsize=256)
def _listed(sweep: Storage, version: str, key: str) -> frozenset[str] | None:
    content = read_last_plan(sweep)
    if content is None or (key not in content and key == "trainings"):  # of before plans told them
        return None
    return frozenset(content.get(key, ()))
