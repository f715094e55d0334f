"""Nodes that a run lacks, told to the cluster: an autoscaler adds some for placement groups that have no place."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping

from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

from massive_sft.core.stop import StopSignal
from massive_sft.scheduling.demand import Demand, NoRoom
from massive_sft.scheduling.live_nodes import KIND, NODE, usable_nodes
from massive_sft.scheduling.nodes import Node, Shape
from massive_sft.scheduling.watchdog import Stuck

MOST = 16  # claims at a time; as nodes come, others are made
WORKER_CPUS = 1.0  # that a worker without a GPU should have
KIND_AMOUNT = 0.001  # of a kind's resource, of which a node has 1
POLL_S = 1.0  # seconds between looks at the nodes, and between claims


class Claims:
    """Placement groups of a run that no node may hold which is there: what they ask for must be added.

    They hold nothing: one that a new node has taken is given back at once, for the run places its lanes itself. They
    end with this process, however it ends, and those of several runs add up, neither of which is so of
    ``ray.autoscaler.sdk.request_resources``.
    """

    def __init__(self) -> None:
        self._open: dict[Shape, list[PlacementGroup]] = {}
        self._asked_s = -math.inf

    def ask(self, wanted: Mapping[Shape, int], nodes: Collection[str]) -> None:
        """Claim room for so many lanes or scorers of each shape, and for no others; asked in between, it does nothing.

        Args:
            wanted: those that have no room.
            nodes: ids of the nodes that are there.
        """
        if wanted and time.monotonic() - self._asked_s < POLL_S:
            return
        self._asked_s, left = time.monotonic(), MOST
        for shape in sorted({*wanted, *self._open}, reverse=True):
            claims = [claim for claim in self._open.pop(shape, []) if not _is_met(claim)]
            count = min(left, wanted.get(shape, 0))
            left -= count
            for surplus in claims[count:]:
                remove_placement_group(surplus)
            if count:
                self._open[shape] = claims[:count] + [_claim(shape, nodes) for _ in range(count - len(claims))]

    def withdraw(self) -> None:
        """Claim nothing more."""
        self.ask({}, ())


def _claim(shape: Shape, nodes: Collection[str]) -> PlacementGroup:
    elsewhere = [{NODE: f"!in({','.join(sorted(nodes))})"}] * shape.workers if nodes else None
    return placement_group([worker_resources(shape)] * shape.workers, bundle_label_selector=elsewhere)


def _is_met(claim: PlacementGroup) -> bool:
    """Return whether nodes came for a claim, which is given back then."""
    is_met = placement_group_table(claim)["state"] == "CREATED"
    if is_met:
        remove_placement_group(claim)
    return is_met


def worker_resources(shape: Shape) -> dict[str, float]:
    """Return what a node that is still to come should have for a worker, as Ray names it."""
    cpus = shape.cpus if shape.gpus else max(WORKER_CPUS, shape.cpus)
    kind = {f"{KIND}{shape.kind}": KIND_AMOUNT} if shape.kind else {}
    return shape._replace(cpus=cpus).worker() | kind


def await_room(
    make_demand: Callable[[tuple[Node, ...]], Demand], wait_s: float, say: Callable[[str], None], stop: StopSignal
) -> Demand:
    """Return what is asked of the cluster, once its nodes could hold all of it.

    Args:
        make_demand: returns it for these nodes; raises NoRoom.
        wait_s: how long nodes may take to come; while they do, the cluster is asked for them.
        say: told what is lacking, whenever nodes come or go.
        stop: the wish that the run ends.

    Raises:
        NoRoom: nodes lack, and none are waited for.
        Stuck: nodes did not come in time.
        Interrupted: the run should end.
    """
    claims, until_s = Claims(), time.monotonic() + wait_s
    nodes, lacking = _demand_of(make_demand)
    try:
        while isinstance(lacking, NoRoom):
            if not wait_s:
                raise lacking
            say(f"waits for nodes, for {wait_s:.0f} s at most (cluster.wait): {lacking}")
            while set(usable_nodes()) == nodes:
                stop.check()
                if time.monotonic() >= until_s:
                    raise Stuck(f"no nodes came in {wait_s:.0f} s (cluster.wait): {lacking}")
                claims.ask(dict.fromkeys(lacking.shapes, 1), [node.id for node in nodes])
                time.sleep(POLL_S)
            nodes, lacking = _demand_of(make_demand)
        return lacking
    finally:
        claims.withdraw()


def _demand_of(make_demand: Callable[[tuple[Node, ...]], Demand]) -> tuple[set[Node], Demand | NoRoom]:
    """Return the nodes that there are, and what is asked of them, or what they lack for it."""
    nodes = usable_nodes()
    try:
        return set(nodes), make_demand(nodes)
    except NoRoom as lacking:
        return set(nodes), lacking
