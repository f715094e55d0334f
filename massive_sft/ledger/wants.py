"""What the runs that go on still ask of cells, so that none of them removes a snapshot that another needs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from massive_sft.errors import Corrupt
from massive_sft.files import read_json, write_json
from massive_sft.ledger.runs import Run, live_runs

NAME = "wants.json"


def announce(run: Run, wants: Mapping[str, Collection[str]]) -> None:
    """Let the other runs on this root see what a run asks of each cell that is not done: ids of ``Record.answers``.

    It holds while the run is live. Raises OSError where nothing can be written.
    """
    write_json(run.folder / NAME, {"schema": 1, "cells": {cell: sorted(asked) for cell, asked in wants.items()}})


def wanted(root: Path, cell: str) -> set[str]:
    """Return what live runs of any sweep under a storage root ask of a cell."""
    found: set[str] = set()
    for sweep in (root / "sweeps").glob("*"):
        for run in live_runs(sweep):
            try:
                found.update(read_json(run.folder / NAME)["cells"].get(cell, ()))
            except (FileNotFoundError, Corrupt, KeyError, TypeError):
                continue  # it has not announced anything yet, or has just ended
    return found
