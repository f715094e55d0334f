"""What live runs still require of cells, so that no run removes a snapshot that another needs."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from functools import lru_cache

from massive_sft.ledger.asked import is_answered
from massive_sft.ledger.runs import Run, find_possible_runs
from massive_sft.ledger.storage import Storage

NAME = "wants.json"


def publish_requirements(run: Run, required: Mapping[str, Collection[str]]) -> None:
    """Publish what a run requires of each cell that is not done, for the other runs on this root.

    It is valid while the run may be live; until it is published, the run is taken to require everything.

    Args:
        run: this one.
        required: ids of requirements (as in ``Record.answers``) by cell.

    Raises OSError where nothing can be written.
    """
    content = {"schema": 1, "cells": {cell: sorted(asked) for cell, asked in required.items()}}
    run.place.put(NAME, json.dumps(content).encode())


def is_still_required(sweeps: Storage, cell: str, answers: Collection[str]) -> bool:
    """Return whether a live run may still require more of a cell than it has by now; what is unknown is required.

    Args:
        sweeps: the root's sweeps, by name.
        cell: its id.
        answers: as ``Record.answers``.
    """
    runs = (run for sweep in sweeps.list() for run in find_possible_runs(sweeps.at(sweep.name)))
    return any(not _is_satisfied(run.place, cell, frozenset(answers)) for run in runs)


def _is_satisfied(place: Storage, cell: str, answers: frozenset[str]) -> bool:
    """Return whether a run certainly requires no more of a cell than it has."""
    try:
        version = next((item.version() for item in place.list() if item.name == NAME), None)
        wants = None if version is None else _read(place, version)
    except OSError:
        return False
    return wants is not None and all(is_answered(asked, answers) for asked in wants.get(cell, frozenset()))


@lru_cache(maxsize=256)
def _read(place: Storage, version: str) -> Mapping[str, frozenset[str]] | None:
    """Return what a run requires by cell; None where that cannot be read. Raises OSError."""
    data = place.get(NAME).data
    try:
        return {cell: frozenset(asked) for cell, asked in json.loads(data)["cells"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
