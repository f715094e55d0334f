"""Roles: who trains and who scores, decided again and again while a run goes on, and carried out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

import ray

from massive_sft.scheduling.allocation import Allocator
from massive_sft.scheduling.cluster_state import Cells, Decision, Orders, Situation
from massive_sft.scheduling.demand import Demand
from massive_sft.scheduling.lanes import Lanes
from massive_sft.scheduling.live_nodes import live_nodes
from massive_sft.scheduling.nodes import Node, Room, Shape
from massive_sft.scheduling.scorers import ScorerGroups

POLL_S = 0.2  # seconds between decisions

State = Mapping[str, Any]  # of a pool


class Roles:
    """Starts and ends lanes and scorers as an ``Allocator`` decides.

    Args:
        pool, queue: handles of the ``LanePool`` and the ``CellQueue``.
        demand: what the work asks for, and its estimates.
        lanes, groups: what is started and ended.
        lack: called at each decision with what has no room, by shape, and the ids of the nodes that there are.

    Attributes:
        trials: that there should be at a time.
    """

    def __init__(
        self,
        pool: Any,
        queue: Any,
        demand: Demand,
        lanes: Lanes,
        groups: ScorerGroups,
        lack: Callable[[Mapping[Shape, int], Collection[str]], None],
    ):
        self.trials = 1
        self._pool, self._queue, self._demand = pool, queue, demand
        self._lanes, self._groups, self._lack = lanes, groups, lack
        self._allocator = Allocator(demand.rules)
        self._means = _mean_seconds(demand)
        self._began_s = time.monotonic()
        self._stop = threading.Event()

    def stop(self) -> None:
        """Start nothing more."""
        self._stop.set()

    def serve(self) -> None:
        """Return when nothing is left to train or to score and all have ended; after ``stop`` once no lane trains."""
        while True:
            pool, queue = self._states()
            nodes, draining = live_nodes()
            empty, alive = Room(nodes), [*(node.id for node in nodes), *draining]
            places = [node.id for node in nodes if empty.fits(self._demand.rules.scorer, node.id)]
            self._lanes.reap(pool, alive)
            self._groups.reap(queue, alive, places)
            self._groups.drain(draining)
            pool, queue = self._states()  # what lost ones had is queued again
            if self._stop.is_set():
                if not pool["held"]:
                    return
            elif _is_over(pool, queue) and not (self._lanes.holders() or self._groups.threads()):
                return
            else:
                decision = self._allocator.decide(self._situation(nodes, pool, queue))
                self._carry_out(decision)
                self._lack(decision.lacking, alive)
            time.sleep(POLL_S)

    def _states(self) -> tuple[State, State]:
        # Without a limit: the watchdog ends a run whose queues do not answer, whose actors are killed then.
        pool, queue = ray.get([self._pool.state.remote(), self._queue.state.remote()])
        return pool, queue

    def _situation(self, nodes: tuple[Node, ...], pool: State, queue: State) -> Situation:
        orders = {
            shape: Orders(
                pool["queued"].get(shape, 0),
                max(0, pool["expected"].get(shape, 0)),
                *self._means.get(shape, (0.0, 0.0)),
                frozenset(pool["unfit"].get(shape, ())),
            )
            for shape in {*self._means, *pool["queued"], *pool["expected"]}
        }
        return Situation(
            elapsed_s=time.monotonic() - self._began_s,
            nodes=nodes,
            lanes=self._lanes.seen(pool, self._demand.training_s),
            groups=self._groups.seen(queue, self._demand.scoring_s),
            orders=orders,
            cells=Cells(
                queue["waiting"], queue["seconds"], queue["size_bytes"], not queue["closed"], self._groups.unfit
            ),
            grows=pool["grows"],
        )

    def _carry_out(self, decision: Decision) -> None:
        self.trials = decision.trials
        ray.get(self._pool.hold.remote(decision.hold_orders))
        self._lanes.leave(decision.end_lanes)
        self._groups.leave(decision.end_groups)
        for shape, nodes in decision.start_lanes:
            self._lanes.start(shape, nodes)
        for node, size in decision.start_groups:
            self._groups.start(node, size)


def _is_over(pool: State, queue: State) -> bool:
    waits = any(count > 0 for count in (*pool["expected"].values(), *pool["queued"].values()))
    return queue["closed"] and not (waits or pool["held"] or queue["waiting"] or queue["out"])


def _mean_seconds(demand: Demand) -> dict[Shape, tuple[float, float]]:
    """Return the mean seconds of a training of each shape, and of its cells together."""
    means = {}
    for shape in set(demand.shapes.values()):
        ours = [trajectory for trajectory, of in demand.shapes.items() if of == shape]
        training_s = sum(demand.training_s[trajectory] for trajectory in ours)
        cells_s = sum(demand.cells_s[trajectory] for trajectory in ours)
        means[shape] = training_s / len(ours), cells_s / len(ours)
    return means
