"""What the runs that go on still ask of cells, so that none of them removes a snapshot that another needs."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from functools import lru_cache

from massive_sft.ledger.runs import Run, find_possible_runs
from massive_sft.ledger.storage import Storage

NAME = "wants.json"


def publish_requirements(run: Run, wants: Mapping[str, Collection[str]]) -> None:
    """Let the other runs on this root see what a run asks of each cell that is not done: ids of ``Record.answers``.

    It holds while the run may be live; until it is announced, the run is taken to want everything. Raises OSError
    where nothing can be written.
    """
    content = {"schema": 1, "cells": {cell: sorted(asked) for cell, asked in wants.items()}}
    run.place.put(NAME, json.dumps(content).encode())


def is_still_required(sweeps: Storage, cell: str, answers: Collection[str]) -> bool:
    """Return whether a run may still want more of a cell than what it answers by now; what is unknown is wanted.

    Args:
        sweeps: the root's sweeps, by name.
        cell: its id.
        answers: as ``Record.answers``.
    """
    runs = (run for sweep in sweeps.list() for run in find_possible_runs(sweeps.at(sweep.name)))
    return any(not _is_content(run.place, cell, frozenset(answers)) for run in runs)


def _is_content(place: Storage, cell: str, answers: frozenset[str]) -> bool:
    """Return whether a run is certainly content with what a cell answers."""
    try:
        version = next((item.version() for item in place.list() if item.name == NAME), None)
        wants = None if version is None else _read(place, version)
    except OSError:
        return False
    return wants is not None and wants.get(cell, frozenset()) <= answers


@lru_cache(maxsize=256)
def _read(place: Storage, version: str) -> Mapping[str, frozenset[str]] | None:
    """Return what a run wants by cell; None where nothing sound says so. Raises OSError."""
    data = place.get(NAME).data
    try:
        return {cell: frozenset(asked) for cell, asked in json.loads(data)["cells"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
