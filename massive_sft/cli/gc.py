"""``gc``: removes what a ledger does not need. What a process holds a lease on is never touched."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group
from rich.text import Text

from massive_sft.cli.options import File, Json, Overlays, console, print_json, read_plan
from massive_sft.cli.views import make_table
from massive_sft.core.errors import Corrupt
from massive_sft.core.files import format_bytes, read_json, walk
from massive_sft.core.wording import counted
from massive_sft.ledger.attempt import (
    ASIDE,
    KEPT,
    LATEST,
    RESUME,
    find_leftovers,
    find_stale_checkpoints,
    published_folders,
    remove_leftover,
)
from massive_sft.ledger.last_plan import sweeps_keeping_snapshot, sweeps_keeping_state
from massive_sft.ledger.lease import LeaseWatch, read_lease
from massive_sft.ledger.record import Status
from massive_sft.ledger.run_requirements import is_still_required
from massive_sft.ledger.snapshot_store import remove_folder, stored_bytes
from massive_sft.ledger.storage import Folder, Root
from massive_sft.ledger.store import Ledger
from massive_sft.planning.plan import CellPlan, Plan, RunPlan, token_key
from massive_sft.planning.retention import is_kept
from massive_sft.planning.snapshot_address import IN_ROOT
from massive_sft.running.outcome import has_spent_checkpoint, remove_snapshot, snapshot_folder

STALE_S = 3600.0  # seconds after which a temporary file is a leftover: a write takes far less
OWNER = "massive-sft gc"
_TEMPORARY = re.compile(r"\..*\.(tmp|partial)|\.probe\..*")
_REMOVED = re.compile(r"\..*\.removed\..*")


@dataclass(frozen=True)
class Garbage:
    """A file or folder that can go.

    Attributes:
        kind: ``attempt`` (unpublished), ``resume`` (a checkpoint that no training goes on from), ``temporary``,
            ``invalidated`` (set aside), ``snapshot`` and ``state`` (not kept by the policy), ``tokens``, ``requests``;
            in an object store also ``upload`` and ``weights`` (that were not finished, or not removed to the end).
        home: the cell's or trajectory's folder whose lease guards it; None for what no lease guards.
        cell: of a snapshot, the one that it was kept for.
    """

    kind: str
    path: Path
    size_bytes: int
    home: Path | None = None
    cell: CellPlan | None = None


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
    as_json: Json = False,
) -> None:
    """Remove what the ledger can do without: leftovers of attempts, invalidated results, snapshots beyond policy."""
    plan, ledger = read_plan(file, overlay)
    garbage = collect(plan, ledger, caches)
    if not dry_run:
        garbage = remove(garbage, ledger)
    if as_json:
        listed = [{"kind": item.kind, "path": str(item.path), "bytes": item.size_bytes} for item in garbage.waste]
        print_json(
            {"schema": 1, "removed": not dry_run, "bytes": garbage.size_bytes, "waste": listed, "kept": garbage.kept}
        )
    else:
        console().print(gc_view(garbage, ledger, dry_run), soft_wrap=True)


def collect(plan: Plan, ledger: Ledger, caches: bool = False) -> Collected:
    """Find what can go: leftovers anywhere in the ledger, snapshots and states of the plan's runs, ``caches`` of it."""
    watch = LeaseWatch()
    waste: list[Garbage] = []
    kept: list[str] = []
    for home in ledger.cell_and_trajectory_dirs():
        own = list(_leftovers(ledger, home))
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
    for item in (item for run in plan.runs for item in _unkept_states(run, ledger)):
        others = sweeps_keeping_state(ledger.sweeps, item.home.name, plan.sweep.file.name) if item.home else []
        if others:
            kept.append(f"{item.path}: sweep {', '.join(others)} keeps it (storage.keep_state)")
        elif item.home and _free(ledger, item.home, watch):
            waste.append(item)
        else:
            kept.append(f"{item.path}: somebody works on {item.home}")
    shared = (path for name in ("cache", "index", "records", "sweeps") for path in walk(ledger.root / name))
    waste += _temporary(ledger, shared)
    waste += _temporary(ledger, ledger.root.glob(".*"))
    if caches:
        busy = next((home for home in ledger.cell_and_trajectory_dirs() if not _free(ledger, home, watch)), None)
        waste += _unused(plan, ledger) if busy is None else ()
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


def unkept_snapshots(run: RunPlan, plan: Plan, ledger: Ledger) -> Iterator[Garbage]:
    """Yield a run's snapshots that the retention policy does not keep and whose cells lack nothing."""
    policy = plan.sweep.file.storage.keep_snapshots
    home = ledger.trajectory_dir(run.trajectory.id)
    for cell in run.cells:
        epoch = cell.cell.epoch
        path = snapshot_folder(ledger, run.trajectory.id, epoch)
        if not is_kept(run, epoch, policy) and path.is_dir() and _is_settled(cell, ledger):
            yield Garbage("snapshot", path, _size(ledger, path), home, cell)


def _unkept_states(run: RunPlan, ledger: Ledger) -> Iterator[Garbage]:
    """Yield the state that a run's training could go on from, where the plan keeps none and has all of it."""
    home = ledger.trajectory_dir(run.trajectory.id)
    is_needed = run.keeps_state or not all(cell.is_done for cell in run.cells)
    if not is_needed and _is_there(ledger, home / KEPT):
        yield Garbage("state", home / KEPT, _size(ledger, home / KEPT), home)


def _is_settled(cell: CellPlan, ledger: Ledger) -> bool:
    """Whether a cell lacks nothing, neither of what this sweep asks nor of what the runs that go on do."""
    record = ledger.read_record(cell.cell.id)
    if record is None or cell.with_record(record).status not in (Status.COMPLETE, Status.DIVERGED):
        return False
    return not is_still_required(ledger.sweeps, record.cell, record.answers)


def _remove(item: Garbage, ledger: Ledger) -> bool:
    """Remove one item; return False when it is gone already, or is needed after all."""
    if not _is_there(ledger, item.path):
        return False
    if item.cell is not None and item.home is not None:
        lease = ledger.lease_cell(item.cell.cell.id, OWNER)
        if lease is None:
            return False
        with lease:
            if not _is_settled(item.cell, ledger):
                return False
            remove_snapshot(ledger, item.home.name, item.cell.cell.epoch)
        return True
    if item.kind == "resume" and item.home is not None and item.path not in _unneeded_checkpoints(ledger, item.home):
        return False  # a training was interrupted there meanwhile
    key = _key(ledger, item.path)
    if item.kind == "attempt" and item.home is not None:
        remove_leftover(_place(ledger, item.home), _below(item.path, item.home))
    elif item.kind in ("upload", "weights") and item.home is not None:
        if item.path not in [found.path for found in _uploads(ledger, item.home)]:  # it was published meanwhile
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


def _leftovers(ledger: Ledger, home: Path) -> Iterator[Garbage]:
    """Yield what attempts wrote and did not publish, checkpoints that nothing needs, half-removed snapshots, what was
    invalidated, and old temporary files."""
    if home.parent.name == "trajectories":
        place = _place(ledger, home)
        for path in map(place.local, find_leftovers(place)):
            yield Garbage("attempt", path, _size(ledger, path), home)
        yield from _uploads(ledger, home)
        for path in _unneeded_checkpoints(ledger, home):
            yield Garbage("resume", path, _size(ledger, path), home)
    for path in (home / "snapshots").glob(".*"):
        if _REMOVED.fullmatch(path.name):
            yield Garbage("temporary", path, _size(ledger, path), home)
    aside = home / ASIDE
    if _is_there(ledger, aside):
        yield Garbage("invalidated", aside, _size(ledger, aside), home)
    apart = [home / "attempts", home / RESUME, aside]
    below = (path for path in walk(home) if not any(path.is_relative_to(folder) for folder in apart))
    yield from _temporary(ledger, below, home)


def _unneeded_checkpoints(ledger: Ledger, home: Path) -> list[Path]:
    """Return what below a trajectory no training goes on from."""
    place = _place(ledger, home)
    is_spent = _is_there(ledger, home / RESUME) and has_spent_checkpoint(place)
    return [place.local(key) for key in ([RESUME] if is_spent else find_stale_checkpoints(place))]


def _uploads(ledger: Ledger, home: Path) -> Iterator[Garbage]:
    """Yield what of a trajectory was uploaded to a root in an object store, and nothing there names."""
    place, weights = _place(ledger, home), ledger.storage.at(f"{IN_ROOT}/{home.name}")
    for path in map(place.local, place.leftovers()):
        yield Garbage("upload", path, _size(ledger, path), home)
    keys = [f"{epoch.name}/{upload.name}" for epoch in weights.list() for upload in weights.list(epoch.name)]
    named = {str(stored.place) for stored in published_folders(place)} if keys else set()
    for key in keys:
        if str(weights.at(key)) not in named:
            yield Garbage("weights", weights.local(key), _size(ledger, weights.local(key)), home)


def _temporary(ledger: Ledger, paths: Iterable[Path], home: Path | None = None) -> Iterator[Garbage]:
    for path in paths:
        if _TEMPORARY.fullmatch(path.name):
            with suppress(FileNotFoundError):  # it was written to its end, or its process removed it
                if time.time() - path.lstat().st_mtime > STALE_S:
                    yield Garbage("temporary", path, _size(ledger, path), home)


def _unused(plan: Plan, ledger: Ledger) -> Iterator[Garbage]:
    """Yield cached tokens and requests that no cell of the plan uses; other sweeps would build theirs again.

    Requests are told apart by benchmark, shots and limit: lm-eval alone could tell more.
    """
    keys = {token_key(run.trajectory.recipe) for run in plan.runs}
    for path in sorted(ledger.cache_dir("tokens").glob("[!.]*")):
        if path.name.partition(".")[0] not in keys:
            yield Garbage("tokens", path, _size(ledger, path))
    asked = (item for cell in plan.cells for item in cell.requirements if item.is_benchmark)
    used = [list(about) for about in {(item.label, item.shots, item.limit) for item in asked}]
    for path in sorted(ledger.cache_dir("requests").glob("[!.]*")):
        try:
            manifest = read_json(path / "manifest.json")
            told = [manifest[key] for key in ("label", "shots", "limit")]
        except (FileNotFoundError, NotADirectoryError, Corrupt, KeyError, TypeError):
            told = []  # damaged: whoever needs it builds it again
        if told not in used:
            yield Garbage("requests", path, _size(ledger, path))


def _size(ledger: Ledger, path: Path) -> int:
    """Return the bytes of a file or folder, with those of snapshots in it that lie in object stores."""
    own = ledger.storage.size_bytes(_key(ledger, path))
    here = Folder(path).size_bytes("") if not own and path.exists() else 0  # what was never published
    return own + here + stored_bytes(path)


def _is_there(ledger: Ledger, path: Path) -> bool:
    return path.exists() or bool(ledger.storage.list(_key(ledger, path)))


def _place(ledger: Ledger, home: Path) -> Root:
    return ledger.storage.at(_key(ledger, home))


def _key(ledger: Ledger, path: Path) -> str:
    return _below(path, ledger.root)


def _below(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


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
