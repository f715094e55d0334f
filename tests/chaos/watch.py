"""Who is where: the phases that a sweep's files show, and whose process is in them."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from processes import Process, started, titled

from chaos.sweep import NAME, SEARCH, TASKS
from chaos.view import View
from massive_sft.core.checksummed_json import unseal
from massive_sft.ledger.attempt import LATEST, RESUME
from massive_sft.tracking.run_fields import CELL, RECORD

# Phases. Each yields the ids (of trajectories or cells) that are in it now.


def _trajectories(view: View) -> Iterator[str]:
    """Yield each trajectory whose newest attempt is in training; its folder is on each machine that knows of it."""
    trained, attempts = _trained(view), defaultdict[str, list[Path]](list)
    for path in view.local("trajectories/*/attempts/*"):
        if path.name.isdigit() and path.parts[-3] not in trained:
            attempts[path.parts[-3]].append(path)
    for where, paths in attempts.items():
        newest = max(int(path.name) for path in paths)
        if any((path / "losses.jsonl").exists() for path in paths if int(path.name) == newest):
            yield where


def _trained(view: View) -> list[str]:
    return sorted({name.split("/")[1] for name in view.names("trajectories/*/training/attempt-*/*")})


def _latest(view: View, where: str) -> str | None:
    """Return the name of a trajectory's checkpoint."""
    with contextlib.suppress(FileNotFoundError, ValueError):  # there is none, or it is replaced right now
        return str(json.loads(view.read(f"trajectories/{where}/{RESUME}/{LATEST}"))["name"])
    return None


def before_checkpoint(view: View) -> Iterator[str]:
    yield from (where for where in _trajectories(view) if _latest(view, where) is None)


def after_checkpoint(view: View) -> Iterator[str]:
    yield from (where for where in _trajectories(view) if _latest(view, where) is not None)


def saving(view: View) -> Iterator[str]:
    """What a writer that was killed left there is none."""
    for where in _trajectories(view):
        states = [path for path in view.local(f"trajectories/{where}/{RESUME}/*/state") if path.is_dir()]
        latest = _latest(view, where) if states else None
        unfinished = [path for path in states if path.parent.name != latest]
        worker = trainer(where) if unfinished else None
        began = None if worker is None else started(worker.pid)
        if began is not None and any(_modified(state) > began for state in unfinished):
            yield where


def _modified(path: Path) -> float:
    """Return when a folder was changed last, in the kernel's ticks like ``started``; 0 for one that is gone."""
    try:
        age = time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
    return (time.clock_gettime(time.CLOCK_BOOTTIME) - age) * os.sysconf("SC_CLK_TCK")


def publishing(view: View) -> Iterator[str]:
    """What a worker that was killed has published is not this one's doing."""
    for where in _trajectories(view):
        places = {path.parent for path in view.local(f"trajectories/{where}/snapshots/epoch-*")}
        worker = lone_worker() if places else None
        began = None if worker is None else started(worker.pid)
        if began is not None and any(_modified(place) > began for place in places):
            yield where


def records_of(view: View, cell: str = "*") -> Iterator[str]:
    """Yield the keys of the records of a cell, or of all."""
    return view.names(f"records/*/{cell}.record-*.json")


def _finishing(view: View) -> Iterator[str]:
    """Yield each cell that somebody works on and that has no record."""
    for cell in sorted({name.split("/")[1] for name in view.names("cells/*/lease/*")}):
        if not any(records_of(view, cell)):
            seen = view.lease(f"cells/{cell}/lease")
            if seen is not None and not seen.released:
                yield cell


def _scores(view: View, cell: str) -> int:
    return len(list(view.names(f"cells/{cell}/scores/*.json")))


def scoring(view: View) -> Iterator[str]:
    """Some shards of a cell are answered, but not all are scored."""
    for cell in _finishing(view):
        if any(view.names(f"cells/{cell}/responses/*/*/*.gz")) and _scores(view, cell) < len(TASKS):
            yield cell


def measuring(view: View) -> Iterator[str]:
    for cell in _finishing(view):
        if _scores(view, cell) == len(TASKS) and not any(view.names(f"records/*/.{cell}.record-*.tmp")):
            yield cell


def recording(view: View) -> Iterator[str]:
    for cell in _finishing(view):
        if any(view.names(f"records/*/.{cell}.record-*.tmp")):
            yield cell


def mirroring(view: View) -> Iterator[str]:
    """A cell has its record, which the tracker does not show yet."""
    recorded = {name.rpartition("/")[2].partition(".")[0] for name in records_of(view)}
    yield from recorded - set(mirrored(view.tracked))


def decisions_of(view: View) -> dict[str, bytes]:
    """Return what the searches of a root are and have decided, to the byte, by key."""
    patterns = ("searches/*/search.json", "searches/*/decisions/*.json")
    return {name: view.read(name) for pattern in patterns for name in view.names(pattern)}


def deciding(view: View) -> Iterator[str]:
    """What a search decided last has its record, and it is to decide more."""
    for search in sorted({name.split("/")[1] for name in view.names("searches/*/decisions/*.json")}):
        decisions = sorted(view.names(f"searches/{search}/decisions/*.json"))
        if 0 < len(decisions) < SEARCH["trials"]:
            cell = json.loads(unseal(view.read(decisions[-1]), decisions[-1]))["cell"]
            if any(records_of(view, cell)):
                yield search


def mirrored(database: Path) -> dict[str, str]:
    """Return the checksum of the record that each cell's run shows, by cell."""
    query = (
        "select a.value, b.value from tags a join tags b on a.run_uuid = b.run_uuid"
        f" where a.key = '{CELL}' and b.key = '{RECORD}'"
    )
    try:
        with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=0.2)) as connection:
            return dict(connection.execute(query))
    except sqlite3.Error:
        return {}  # it is being made, or written right now


PHASES: dict[str, Callable[[View], Iterator[str]]] = {
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


def owner(view: View, phase: str, where: str) -> int | None:
    """Return the process that holds the lease on what is in a phase."""
    if phase == "mirroring":
        home = f"sweeps/{NAME}/mirror-lease"
    elif phase == "deciding":
        home = f"searches/{where}/lease"
    elif PHASES[phase] in (scoring, measuring, recording):
        home = f"cells/{where}/lease"
    else:
        home = f"trajectories/{where}/lease"
    seen = view.lease(home)
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


def state_of(view: View) -> dict[str, Any]:
    """Return what changes while a sweep goes on: for noticing that it does not, and for saying where it stands."""
    begun = {name.split("/")[1] for name in view.names(f"trajectories/*/{RESUME}/{LATEST}")}
    return {
        "checkpoints": {where: _latest(view, where) for where in sorted(begun)},
        "trained": _trained(view),
        "attempts": len({path.parts[-3:] for path in view.local("trajectories/*/attempts/*")}),
        "shards": len(list(view.names("cells/*/responses/*/*/*.gz"))),
        "decisions": sorted(decisions_of(view)),
        "records": sorted(records_of(view)),
    }
