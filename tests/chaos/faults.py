"""The faults: what is done to whom in which phase, and whether it struck."""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from processes import started, titled

from chaos import watch
from chaos.stage import Stage

STOPPED = 6.0  # seconds that what is stopped stands still
AWAY = 3.0  # seconds without a tracker or a node


@dataclass(frozen=True)
class Fault:
    """A kind of fault, aimed at a phase."""

    kind: str
    phase: str

    def __str__(self) -> str:
        return f"{self.kind}, {self.phase}"


def draw(random_: random.Random, aims: Mapping[str, tuple[str, ...]], rounds: int) -> list[Fault]:
    """Return the faults to strike with: one of each kind, or all of them so many times (``rounds`` > 0), shuffled."""
    every = [Fault(kind, phase) for kind, phases in aims.items() for phase in phases]
    chosen = every * rounds or [Fault(kind, random_.choice(phases)) for kind, phases in aims.items()]
    return random_.sample(chosen, len(chosen))


def hits_training(fault: Fault) -> bool:
    """Whether a fault costs a training its workers: again and again without a step in between, it would be given up."""
    workers = ("a worker", "the second worker", "a lane", "a raylet", "a node", "a trial")
    return fault.kind in {f"kill {one}" for one in workers} and fault.phase != "scoring"


def hits_scoring(fault: Fault) -> bool:
    """Whether a fault costs a cell its scorer: a cell that kills one after another would be given up."""
    return fault.kind == "kill a scorer"


def ends_run(fault: Fault) -> bool:
    """Whether a fault has the run end by itself, with the request to give the same command again."""
    return fault.kind in ("kill the lane pool", "kill the cell queue")


def strike(fault: Fault, stage: Stage, spared: Collection[str]) -> str | None:
    """Strike if somebody is in the fault's phase right now; return who was struck, None when nobody was.

    Whoever works on what is ``spared`` is left alone.

    Who is in the phase by itself is stopped first and looked at again, so that a kill surely hits the phase.
    """
    for where in watch.PHASES[fault.phase](stage.view):
        targets = [] if where in spared else TARGETS[fault.kind](stage, fault.phase, where)
        if not targets:
            continue
        _signal(targets, signal.SIGSTOP)
        stage.view.refresh()
        if where in watch.PHASES[fault.phase](stage.view):
            _act(fault, stage, targets)
            return f"{where} (process {', '.join(map(str, targets))})"
        _signal(targets, signal.SIGCONT)
    return None


# Whom a fault of each kind hits while something is in a phase: the processes; nobody when it is not clear who.


def _owner(stage: Stage, phase: str, where: str) -> list[int]:
    owner = watch.owner(stage.view, phase, where)
    return [] if owner is None else [owner]


def _worker(stage: Stage, phase: str, where: str) -> list[int]:
    worker = watch.lone_worker() if phase == "publishing" else watch.trainer(where)
    return [] if worker is None else [worker.pid]


def _second_worker(stage: Stage, phase: str, where: str) -> list[int]:
    """Return a worker of the lane that trains it which is not the first."""
    lane, first = _lane(stage, phase, where), _worker(stage, phase, where)
    return [pid for pid in lane if pid not in first][:1]


def _lane(stage: Stage, phase: str, where: str) -> list[int]:
    """Return the workers of the lane that trains it."""
    worker = watch.trainer(where)
    return [] if worker is None else stage.lane_of(worker.pid)


def _driver(stage: Stage, phase: str, where: str) -> list[int]:
    """Return the driver if who is in the phase works for it, and is not left of a driver that was killed before."""
    owner, driver = watch.owner(stage.view, phase, where), stage.driver_pid
    began, since = (None if pid is None else started(pid) for pid in (owner, driver))
    return [] if driver is None or began is None or since is None or began < since else [driver]


def _tracker(stage: Stage, phase: str, where: str) -> list[int]:
    return [] if stage.tracker_pid is None else [stage.tracker_pid]


def _node(stage: Stage, phase: str, where: str) -> list[int]:
    """Return all processes of the node where somebody trains or scores ``where``, its raylet first: the machine."""
    found = (_owner if phase == "scoring" else _worker)(stage, phase, where)
    return [pid for worker in found for pid in stage.node_of(worker)]


def _raylet(stage: Stage, phase: str, where: str) -> list[int]:
    return _node(stage, phase, where)[:1]


def _reader(stage: Stage, phase: str, where: str) -> list[int]:
    """Return what takes cells for a group of scorers, whichever: a task of Ray Data's."""
    return [process.pid for process in titled("ray::ReadCellSource")][:1]


def _actor(name: str) -> Callable[[Stage, str, str], list[int]]:
    """Return what finds the run's actor of this class, of which there is one."""
    return lambda stage, phase, where: stage.actors_of(name)


TARGETS: dict[str, Callable[[Stage, str, str], list[int]]] = {
    "kill a worker": _worker,
    "kill the second worker": _second_worker,
    "kill a lane": _lane,
    "kill a trial": _owner,
    "kill the lane pool": _actor("LanePool"),
    "kill the cell queue": _actor("CellQueue"),
    "kill a scorer": _owner,
    "kill a reader": _reader,
    "kill a raylet": _raylet,
    "kill a node": _node,
    "kill the driver": _driver,
    "kill who decides": _driver,
    "kill the tracker": _tracker,
    "stop a lease holder": _owner,
    "stop a worker": _worker,
    "stop a node": _node,
}


def _act(fault: Fault, stage: Stage, targets: list[int]) -> None:
    if fault.kind.startswith("stop "):
        stage.later(STOPPED, lambda: _signal(targets, signal.SIGCONT))
    elif fault.kind == "kill the tracker":
        stage.kill_tracker()
        stage.later(AWAY, stage.start_tracker)
    else:
        _signal(targets, signal.SIGKILL)
        if fault.kind in ("kill a raylet", "kill a node"):
            stage.later(AWAY, lambda: stage.replace_node(targets[0]))


def _signal(targets: Collection[int], what: signal.Signals) -> None:
    for pid in targets:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, what)
