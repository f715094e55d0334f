"""On which nodes lanes of a shape can start, told from what became of their starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

from massive_sft.scheduling.nodes import Node, Room, Shape

UP_S = 600.0  # that processes may take to come up, before they import anything, once they have their place
STARTS = 2  # times workers may die on a node before they ask for work, which is while they import


@dataclass
class _Start:
    """One start of a lane's workers.

    Attributes:
        group: the placement group, another one with every start.
        nodes: of each rank that is up.
        importing: ranks that have not imported all they need.
    """

    shape: Shape
    group: str
    nodes: dict[int, str] = field(default_factory=dict)
    importing: set[int] = field(default_factory=set)


class NodeHealth:
    """What starts of lanes came to, by shape and node.

    A node where workers of a shape died ``STARTS`` times before they could take an order, with no success between, is
    ``unfit`` for it. A node that is gone, or is about to go, says nothing about its shape: its deaths do not count.
    """

    def __init__(self) -> None:
        self.unfit: dict[Shape, set[str]] = {}
        self.alive: frozenset[str] = frozenset()
        self.gone: set[str] = set()
        self._known: dict[str, Room] = {}  # what each node has, where that was said
        self._starts: dict[str, _Start] = {}
        self._failed: Counter[tuple[Shape, str]] = Counter()
        self._never_entered: Counter[Shape] = Counter()
        self._places: Counter[Shape] = Counter()  # where lanes of a shape failed, each one or more nodes
        self._proven: set[Shape] = set()
        self._well: set[str] = set()  # nodes where a worker of any shape came up

    def look(self, alive: Collection[str], draining: Collection[str], known: Collection[Node] = ()) -> None:
        """Take note of the nodes that could hold workers; of these, ``draining`` ones are about to go.

        Args:
            known: what nodes have; one that is not among them is taken to have room for any shape.
        """
        self._known |= {node.id: Room((node,)) for node in known}
        self.gone |= (self.alive - frozenset(alive)) | set(draining)
        self.alive = frozenset(alive)

    def enter(self, lane: str, shape: Shape, group: str, rank: int, node: str) -> bool:
        """Take note of a worker that is up; return whether it is the first of a new start."""
        is_new = lane not in self._starts or self._starts[lane].group != group
        if is_new:
            self.leave(lane)
            self._starts[lane] = _Start(shape, group)
        start = self._starts[lane]
        start.nodes[rank] = node
        start.importing.add(rank)
        return is_new

    def ready(self, lane: str, rank: int) -> None:
        """Take note of a worker that has imported all it needs."""
        start = self._starts[lane]
        start.importing.discard(rank)
        self._well.add(start.nodes[rank])
        self._failed[start.shape, start.nodes[rank]] = 0

    def works(self, shape: Shape) -> None:
        """Take note that a lane of a shape got somewhere with an order."""
        self._proven.add(shape)

    def leave(self, lane: str) -> None:
        """Take note that a lane's workers are gone: those that still imported could not start where they were."""
        start = self._starts.pop(lane, None)
        if start is None:
            return
        for node in {start.nodes[rank] for rank in start.importing}:
            if node not in self.gone:
                self._failed[start.shape, node] += 1
                if self._failed[start.shape, node] >= STARTS:
                    self._give_up(start.shape, {node})

    def forget(self, lane: str) -> None:
        """Take note that a lane's workers are gone because they were told to go."""
        self._starts.pop(lane, None)

    def never_entered(self, shape: Shape) -> None:
        """Take note of a lane that was lost before any of its workers was up, whatever it was that it lost."""
        self._never_entered[shape] += 1

    def failed_to_start(self, shape: Shape, nodes: Collection[str]) -> None:
        """Take note of a lane that was lost because the processes of its workers could not be started.

        Which of several nodes it was, nobody says: it counts for those where no worker was up before, if there are any.
        """
        nodes = set(nodes) - self.gone
        self._give_up(shape, nodes - self._well or nodes)

    def failed_to_serve(self, lane: str) -> None:
        """Take note that something of a lane's machine, as a full disk, keeps it from serving its orders."""
        start = self._starts[lane]
        self._give_up(start.shape, set(start.nodes.values()) - self.gone)

    def _give_up(self, shape: Shape, nodes: Collection[str]) -> None:
        unfit = self.unfit.setdefault(shape, set())
        self._places[shape] += not unfit.issuperset(nodes)
        unfit.update(nodes)

    @property
    def groups(self) -> set[str]:
        """The placement groups of lanes whose workers are up."""
        return {start.group for start in self._starts.values()}

    def nodes(self, lane: str) -> frozenset[str]:
        """Return the nodes of a lane's workers that are up."""
        return frozenset(self._starts[lane].nodes.values()) if lane in self._starts else frozenset()

    def may_start(self, lane: str) -> bool:
        """Return whether none of a lane's workers is on a node that is unfit for it."""
        start = self._starts[lane]
        return not self.unfit.get(start.shape, set()).intersection(start.nodes.values())

    def cannot_start(self, shape: Shape) -> bool:
        """Return whether lanes of a shape can start nowhere: no node is left, or several failed and none worked."""
        places = {node for node in self.alive if node not in self._known or self._known[node].slots(shape)}
        everywhere = bool(places) and places <= self.unfit.get(shape, set())
        failed = max(self._places[shape], self._never_entered[shape])
        return everywhere or (failed > 1 and shape not in self._proven)
