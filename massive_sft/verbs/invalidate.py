"""``invalidate``: results that turned out to be wrong are set aside, so that the next run makes them again.

Nothing is deleted: what they rest on moves to ``invalidated/<n>/`` beside it, where ``gc`` finds it, and each cell gets
a new record that says who invalidated it and why. The mirror shows that record too.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group
from rich.table import Table
from rich.text import Text

from massive_sft.errors import InvalidInput, Problem
from massive_sft.ledger.lease import Lease
from massive_sft.ledger.provenance import capture, redact
from massive_sft.ledger.record import Record, Status
from massive_sft.ledger.store import Ledger
from massive_sft.plan import Plan
from massive_sft.stages.recorder import now
from massive_sft.verbs.options import File, Json, Overlays, console, print_json, read_plan
from massive_sft.where import narrow, parse

OWNER = "massive-sft invalidate"
ASIDE = "invalidated"
OF_CELL = ("responses", "scores", "layers.parquet")
OF_TRAJECTORY = ("training", "snapshots", "resume", "attempts")


@dataclass(frozen=True)
class Doomed:
    """What is invalidated: records, and the trajectories whose training goes with them.

    Attributes:
        beside: those of the records that were not named: other cells of the same trainings, of any sweep.
    """

    records: tuple[Record, ...]
    trajectories: tuple[str, ...]
    beside: frozenset[str]


def invalidate(
    file: File,
    where: Annotated[
        str, typer.Option("--where", help='These cells: "model=a and method=lora", by coordinates or id.')
    ],
    reason: Annotated[str, typer.Option("--reason", help="Why; it is kept in the cells' records.")],
    overlay: Overlays = None,
    scores: Annotated[bool, typer.Option("--scores", help="Keep the trainings: only score and measure again.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would be, change nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Set wrong results aside, with the reason; the next run makes them again."""
    if not reason.strip():
        raise InvalidInput(Problem("--reason", "must say why", reason))
    plan, ledger = read_plan(file, overlay)
    found = find(narrow(plan, parse(where)), ledger, with_training=not scores)
    if not dry_run and found.records:
        set_aside(found, ledger, reason.strip())
    if as_json:
        cells = [{"cell": one.cell, "beside": one.cell in found.beside} for one in found.records]
        print_json({"schema": 1, "done": not dry_run, "cells": cells, "trajectories": list(found.trajectories)})
    else:
        console().print(_view(found, dry_run))


def find(plan: Plan, ledger: Ledger, with_training: bool) -> Doomed:
    """Find what goes with a plan's cells: their records and, with the trainings, all other records of those."""
    entries = ledger.entries()
    named = {cell.cell.id for cell in plan.cells if cell.cell.id in entries}
    trajectories: dict[str, None] = {}
    if with_training:
        trajectories = dict.fromkeys(run.trajectory.id for run in plan.runs)
    beside = {entry.cell for entry in entries.values() if entry.trajectory in trajectories} - named
    records = (ledger.read_record(cell) for cell in sorted(named | beside))
    return Doomed(
        tuple(record for record in records if record is not None),
        tuple(
            run for run in trajectories if any((ledger.trajectory_dir(run) / name).exists() for name in OF_TRAJECTORY)
        ),
        frozenset(beside),
    )


def set_aside(found: Doomed, ledger: Ledger, reason: str) -> None:
    """Move what the records and trainings rest on aside and write the new records, all under leases.

    A process that dies here leaves trainings that are aside and records that still stand; the same command goes on.

    Raises:
        InvalidInput: when somebody works on any of it; nothing was changed then.
    """
    homes = [ledger.trajectory_dir(run) for run in found.trajectories]
    cells = [ledger.cell_dir(record.cell) for record in found.records]
    with contextlib.ExitStack() as held:
        leases = {home: Lease.acquire(home / "lease", OWNER) for home in (*homes, *cells)}
        for lease in leases.values():
            if lease is not None:
                held.enter_context(lease)
        busy = [home for home, lease in leases.items() if lease is None]
        if busy:
            rule = "somebody works on it; cancel the run first (massive-sft cancel)"
            raise InvalidInput(Problem("invalidate", rule, str(home)) for home in busy)
        for home in homes:
            _move(home, OF_TRAJECTORY)
        _forget_scores(found.records, ledger)
        provenance = capture()
        for record, folder in zip(found.records, cells, strict=True):
            _move(folder, OF_CELL)
            lease = leases[folder]
            ledger.write_record(_invalidated(record, reason, provenance), lease.claim if lease else None)


def _invalidated(record: Record, reason: str, provenance: dict[str, object]) -> Record:
    empty: dict[str, object] = {"scores": {}, "measures": {}, "counts": {}, "training": {}, "missing": {}, "files": {}}
    told = {"status": Status.FAILED, "error": f"invalidated: {redact(reason)}", "provenance": provenance}
    return record.model_copy(update={**empty, **told, "created": now(), "finished": now()})


def _move(home: Path, names: Collection[str]) -> None:
    """Move what is there of ``names`` into the next free ``invalidated/<n>``."""
    present = [name for name in names if (home / name).exists()]
    if not present:
        return
    taken = [int(path.name) for path in (home / ASIDE).glob("*") if path.name.isdecimal()]
    target = home / ASIDE / str(max(taken, default=0) + 1)
    target.mkdir(parents=True)
    for name in present:
        os.rename(home / name, target / name)


def _forget_scores(records: Iterable[Record], ledger: Ledger) -> None:
    """Remove the cached scores of the protocols concerned, of all weights: they are made again of the responses."""
    protocols = {protocol for record in records for protocol in record.scores}
    for folder in ledger.cache_dir("scores").glob("*"):
        for protocol in protocols:
            for path in folder.glob(f"{protocol}.*"):
                path.unlink()


def _view(found: Doomed, dry_run: bool) -> Group:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("cell", "what", "was"):
        table.add_column(column, overflow="fold")
    for record in found.records:
        named = " ".join(str(value) for value in record.coordinates.values() if value not in (None, ""))
        also = " (of the same training)" if record.cell in found.beside else ""
        table.add_row(record.cell, Text(named + also), str(record.status))
    verb = "would be" if dry_run else "are"
    told = (
        f"{len(found.records)} cells and {len(found.trajectories)} trainings {verb} invalidated; `run` makes them again"
    )
    return Group(
        *([table] if found.records else []), Text(told if found.records else "nothing to invalidate: no record")
    )
