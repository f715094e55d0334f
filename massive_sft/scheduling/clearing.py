"""How a shape that has orders and no room gets some: which nodes are kept for it, and what ends there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from massive_sft.scheduling.cluster_state import Group, Lane, ScoringRules, Situation, size_of
from massive_sft.scheduling.nodes import Node, Room, Shape

Holder = tuple[Lane | Group, Shape, tuple[str, ...]]  # what is held, the shape of its workers, and their nodes


@dataclass
class Clearing:
    """What is to end so that a shape has room on some nodes.

    Attributes:
        wait_s: until the last of it has ended.
        waste_s: GPU seconds that are idle until then.
    """

    nodes: tuple[str, ...]
    holders: list[Lane | Group] = field(default_factory=list)
    wait_s: float = 0.0
    waste_s: float = 0.0


def find_places(shape: Shape, nodes: Sequence[Node], share: float) -> Iterator[tuple[str, ...]]:
    """Yield the sets of nodes that could hold a lane of a shape: single ones, or of each kind as many as it takes.

    Args:
        share: of a node that lanes may hold.
    """
    empty = Room(nodes, share)
    slots = {node.id: empty.fits(shape, node.id) for node in nodes}
    single = [name for name, count in slots.items() if count >= shape.workers]
    if single:
        yield from ((name,) for name in single)
        return
    for kind in sorted({node.kind for node in nodes if slots[node.id]}):
        chosen, room = list[str](), 0
        for node in sorted((node for node in nodes if node.kind == kind), key=lambda node: -slots[node.id]):
            if room < shape.workers and slots[node.id]:
                chosen.append(node.id)
                room += slots[node.id]
        if room >= shape.workers:
            yield tuple(chosen)


def holders_by_node(now: Situation, rules: ScoringRules) -> Mapping[str, list[Holder]]:
    """Return what is on each node and may end for a shape of lanes."""
    holders: list[Holder] = [(lane, lane.shape, lane.nodes) for lane in now.lanes]
    if not rules.apart:
        holders += [(group, rules.scorer, (group.node,) * group.size) for group in now.groups]
    on = defaultdict[str, list[Holder]](list)
    for holder in holders:
        for node in set(holder[2]):
            on[node].append(holder)
    return on


def clear(
    shape: Shape,
    room: Room,
    nodes: tuple[str, ...],
    holders: Collection[Holder],
    may_end: Callable[[Lane | Group, float], bool],
) -> Clearing | None:
    """Return what must end for a shape to have room on these nodes, the soonest first; None where it may not.

    Args:
        room: of these nodes, with all that is on them taken.
        holders: what is on them.
        may_end: whether something may be let end, or is ending, when so many GPUs are taken from scorers before it.
    """
    clearing, freed, from_scorers = Clearing(nodes), list[tuple[float, float]](), 0.0
    for holder, worker, where in sorted(holders, key=lambda item: (item[0].left_s, item[0].name)):
        if room.place(shape) is not None:
            break
        if may_end(holder, from_scorers):
            room.give(worker, where)
            size = len(where) * size_of(worker) / worker.workers
            freed.append((holder.left_s, size))
            from_scorers += size if isinstance(holder, Group) else 0.0
            clearing.holders.append(holder)
    if room.place(shape) is None:
        return None
    clearing.wait_s = max((left_s for left_s, _ in freed), default=0.0)
    clearing.waste_s = sum((clearing.wait_s - left_s) * size for left_s, size in freed)
    return clearing
