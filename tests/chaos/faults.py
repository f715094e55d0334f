"""The faults: what is done to whom in which phase, and whether it struck."""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections.abc import Collection
from dataclasses import dataclass

from processes import descendants, started, titled

from chaos import watch
from chaos.stage import Stage

# By the kind of fault, the phases it may aim at.
AIMS = {
    "kill a worker": ("before a checkpoint", "after a checkpoint", "saving a checkpoint", "publishing"),
    "kill a lane": ("after a checkpoint", "saving a checkpoint"),
    "kill a scorer": ("scoring", "measuring", "recording"),
    "kill a raylet": ("after a checkpoint", "scoring"),
    "kill the driver": ("after a checkpoint", "saving a checkpoint", "scoring", "measuring", "mirroring"),
    "kill the tracker": ("mirroring",),
    "stop a lease holder": ("after a checkpoint", "scoring", "mirroring"),
}
STOPPED = 6.0  # seconds that a lease holder stands still
AWAY = 3.0  # seconds without a tracker or a node


@dataclass(frozen=True)
class Fault:
    """A kind of fault, aimed at a phase."""

    kind: str
    phase: str

    def __str__(self) -> str:
        return f"{self.kind}, {self.phase}"


ALL = [Fault(kind, phase) for kind, phases in AIMS.items() for phase in phases]


def draw(random_: random.Random, rounds: int) -> list[Fault]:
    """Return the faults to strike with: one of each kind, or all of them so many times (``rounds`` > 0), shuffled."""
    chosen = ALL * rounds or [Fault(kind, random_.choice(phases)) for kind, phases in AIMS.items()]
    return random_.sample(chosen, len(chosen))


def hits_training(fault: Fault) -> bool:
    """Whether a fault costs a training its workers: again and again without a step in between, it would be given up."""
    return fault.kind in ("kill a worker", "kill a lane", "kill a raylet") and fault.phase != "scoring"


def strike(fault: Fault, stage: Stage, spared: Collection[str]) -> str | None:
    """Strike if somebody is in the fault's phase right now; return who was struck, None when nobody was.

    Whoever works on what is ``spared`` is left alone.

    Who is in the phase by itself is stopped first and looked at again, so that a kill surely hits the phase.
    """
    for where in watch.PHASES[fault.phase](stage.root):
        pid = None if where in spared else _target(fault, stage, where)
        if pid is None:
            continue
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            if where in watch.PHASES[fault.phase](stage.root):
                _act(fault, stage, pid)
                return f"{where} (process {pid})"
            os.kill(pid, signal.SIGCONT)
    return None


def _target(fault: Fault, stage: Stage, where: str) -> int | None:
    """Return the process that the fault hits while ``where`` is in its phase."""
    if fault.kind == "kill the driver":
        return _driver(fault, stage, where)
    if fault.kind == "kill the tracker":
        return stage.tracker_pid
    if fault.kind == "kill a lane":  # one that trains: lanes that die while they start, again and again, are given up
        lanes = titled("ray::TrainController") if watch.trainer(where) else []
        return lanes[0].pid if len(lanes) == 1 else None
    if fault.kind in ("kill a scorer", "stop a lease holder"):
        return watch.owner(stage.root, fault.phase, where)
    if fault.kind == "kill a raylet":
        return _raylet(fault, stage, where)
    worker = watch.lone_worker() if fault.phase == "publishing" else watch.trainer(where)
    return None if worker is None else worker.pid


def _driver(fault: Fault, stage: Stage, where: str) -> int | None:
    """Return the driver if who is in the phase works for it, and is not left of a driver that was killed before."""
    owner, driver = watch.owner(stage.root, fault.phase, where), stage.driver_pid
    began, since = (None if pid is None else started(pid) for pid in (owner, driver))
    return None if began is None or since is None or began < since else driver


def _raylet(fault: Fault, stage: Stage, where: str) -> int | None:
    """Return the raylet of the node where somebody trains or scores ``where``."""
    if fault.phase == "scoring":
        pid = watch.owner(stage.root, fault.phase, where)
    else:
        worker = watch.trainer(where)
        pid = None if worker is None else worker.pid
    parents = {process.pid: process.parent for process in descendants()}
    raylet = None if pid is None else parents.get(pid)
    return raylet if raylet in stage.raylet_pids else None


def _act(fault: Fault, stage: Stage, pid: int) -> None:
    if fault.kind == "stop a lease holder":
        stage.later(STOPPED, lambda: _go_on(pid))
        return
    if fault.kind == "kill the tracker":
        stage.kill_tracker()
        stage.later(AWAY, stage.start_tracker)
        return
    os.kill(pid, signal.SIGKILL)
    if fault.kind == "kill a raylet":
        stage.later(AWAY, lambda: stage.replace_node(pid))


def _go_on(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
