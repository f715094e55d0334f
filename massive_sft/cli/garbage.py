"""What ``gc`` may remove, and where it lies: finding alone, nothing is touched."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from massive_sft.core.errors import Corrupt
from massive_sft.core.files import read_json, walk
from massive_sft.ledger.attempt import ASIDE, KEPT, RESUME, find_leftovers, find_stale_checkpoints, published_folders
from massive_sft.ledger.last_plan import sweeps_asking_for_training
from massive_sft.ledger.record import Status
from massive_sft.ledger.run_requirements import is_still_required
from massive_sft.ledger.snapshot_store import stored_bytes
from massive_sft.ledger.storage import Folder, Root
from massive_sft.ledger.store import Ledger
from massive_sft.planning.plan import CellPlan, Plan, RunPlan, token_key
from massive_sft.planning.retention import is_kept
from massive_sft.planning.snapshot_address import IN_ROOT
from massive_sft.running.outcome import has_spent_checkpoint, snapshot_folder

STALE_S = 3600.0  # seconds after which a temporary file is a leftover: a write takes far less
_TEMPORARY = re.compile(r"\..*\.(tmp|partial)|\.probe\..*")
_REMOVED = re.compile(r"\..*\.removed\..*")


@dataclass(frozen=True)
class Garbage:
    """A file or folder that can go.

    Attributes:
        kind: ``attempt`` (unpublished), ``resume`` (a checkpoint that no training goes on from), ``temporary``,
            ``unasked`` (a checkpoint of a training that no sweep here asks for), ``invalidated`` (set aside),
            ``snapshot`` and ``state`` (not kept by the policy), ``tokens``, ``requests``;
            in an object store also ``upload`` and ``weights`` (that were not finished, or not removed to the end).
        home: the cell's or trajectory's folder whose lease guards it; None for what no lease guards.
        cell: of a snapshot, the one that it was kept for.
    """

    kind: str
    path: Path
    size_bytes: int
    home: Path | None = None
    cell: CellPlan | None = None


def unkept_snapshots(run: RunPlan, plan: Plan, ledger: Ledger) -> Iterator[Garbage]:
    """Yield a run's snapshots that the retention policy does not keep and whose cells lack nothing."""
    policy = plan.sweep.file.storage.keep_snapshots
    home = ledger.trajectory_dir(run.trajectory.id)
    for cell in run.cells:
        epoch = cell.cell.epoch
        path = snapshot_folder(ledger, run.trajectory.id, epoch)
        if not is_kept(run, epoch, policy) and path.is_dir() and is_settled(cell, ledger):
            yield Garbage("snapshot", path, _size(ledger, path), home, cell)


def unkept_states(run: RunPlan, ledger: Ledger) -> Iterator[Garbage]:
    """Yield the state that a run's training could go on from, where the plan keeps none and has all of it."""
    home = ledger.trajectory_dir(run.trajectory.id)
    is_needed = run.keeps_state or not all(cell.is_done for cell in run.cells)
    if not is_needed and is_there(ledger, home / KEPT):
        yield Garbage("state", home / KEPT, _size(ledger, home / KEPT), home)


def unasked_checkpoints(plan: Plan, ledger: Ledger) -> Iterator[Garbage]:
    """Yield the checkpoints that count, of trainings that neither this plan nor the last run of any sweep asks for."""
    planned = {run.trajectory.id for run in plan.runs}
    for home in ledger.cell_and_trajectory_dirs():
        path = home / RESUME
        if home.parent.name == "trajectories" and home.name not in planned and is_unasked(ledger, path):
            yield Garbage("unasked", path, _size(ledger, path), home)


def is_unasked(ledger: Ledger, path: Path) -> bool:
    has_use = is_there(ledger, path) and path not in unneeded_checkpoints(ledger, path.parent)
    return has_use and not sweeps_asking_for_training(ledger.sweeps, path.parent.name)


def is_settled(cell: CellPlan, ledger: Ledger) -> bool:
    """Whether a cell lacks nothing, neither of what this sweep asks nor of what the runs that go on do."""
    record = ledger.read_record(cell.cell.id)
    if record is None or cell.with_record(record).status not in (Status.COMPLETE, Status.DIVERGED):
        return False
    return not is_still_required(ledger.sweeps, record.cell, record.answers)


def leftovers(ledger: Ledger, home: Path) -> Iterator[Garbage]:
    """Yield what attempts wrote and did not publish, checkpoints that nothing needs, half-removed snapshots, what was
    invalidated, and old temporary files."""
    if home.parent.name == "trajectories":
        place = place_of(ledger, home)
        for path in map(place.local, find_leftovers(place)):
            yield Garbage("attempt", path, _size(ledger, path), home)
        yield from uploads(ledger, home)
        for path in unneeded_checkpoints(ledger, home):
            yield Garbage("resume", path, _size(ledger, path), home)
    for path in (home / "snapshots").glob(".*"):
        if _REMOVED.fullmatch(path.name):
            yield Garbage("temporary", path, _size(ledger, path), home)
    aside = home / ASIDE
    if is_there(ledger, aside):
        yield Garbage("invalidated", aside, _size(ledger, aside), home)
    apart = [home / "attempts", home / RESUME, aside]
    below = (path for path in walk(home) if not any(path.is_relative_to(folder) for folder in apart))
    yield from temporary_files(ledger, below, home)


def unneeded_checkpoints(ledger: Ledger, home: Path) -> list[Path]:
    """Return what below a trajectory no training goes on from."""
    place = place_of(ledger, home)
    is_spent = is_there(ledger, home / RESUME) and has_spent_checkpoint(place)
    return [place.local(key) for key in ([RESUME] if is_spent else find_stale_checkpoints(place))]


def uploads(ledger: Ledger, home: Path) -> Iterator[Garbage]:
    """Yield what of a trajectory was uploaded to a root in an object store, and nothing there names."""
    place, weights = place_of(ledger, home), ledger.storage.at(f"{IN_ROOT}/{home.name}")
    for path in map(place.local, place.leftovers()):
        yield Garbage("upload", path, _size(ledger, path), home)
    keys = [f"{epoch.name}/{upload.name}" for epoch in weights.list() for upload in weights.list(epoch.name)]
    named = {str(stored.place) for stored in published_folders(place)} if keys else set()
    for key in keys:
        if str(weights.at(key)) not in named:
            yield Garbage("weights", weights.local(key), _size(ledger, weights.local(key)), home)


def temporary_files(ledger: Ledger, paths: Iterable[Path], home: Path | None = None) -> Iterator[Garbage]:
    for path in paths:
        if _TEMPORARY.fullmatch(path.name):
            with suppress(FileNotFoundError):  # it was written to its end, or its process removed it
                if time.time() - path.lstat().st_mtime > STALE_S:
                    yield Garbage("temporary", path, _size(ledger, path), home)


def unused_caches(plan: Plan, ledger: Ledger) -> Iterator[Garbage]:
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
    own = ledger.storage.size_bytes(key_of(ledger, path))
    here = Folder(path).size_bytes("") if not own and path.exists() else 0  # what was never published
    return own + here + stored_bytes(path)


def is_there(ledger: Ledger, path: Path) -> bool:
    return path.exists() or bool(ledger.storage.list(key_of(ledger, path)))


def place_of(ledger: Ledger, home: Path) -> Root:
    return ledger.storage.at(key_of(ledger, home))


def key_of(ledger: Ledger, path: Path) -> str:
    return below(path, ledger.root)


def below(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
