"""Who is where: the phases that a sweep's files show, and whose process is in them."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from processes import Process, started, titled

from chaos.sweep import NAME, SEARCH, TASKS
from massive_sft.core.checksummed_json import read_sealed
from massive_sft.core.files import read_json
from massive_sft.ledger.attempt import LATEST, RESUME, find_stale_checkpoints
from massive_sft.ledger.lease import read_lease
from massive_sft.ledger.storage import Folder
from massive_sft.tracking.run_fields import CELL, RECORD

# Phases. Each yields the ids (of trajectories or cells) that are in it now.


def _trajectories(root: Path) -> Iterator[tuple[Path, Path]]:
    """Yield each trajectory in training and its newest attempt's folder."""
    for home in (root / "trajectories").glob("*"):
        attempts = [path for path in (home / "attempts").glob("*") if path.name.isdigit()]
        if attempts and not any((home / "training").glob("attempt-*")):
            yield home, max(attempts, key=lambda path: int(path.name))


def before_checkpoint(root: Path) -> Iterator[str]:
    for home, attempt in _trajectories(root):
        if (attempt / "losses.jsonl").exists() and not (home / RESUME / LATEST).exists():
            yield home.name


def after_checkpoint(root: Path) -> Iterator[str]:
    for home, attempt in _trajectories(root):
        if (home / RESUME / LATEST).exists() and (attempt / "losses.jsonl").exists():
            yield home.name


def saving(root: Path) -> Iterator[str]:
    """What a writer that was killed left there is none."""
    for home, _ in _trajectories(root):
        stale = (home / place / "state" for place in find_stale_checkpoints(Folder(home)))
        states = [folder for folder in stale if folder.is_dir()]
        worker = trainer(home.name) if states else None
        began = None if worker is None else started(worker.pid)
        if began is not None and any(_modified(state) > began for state in states):
            yield home.name


def _modified(path: Path) -> float:
    """Return when a folder was changed last, in the kernel's ticks like ``started``; 0 for one that is gone."""
    try:
        age = time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
    return (time.clock_gettime(time.CLOCK_BOOTTIME) - age) * os.sysconf("SC_CLK_TCK")


def publishing(root: Path) -> Iterator[str]:
    """What a worker that was killed has published is not this one's doing."""
    for home, _ in _trajectories(root):
        worker = lone_worker() if any((home / "snapshots").glob("epoch-*")) else None
        began = None if worker is None else started(worker.pid)
        if began is not None and _modified(home / "snapshots") > began:
            yield home.name


def records_of(root: Path, cell: str = "*") -> Iterator[Path]:
    """Return the records of a cell, or of all."""
    return (root / "records").glob(f"*/{cell}.record-*.json")


def _finishing(root: Path) -> Iterator[Path]:
    """Yield each cell that somebody works on and that has no record."""
    for folder in (root / "cells").glob("*"):
        if not any(records_of(root, folder.name)):
            seen = read_lease(Folder(folder / "lease"))
            if seen is not None and not seen.released:
                yield folder


def scoring(root: Path) -> Iterator[str]:
    """Some shards of a cell are answered, but not all are scored."""
    for folder in _finishing(root):
        if any((folder / "responses").glob("*/*/*.gz")) and len(list((folder / "scores").glob("*.json"))) < len(TASKS):
            yield folder.name


def measuring(root: Path) -> Iterator[str]:
    for folder in _finishing(root):
        if len(list((folder / "scores").glob("*.json"))) == len(TASKS) and not any(
            (root / "records").glob(f"*/.{folder.name}.record-*.tmp")
        ):
            yield folder.name


def recording(root: Path) -> Iterator[str]:
    for folder in _finishing(root):
        if any((root / "records").glob(f"*/.{folder.name}.record-*.tmp")):
            yield folder.name


def mirroring(root: Path) -> Iterator[str]:
    """A cell has its record, which the tracker does not show yet."""
    recorded = {path.name.partition(".")[0] for path in records_of(root)}
    yield from recorded - set(mirrored(store_of(root)))


def decisions_of(root: Path) -> dict[str, bytes]:
    """Return what the searches of a root are and have decided, to the byte, by path."""
    folder = root / "searches"
    names = ("*/search.json", "*/decisions/*.json")
    return {str(path.relative_to(folder)): path.read_bytes() for name in names for path in folder.glob(name)}


def deciding(root: Path) -> Iterator[str]:
    """What a search decided last has its record, and it is to decide more."""
    for folder in (root / "searches").glob("*"):
        decisions = sorted((folder / "decisions").glob("*.json"))
        if 0 < len(decisions) < SEARCH["trials"]:
            cell = read_sealed(decisions[-1])["cell"]
            if any(records_of(root, cell)):
                yield folder.name


def store_of(root: Path) -> Path:
    """Return the database of the tracking server that a root is mirrored to."""
    return root.with_suffix(".db")


def mirrored(store: Path) -> dict[str, str]:
    """Return the checksum of the record that each cell's run shows, by cell."""
    query = (
        "select a.value, b.value from tags a join tags b on a.run_uuid = b.run_uuid"
        f" where a.key = '{CELL}' and b.key = '{RECORD}'"
    )
    try:
        with contextlib.closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True, timeout=0.2)) as connection:
            return dict(connection.execute(query))
    except sqlite3.Error:
        return {}  # it is being made, or written right now


PHASES: dict[str, Callable[[Path], Iterator[str]]] = {
    "before a checkpoint": before_checkpoint,
    "after a checkpoint": after_checkpoint,
    "saving a checkpoint": saving,
    "publishing": publishing,
    "scoring": scoring,
    "measuring": measuring,
    "recording": recording,
    "mirroring": mirroring,
    "deciding": deciding,
}


def owner(root: Path, phase: str, where: str) -> int | None:
    """Return the process that holds the lease on what is in a phase."""
    if phase == "mirroring":
        folder = root / "sweeps" / NAME / "mirror-lease"
    elif phase == "deciding":
        folder = root / "searches" / where / "lease"
    elif PHASES[phase] in (scoring, measuring, recording):
        folder = root / "cells" / where / "lease"
    else:
        folder = root / "trajectories" / where / "lease"
    seen = read_lease(Folder(folder))
    return None if seen is None or not seen.seems_live() else int(seen.owner["process"]["pid"])


def lone_worker() -> Process | None:
    """Return the lanes' worker if there is only one."""
    workers = titled("RayTrainWorker")
    return workers[0] if len(workers) == 1 else None


def trainer(where: str) -> Process | None:
    """Return the lane's worker that trains a trajectory: the one that has its loss curve open."""
    for process in titled("RayTrainWorker"):
        with contextlib.suppress(OSError):
            for entry in os.scandir(f"/proc/{process.pid}/fd"):
                with contextlib.suppress(OSError):
                    if f"/trajectories/{where}/" in os.readlink(entry.path):
                        return process
    return None


def state_of(root: Path) -> dict[str, Any]:
    """Return what changes while a sweep goes on: for noticing that it does not, and for saying where it stands."""
    latest = {}
    for path in (root / "trajectories").glob(f"*/{RESUME}/{LATEST}"):
        with contextlib.suppress(Exception):  # it is replaced or removed right now
            latest[path.parts[-3]] = read_json(path)["name"]
    return {
        "checkpoints": latest,
        "trained": sorted(path.parts[-3] for path in (root / "trajectories").glob("*/training/attempt-*")),
        "attempts": len(list((root / "trajectories").glob("*/attempts/*"))),
        "shards": len(list((root / "cells").glob("*/responses/*/*/*.gz"))),
        "decisions": sorted(decisions_of(root)),
        "records": sorted(path.name for path in records_of(root)),
    }
