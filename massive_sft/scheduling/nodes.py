"""Nodes of a cluster, and where on them a gang of workers has room."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

_ROUNDING = 1e-6  # of fractions of a CPU


class Shape(NamedTuple):
    """What a lane or a scorer is made of: workers, and what each of them holds.

    Attributes:
        kind: of GPU that it must have; empty for any, but one kind for all workers.
        memory_bytes: host memory of a worker; 0 where it is not known.
    """

    workers: int
    cpus: float
    gpus: float
    kind: str = ""
    memory_bytes: float = 0.0

    def needs(self) -> dict[str, float]:
        """Return CPUs and GPUs of all workers."""
        return {"CPU": self.workers * self.cpus, "GPU": self.workers * self.gpus}

    def worker(self) -> dict[str, float]:
        """Return what a worker holds, as Ray names it; the kind of its GPUs is the node's."""
        held = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory_bytes}
        return {name: amount for name, amount in held.items() if amount}

    def __str__(self) -> str:
        device = f"{self.kind or 'GPU'}" if self.gpus else "CPU"
        return f"{self.workers} x {self.gpus or self.cpus:g} {device}"


@dataclass(frozen=True)
class Node:
    """A machine of the cluster that is alive.

    Attributes:
        kind: of its GPUs, as Ray names it; empty where it has none or does not say.
    """

    id: str
    cpus: float
    gpus: float = 0.0
    kind: str = ""
    memory_bytes: float = math.inf


class Room:
    """What is free on each node, while one decision is made.

    Args:
        nodes: those that are alive.
        share: of each node's CPUs and memory that may be held; GPUs are never shared out.
    """

    def __init__(self, nodes: Iterable[Node], share: float = 1.0):
        self._nodes = {
            node.id: Node(node.id, share * node.cpus, node.gpus, node.kind, share * node.memory_bytes) for node in nodes
        }
        self._free = dict(self._nodes)
        self._fit_one: dict[Shape, bool] = {}

    def part(self, nodes: Iterable[str]) -> Room:
        """Return what is free on some of the nodes, to be taken and given apart from this."""
        part = Room(())
        for name in nodes:
            part._nodes[name], part._free[name] = self._nodes[name], self._free[name]
        return part

    def take(self, shape: Shape, nodes: Iterable[str]) -> None:
        """Take the room of one worker on each of these nodes, which may repeat; those that are gone have none."""
        self._change(shape, nodes, 1)

    def give(self, shape: Shape, nodes: Iterable[str]) -> None:
        """Give back what was taken."""
        self._change(shape, nodes, -1)

    def _change(self, shape: Shape, nodes: Iterable[str], sign: int) -> None:
        for name, workers in Counter(nodes).items():
            if name in self._free:
                self._free[name] = _less(self._free[name], shape, sign * workers)

    def slots(self, shape: Shape) -> int:
        """Return how many of a shape's workers have room on these nodes when nothing else is on them."""
        return sum(_holds(node, shape) for node in self._nodes.values())

    def fits(self, shape: Shape, node: str) -> int:
        """Return how many of a shape's workers have room on a node now; 0 on one of another kind, or that is gone."""
        return _holds(self._free[node], shape) if node in self._free else 0

    def could_hold(self, shape: Shape) -> bool:
        """Return whether a shape has room on these nodes when nothing else is on them."""
        return _place(shape, self._nodes.values(), self.one_could_hold(shape)) is not None

    def one_could_hold(self, shape: Shape) -> bool:
        """Return whether one of these nodes has room for all workers of a shape when nothing else is on it."""
        if shape not in self._fit_one:
            self._fit_one[shape] = any(_holds(node, shape) >= shape.workers for node in self._nodes.values())
        return self._fit_one[shape]

    def place(self, shape: Shape, apart: Iterable[str] = ()) -> tuple[str, ...] | None:
        """Return a node for each worker, all of one kind; None when there is no room now.

        A gang that fits one node goes on one node, the fullest that has room for it, and waits for one otherwise. A
        larger one goes on as few nodes as it can.

        Args:
            apart: nodes that are kept for somebody else.
        """
        kept = set(apart)
        return _place(shape, [node for node in self._free.values() if node.id not in kept], self.one_could_hold(shape))


def _less(node: Node, shape: Shape, count: int) -> Node:
    memory = node.memory_bytes - count * shape.memory_bytes
    return Node(node.id, node.cpus - count * shape.cpus, node.gpus - count * shape.gpus, node.kind, memory)


def _holds(node: Node, shape: Shape) -> int:
    """Return how many of a shape's workers have room in what a node has."""
    if shape.gpus:
        if shape.kind not in ("", node.kind) or node.gpus < shape.gpus - _ROUNDING:
            return 0
        room = node.gpus / shape.gpus
        room = min(room, node.cpus / shape.cpus) if shape.cpus else room
    else:
        room = node.cpus / shape.cpus
    if shape.memory_bytes:
        room = min(room, node.memory_bytes / shape.memory_bytes)
    return max(0, math.floor(room + _ROUNDING))


def _place(shape: Shape, free: Iterable[Node], on_one: bool) -> tuple[str, ...] | None:
    room = [(count, node) for node in free if (count := _holds(node, shape))]
    if on_one:
        whole = [(node.gpus, node.cpus, node.id) for count, node in room if count >= shape.workers]
        return (min(whole)[2],) * shape.workers if whole else None
    kinds: dict[str, list[tuple[int, str]]] = {}
    for count, node in room:
        kinds.setdefault(node.kind if shape.gpus else "", []).append((count, node.id))
    placements = [
        _spread(shape.workers, sorted(slots, key=lambda slot: (-slot[0], slot[1]))) for slots in kinds.values()
    ]
    return min((nodes for nodes in placements if nodes), key=lambda nodes: (len(set(nodes)), nodes), default=None)


def _spread(workers: int, slots: Sequence[tuple[int, str]]) -> tuple[str, ...] | None:
    """Return a node for each worker, the roomiest nodes first."""
    roomiest = sorted(slots, key=lambda slot: (-slot[0], slot[1]))
    nodes = [name for count, name in roomiest for _ in range(min(count, workers))][:workers]
    return tuple(nodes) if len(nodes) == workers else None
