"""The end of a run on Ray: its threads end before Ray is left, what has work in hand by itself, all else by force."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayError

from massive_sft.scheduling.claims import Claims
from massive_sft.scheduling.cluster import hush, kill_actors
from massive_sft.scheduling.lanes import Lanes, join
from massive_sft.scheduling.scorers import ScorerGroups

SETTLE_S = 5.0  # seconds that Tune and Data may take to end once nothing is in hand any more
LEAVE_S = 30.0  # the same, for the workers of lanes, and for threads whose actors are killed
AGAIN_S = 0.5  # between two rounds of killing


def leave(
    threads: Mapping[str, threading.Thread],
    pools: tuple[Any, Any],
    relay: Any,
    relay_up: Any,
    lanes: Lanes,
    scorers: ScorerGroups,
    claims: Claims,
) -> None:
    """End the threads, however the run went: one that still uses Ray when it is left takes the process with it.

    Those of what only starts are not waited for: it has nothing in hand, and on a busy machine a process that imports
    takes longer than all else. It is killed.

    Args:
        threads: of the run, by name, those that began.
        pools: handles of the ``LanePool`` and the ``CellQueue``.
        relay, relay_up: handle of the ``Relay``, and a reference that is ready once its process is up.
        lanes, scorers, claims: what else of Ray the run has.
    """
    with suppress(RayError):  # what is lost, a pool or all of the cluster, must not hide why the run ends
        claims.withdraw()
        pool, queue = ray.get([each.state.remote() for each in pools], timeout=SETTLE_S)
        ending = ("serve",) if pool["late"] else ("serve", "tune")
        own = [threads[name] for name in ending if name in threads]
        join([*own, *scorers.threads(scorers.ready(queue))], SETTLE_S)
        join(lanes.threads(pool["ready"]), LEAVE_S)
    with suppress(RayError):
        if ray.wait([relay_up], timeout=0)[0]:
            ray.get(relay.close.remote(), timeout=SETTLE_S)
            join([threads["hear"]], SETTLE_S)
    busy = [thread for name, thread in threads.items() if name != "retain"]
    busy += [*scorers.threads(), *scorers.left_behind, *lanes.threads(lanes.holders())]
    _end_by_force(busy, lanes)
    threads["retain"].join()  # what is half removed would only be in the way; it uses no Ray


def _end_by_force(threads: Sequence[threading.Thread], lanes: Lanes) -> None:
    """Kill what is left in Ray, until the threads end: one that starts things may start another of them meanwhile."""
    until_s = time.monotonic() + LEAVE_S
    if any(thread.is_alive() for thread in threads):
        hush()
    while True:
        with suppress(RayError):
            lanes.give_up()
            kill_actors()
        if not any(thread.is_alive() for thread in threads) or time.monotonic() > until_s:
            return
        join(threads, AGAIN_S)
