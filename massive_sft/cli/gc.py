"""``gc``: removes what a ledger does not need. What a process holds a lease on is never touched."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group
from rich.text import Text

from massive_sft.cli.garbage import (
    Garbage,
    below,
    is_settled,
    is_there,
    is_unasked,
    key_of,
    leftovers,
    place_of,
    temporary_files,
    unasked_checkpoints,
    unkept_snapshots,
    unkept_states,
    unneeded_checkpoints,
    unused_caches,
    uploads,
)
from massive_sft.cli.options import File, Json, Overlays, console, print_json, read_plan
from massive_sft.cli.views import make_table
from massive_sft.core.files import format_bytes, walk
from massive_sft.core.wording import counted
from massive_sft.ledger.attempt import LATEST, remove_leftover
from massive_sft.ledger.last_plan import sweeps_keeping_snapshot, sweeps_keeping_state
from massive_sft.ledger.lease import LeaseWatch, read_lease
from massive_sft.ledger.snapshot_store import remove_folder
from massive_sft.ledger.store import Ledger
from massive_sft.planning.plan import Plan
from massive_sft.running.outcome import remove_snapshot

OWNER = "massive-sft gc"


@dataclass(frozen=True)
class Collected:
    """What can go, and why something else cannot."""

    waste: tuple[Garbage, ...]
    kept: tuple[str, ...]

    @property
    def size_bytes(self) -> int:
        return sum(item.size_bytes for item in self.waste)


def gc(
    file: File,
    overlay: Overlays = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, remove nothing.")] = False,
    caches: Annotated[bool, typer.Option("--caches", help="Also cached data that no cell of this file uses.")] = False,
    unasked: Annotated[
        bool,
        typer.Option("--unasked", help="Also checkpoints of trainings that no sweep on the root asks for any more."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Remove what the ledger can do without: leftovers of attempts, invalidated results, snapshots beyond policy."""
    plan, ledger = read_plan(file, overlay)
    garbage = collect(plan, ledger, caches, unasked)
    if not dry_run:
        garbage = remove(garbage, ledger)
    if as_json:
        listed = [{"kind": item.kind, "path": str(item.path), "bytes": item.size_bytes} for item in garbage.waste]
        print_json(
            {"schema": 1, "removed": not dry_run, "bytes": garbage.size_bytes, "waste": listed, "kept": garbage.kept}
        )
    else:
        console().print(gc_view(garbage, ledger, dry_run), soft_wrap=True)


def collect(plan: Plan, ledger: Ledger, caches: bool = False, unasked: bool = False) -> Collected:
    """Find what can go: leftovers anywhere in the ledger, snapshots and states of the plan's runs, ``caches`` of it.

    Checkpoints of trainings that no sweep asks for are garbage if ``unasked``, else kept, which is said.
    """
    watch = LeaseWatch()
    waste: list[Garbage] = []
    kept: list[str] = []
    for home in ledger.cell_and_trajectory_dirs():
        own = list(leftovers(ledger, home))
        if own and not _free(ledger, home, watch):
            kept.append(f"{home}: somebody works on it")
        else:
            waste += own
    for item in (item for run in plan.runs for item in unkept_snapshots(run, plan, ledger)):
        others = sweeps_keeping_snapshot(ledger.sweeps, item.cell.cell.id, plan.sweep.file.name) if item.cell else []
        if others:
            kept.append(f"{item.path}: sweep {', '.join(others)} keeps it (storage.keep_snapshots)")
            continue
        folders = [item.home, ledger.cell_dir(item.cell.cell.id)] if item.home and item.cell else []
        busy = next((folder for folder in folders if not _free(ledger, folder, watch)), None)
        if busy is None:
            waste.append(item)
        else:
            kept.append(f"{item.path}: somebody works on {busy}")
    for item in (item for run in plan.runs for item in unkept_states(run, ledger)):
        others = sweeps_keeping_state(ledger.sweeps, item.home.name, plan.sweep.file.name) if item.home else []
        if others:
            kept.append(f"{item.path}: sweep {', '.join(others)} keeps it (storage.keep_state)")
        elif item.home and _free(ledger, item.home, watch):
            waste.append(item)
        else:
            kept.append(f"{item.path}: somebody works on {item.home}")
    for item in unasked_checkpoints(plan, ledger):
        if item.home and not _free(ledger, item.home, watch):
            kept.append(f"{item.path}: somebody works on {item.home}")
        elif unasked:
            waste.append(item)
        else:
            size = format_bytes(item.size_bytes)
            kept.append(f"{item.path}, {size}: no sweep here asks for this training any more; --unasked removes it")
    shared = (path for name in ("cache", "index", "records", "sweeps") for path in walk(ledger.root / name))
    waste += temporary_files(ledger, shared)
    waste += temporary_files(ledger, ledger.root.glob(".*"))
    if caches:
        busy = next((home for home in ledger.cell_and_trajectory_dirs() if not _free(ledger, home, watch)), None)
        waste += unused_caches(plan, ledger) if busy is None else ()
        kept += [] if busy is None else [f"caches: somebody works on {busy}"]
    return Collected(tuple(waste), tuple(kept))


def remove(garbage: Collected, ledger: Ledger) -> Collected:
    """Remove garbage, each item under its lease; return what was removed, and what was kept as its lease is held."""
    gone: list[Garbage] = []
    kept = list(garbage.kept)
    by_home: dict[Path | None, list[Garbage]] = {}
    for item in garbage.waste:
        by_home.setdefault(item.home, []).append(item)
    for home, items in by_home.items():
        if home is None:
            gone += (item for item in items if _remove(item, ledger))
            continue
        lease = ledger.lease_folder(home, OWNER)
        if lease is None:
            kept.append(f"{home}: somebody works on it")
            continue
        with lease:
            # A process that held it in between may have published some of it.
            gone += (item for item in items if _remove(item, ledger))
    return Collected(tuple(gone), tuple(kept))


def _remove(item: Garbage, ledger: Ledger) -> bool:
    """Remove one item; return False when it is gone already, or is needed after all."""
    if not is_there(ledger, item.path):
        return False
    if item.cell is not None and item.home is not None:
        lease = ledger.lease_cell(item.cell.cell.id, OWNER)
        if lease is None:
            return False
        with lease:
            if not is_settled(item.cell, ledger):
                return False
            remove_snapshot(ledger, item.home.name, item.cell.cell.epoch)
        return True
    if item.kind == "resume" and item.home is not None and item.path not in unneeded_checkpoints(ledger, item.home):
        return False  # a training was interrupted there meanwhile
    if item.kind == "unasked" and not is_unasked(ledger, item.path):
        return False  # a run began meanwhile that asks for it
    key = key_of(ledger, item.path)
    if item.kind == "attempt" and item.home is not None:
        remove_leftover(place_of(ledger, item.home), below(item.path, item.home))
    elif item.kind in ("upload", "weights") and item.home is not None:
        if item.path not in [found.path for found in uploads(ledger, item.home)]:  # it was published meanwhile
            return False
        ledger.storage.delete(key)
    elif item.path.is_file():
        item.path.unlink(missing_ok=True)
    else:
        ledger.storage.delete(f"{key}/{LATEST}")  # of a checkpoint or a state: half of one must not count
        if item.path.is_dir():
            remove_folder(item.path)
        ledger.storage.delete(key)
    return True


def _free(ledger: Ledger, home: Path, watch: LeaseWatch) -> bool:
    """Whether no lease is held here; an owner elsewhere that only seems gone still counts as there."""
    lease = ledger.lease_of(home)
    return watch.may_be_taken(lease, read_lease(lease))


def gc_view(garbage: Collected, ledger: Ledger, dry_run: bool) -> Group:
    """Return what goes or went, for people."""
    table = make_table("kind", "what", "size", right=("size",))
    for item in garbage.waste:
        table.add_row(item.kind, Text(str(item.path.relative_to(ledger.root))), format_bytes(item.size_bytes))
    notes = [Text(f"kept, {line}", style="dim") for line in garbage.kept]
    verb = "would go" if dry_run else "removed"
    total = (
        f"{counted(len(garbage.waste), 'item')}, {format_bytes(garbage.size_bytes)} {verb}"
        if garbage.waste
        else "nothing to remove"
    )
    return Group(*([table] if garbage.waste else []), *notes, Text(total))
