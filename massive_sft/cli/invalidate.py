"""``invalidate``: results that turned out to be wrong are set aside, so that the next run makes them again.

What they rest on moves to ``invalidated/<n>/`` beside it, where ``gc`` finds it; only caches that are made again are
removed. Each cell gets a new record that says who invalidated it and why. The mirror shows that record too.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Collection, Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group
from rich.text import Text

from massive_sft.cli.options import File, Json, Overlays, console, print_json, read_plan
from massive_sft.cli.views import make_table
from massive_sft.core.errors import Corrupt, InvalidInput, Problem
from massive_sft.core.wording import counted
from massive_sft.ledger.attempt import ASIDE
from massive_sft.ledger.lease import Lease, LeaseWatch
from massive_sft.ledger.provenance import capture_provenance, redact
from massive_sft.ledger.record import INVALIDATED, Record, Status
from massive_sft.ledger.storage import Root
from massive_sft.ledger.store import Ledger
from massive_sft.planning.plan import Plan, RunPlan, perplexity_key
from massive_sft.planning.selection import parse_where, select_cells
from massive_sft.running.recorder import now
from massive_sft.sweep.cell import Coordinates

OWNER = "massive-sft invalidate"
POLL_S = 0.5  # seconds between looks at whether a process elsewhere still lives
CELL_FILES = ("responses", "scores", "verdicts", "layers.parquet")
TRAJECTORY_FILES = ("training", "snapshots", "resume", "kept", "attempts")


@dataclass(frozen=True)
class Invalidation:
    """What is invalidated: records, and the trajectories whose training goes with them.

    Attributes:
        beside: those of the records that were not named: other cells of the same trainings, of any sweep.
        unrecorded: cells of the same trainings that have no record; somebody may score one now.
        perplexities: keys of the cached perplexities of their data.
        retrainings: trainings that stay, but whose snapshots are needed to score again and were removed.
    """

    records: tuple[Record, ...]
    trajectories: tuple[str, ...]
    beside: frozenset[str]
    unrecorded: tuple[str, ...]
    perplexities: tuple[str, ...]
    retrainings: int


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
    invalidation = find_invalidated(select_cells(plan, parse_where(where)), ledger, with_training=not scores)
    if not dry_run and (invalidation.records or invalidation.trajectories):
        set_aside(invalidation, ledger, reason.strip(), console(is_error=True).print)
    if as_json:
        cells = [{"cell": record.cell, "beside": record.cell in invalidation.beside} for record in invalidation.records]
        counts = {"trajectories": list(invalidation.trajectories), "retrainings": invalidation.retrainings}
        print_json({"schema": 1, "done": not dry_run, "cells": cells, **counts})
    else:
        console().print(_view(invalidation, dry_run))


def find_invalidated(plan: Plan, ledger: Ledger, with_training: bool) -> Invalidation:
    """Find what goes with a plan's cells: their records and, with the trainings, all other records of those.

    A record that is invalidated already keeps its reason, unless its training goes now.
    """
    entries = ledger.entries()
    named = {cell.cell.id for cell in plan.cells if cell.cell.id in entries}
    wanted = [run.trajectory.id for run in plan.runs] if with_training else []
    trajectories = [run for run in wanted if _present(ledger.trajectory(run), TRAJECTORY_FILES)]
    beside = {entry.cell for entry in entries.values() if entry.trajectory in wanted} - named
    records = [record for cell in sorted(named | beside) if (record := ledger.read_record(cell)) is not None]
    left = [record for record in records if record.trajectory in trajectories or not record.is_invalidated]
    cells = {record.cell for record in left}
    runs = [run for run in plan.runs if any(cell.cell.id in cells for cell in run.cells)]
    return Invalidation(
        tuple(left),
        tuple(trajectories),
        frozenset(beside & cells),
        tuple(_unrecorded([run for run in plan.runs if run.trajectory.id in trajectories], entries, ledger)),
        tuple({perplexity_key(run.trajectory.recipe): None for run in runs}),
        0 if with_training else sum(_has_no_snapshot(run, ledger) for run in runs),
    )


def _unrecorded(runs: Collection[RunPlan], recorded: Container[str], ledger: Ledger) -> Iterator[str]:
    """Yield the cells of trainings, of any sweep, that somebody began to score and that have no record."""
    trained = [{key: json.loads(text) for key, text in run.trajectory.recipe.parts.items()} for run in runs]
    for cell in ledger.ids("cells") if trained else ():
        if cell not in recorded:
            with contextlib.suppress(FileNotFoundError, Corrupt):  # then nobody has begun
                content = ledger.read_cell(cell)
                if {key: value for key, value in content.items() if key != "epoch"} in trained:
                    yield cell


def _has_no_snapshot(run: RunPlan, ledger: Ledger) -> bool:
    there = ledger.snapshots(run.trajectory.id)
    return any(f"epoch-{cell.cell.epoch}" not in there for cell in run.cells)


def set_aside(
    invalidation: Invalidation, ledger: Ledger, reason: str, say: Callable[[str], None] = lambda _: None
) -> None:
    """Move what the records and trainings rest on aside and write the new records, all under leases.

    A process that dies here leaves trainings that are aside and records that still stand; the same command goes on.

    Args:
        say: told what is waited for: a process elsewhere that may be dead, as only its standing still can tell.

    Raises:
        InvalidInput: when somebody works on any of it, or did since it was found; nothing was changed then.
    """
    homes = [ledger.trajectory_dir(run) for run in invalidation.trajectories]
    homes += [ledger.cell_dir(cell) for cell in invalidation.unrecorded]
    cells = [ledger.cell_dir(record.cell) for record in invalidation.records]
    with contextlib.ExitStack() as held:
        leases = _take_leases((*homes, *cells), ledger, held, say)
        changed = [record.cell for record in invalidation.records if ledger.read_record(record.cell) != record]
        changed += [cell for cell in invalidation.unrecorded if ledger.read_record(cell) is not None]
        if changed:
            rule = "got a new record meanwhile; look at it, then give the command again"
            raise InvalidInput(Problem("invalidate", rule, cell) for cell in changed)
        for run in invalidation.trajectories:
            _move(ledger.trajectory(run), TRAJECTORY_FILES)
        _forget(invalidation, ledger)
        provenance = capture_provenance()
        for record, folder in zip(invalidation.records, cells, strict=True):
            _move(ledger.cell(record.cell), CELL_FILES)
            ledger.write_record(_invalidated(record, reason, provenance), leases[folder].claim)


def _take_leases(
    homes: Collection[Path], ledger: Ledger, held: contextlib.ExitStack, say: Callable[[str], None]
) -> dict[Path, Lease]:
    """Take leases, to be released with ``held``; those of owners elsewhere once they stood still for long enough.

    Raises InvalidInput, with all of them, where somebody works on a folder.
    """
    taken: dict[Path, Lease] = {}
    watch, is_told = LeaseWatch(), False
    while left := [home for home in homes if home not in taken]:
        for home in left:
            lease = ledger.lease_folder(home, OWNER)
            if lease is not None:
                taken[home] = held.enter_context(lease)
        others = [home for home in left if home not in taken]
        busy = [home for home in others if watch.saw_life(ledger.lease_of(home))]
        if busy:
            rule = "somebody works on it; cancel the run first (massive-sft cancel)"
            raise InvalidInput(Problem("invalidate", rule, str(home)) for home in busy)
        if others and not is_told:
            say(f"waits, for a minute at most, for a sign of life of who has {', '.join(map(str, others))} in hand")
            is_told = True
        if others:
            time.sleep(POLL_S)
    return taken


def _invalidated(record: Record, reason: str, provenance: dict[str, object]) -> Record:
    empty: dict[str, object] = {"scores": {}, "measures": {}, "counts": {}, "training": {}, "missing": {}, "files": {}}
    outcome = {"status": Status.FAILED, "error": f"{INVALIDATED}{redact(reason)}", "provenance": provenance}
    return record.model_copy(update={**empty, **outcome, "created": now(), "finished": now()})


def _present(home: Root, names: Collection[str]) -> list[str]:
    """Return which of ``names`` are there; on an object store, also those that only this machine has files of."""
    return [name for name in names if home.exists(name) or home.local(name).exists() or home.list(name)]


def _move(home: Root, names: Collection[str]) -> None:
    """Move what is there of ``names`` into the next free ``invalidated/<n>``."""
    taken = [int(item.name) for item in home.list(ASIDE) if item.name.isdecimal()]
    for name in _present(home, names):
        home.move(name, f"{ASIDE}/{max(taken, default=0) + 1}/{name}")


def _forget(invalidation: Invalidation, ledger: Ledger) -> None:
    """Remove what is cached: perplexities, and scores of the protocols concerned, made again of the responses."""
    for key in invalidation.perplexities:
        ledger.storage.delete(f"cache/perplexity/{key}")
    protocols = {protocol for record in invalidation.records for protocol in record.scores}
    cache = ledger.storage.at("cache/scores")
    for weights in (item.name for item in cache.list()):
        for name in (item.name for item in cache.list(weights)):
            if name.partition(".")[0] in protocols:
                cache.delete(f"{weights}/{name}")


def _view(invalidation: Invalidation, dry_run: bool) -> Group:
    table = make_table("cell", "what", "was")
    for record in invalidation.records:
        named = Coordinates.describe(record.coordinates)
        also = " (of the same training)" if record.cell in invalidation.beside else ""
        table.add_row(record.cell, Text(named + also), str(record.status))
    cells, trainings = len(invalidation.records), len(invalidation.trajectories)
    counts = [(cells, "cell"), (trainings, "training")]
    what = " and ".join(counted(count, word) for count, word in counts if count)
    verb = "would be" if dry_run else "is" if cells + trainings == 1 else "are"
    summary = f"{what} {verb} invalidated; `run` makes {'it' if cells + trainings == 1 else 'them'} again"
    if not cells + trainings:
        return Group(Text("nothing to invalidate: no such record, or all of them are invalidated already"))
    gone = f"the snapshots of {counted(invalidation.retrainings, 'training')} are gone"
    again = f"{gone}: only `run --retrain` makes their scores again"
    notes = [Text(again, style="yellow")] if invalidation.retrainings else []
    return Group(*([table] if cells else []), Text(summary), *notes)
