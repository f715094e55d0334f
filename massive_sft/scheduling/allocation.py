"""Who gets which GPU: what to start and what to let end, from what is there, what is held and what waits.

A decision knows no Ray, no thread and no clock but the one that it is given, so the simulator
(``benchmarks/scheduler.py``) runs it as a run does. Nothing is killed: a lane ends after its order, scorers after their
cells.

- What is free goes to whoever waits: first to the scoring that is owed room, then to lanes (first of the shape with
  most work for each GPU that it holds), then to more scoring. So nothing idles that somebody could use.
- Moving a GPU costs a start, and a gang of several waits for the last of the cells that were on its GPUs. So lanes give
  up GPUs to scoring once so much waits to be scored that the way there and back is a small part of it, and scorers give
  them back before the cells run out. The lanes that keep pace with scoring stay.
- A shape that has orders and no room gets nodes kept for it. A lane that had its turn ends for it, or for scoring.
- Where CPUs are halved, scoring has the lanes' half too while nothing trains, and gives it back when something does.
- A lane without an order stays while a search may ask for more, and ends for whoever could use its room.
- What waits long for its place waits for another run, which may wait for what is idle here: so that ends.
- Snapshots that wait beyond ``storage.max_waiting`` turn GPUs to scoring: no order is given out until fewer do.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

from massive_sft.scheduling.clearing import Clearing, Holder, clear, find_places, holders_by_node
from massive_sft.scheduling.cluster_state import (
    START_S,
    Decision,
    Group,
    Lane,
    Orders,
    ScoringRules,
    Situation,
    size_of,
    start_s,
)
from massive_sft.scheduling.nodes import Room, Shape

PAYBACK = 20.0  # seconds of work that a second of moving GPUs must be for
TURN_S = PAYBACK * START_S  # that a lane stays, while others wait for its room
IDLE_S = 5.0  # that a lane waits for orders that are to come, while others could use its room
PLACE_S = 120.0  # that what was started may wait for its place or for its processes before what is idle ends
AHEAD = 1.2  # times the training that keeps pace with scoring
RELEASE = 0.9  # of what may wait, at which orders are given out again
STARTS_AT_ONCE = 24  # lanes, and groups of scorers, begun in one decision
GROUPS = 128  # of scorers at most: each takes the run a thread
CPU_GROUPS = 16  # the same without GPUs, where none has to move
_NONE = Orders(0, 0, 0.0)


class Allocator:
    """Decides, one moment after another; remembers only which nodes it keeps for whom, and whether it holds orders."""

    def __init__(self, rules: ScoringRules):
        self.rules = rules
        self._kept: dict[Shape, tuple[str, ...]] = {}
        self._holding = False

    def decide(self, now: Situation) -> Decision:
        """Return what to start and what to let end."""
        limit = self.rules.max_waiting_bytes
        self._holding = now.cells.size_bytes > (RELEASE * limit if self._holding else limit)
        deciding = _Deciding(self.rules, now, self._kept, self._holding)
        decision = deciding.decide()
        self._kept = deciding.kept
        return decision


class _Deciding:
    """One decision."""

    def __init__(self, rules: ScoringRules, now: Situation, kept: Mapping[Shape, tuple[str, ...]], holding: bool):
        self.rules, self.now, self.holding = rules, now, holding
        self.decision = Decision(hold_orders=holding)
        self.kept = dict(kept)
        self.lanes = {lane.name: lane for lane in now.lanes if not lane.leaving}
        self.groups = {group.name: group for group in now.groups if not group.leaving}
        self.counts = Counter(lane.shape for lane in self.lanes.values())  # with the lanes that are started now
        self.orders = {} if holding else {shape: orders for shape, orders in now.orders.items() if orders.left > 0}
        trains = bool(now.lanes or any(orders.left for orders in now.orders.values()))
        self.lane_share = 1 - rules.share if rules.apart and trains else 1.0
        self.room = Room(now.nodes, self.lane_share)  # of lanes
        self.scoring_room = Room(now.nodes, rules.share if trains else 1.0) if rules.apart else self.room
        for lane in now.lanes:
            self.room.take(lane.shape, lane.nodes)
        self.beyond = list[Group]()  # their share: they hold what is the lanes'
        for group in sorted(now.groups, key=lambda group: group.leaving):
            is_beyond = rules.apart and self.scoring_room.fits(rules.scorer, group.node) < group.size
            self.beyond += [group] if is_beyond else []
            (self.room if is_beyond else self.scoring_room).take(rules.scorer, [group.node] * group.size)
        self.empty = Room(now.nodes, self.lane_share)
        waits_s = [*(lane.waits_s for lane in now.lanes), *(group.waits_s for group in now.groups)]
        self.is_blocked = max(waits_s, default=0.0) > PLACE_S
        self.scorers = sum(group.size for group in self.groups.values())
        self.cell_s = now.cells.seconds / max(1, now.cells.waiting)
        self.gang = max((shape.workers for shape in now.orders), default=1)
        self.quotas = self._quotas()

    def decide(self) -> Decision:
        self._end_what_is_done()
        left = {shape: orders.left for shape, orders in self.orders.items()}
        queued = {shape: orders.queued for shape, orders in self.orders.items()}
        cells = self._scorers_wanted()
        owed = max(0, min(cells, self._scorers_owed() - self.scorers))
        cells -= owed - self._start_scorers(owed)
        # At first trials have not asked yet for the lanes that they will want.
        unmet = self._start_lanes(left if self.now.elapsed_s < START_S else queued)
        cells = self._start_scorers(cells)
        if not any(unmet.values()) and not self.is_blocked:
            self._start_lanes(left)
        self._note_what_lacks(left, cells)
        self._end_idle(unmet, cells)
        if self.is_blocked:
            self._end_all_idle()
        self._keep_nodes(unmet)
        if not self.rules.apart:
            self._end_lanes_for_scoring(min(owed, cells))
        self.decision.trials = 1 + self._most_lanes()
        return self.decision

    # What is wanted

    def _lanes_wanted(self, shape: Shape, orders: int) -> int:
        """Return how many more lanes of a shape so many orders are worth: each has a start's time of work."""
        busy = sum(lane.busy for lane in self.lanes.values() if lane.shape == shape)
        lanes, seconds = self.counts[shape], self.orders[shape].seconds
        worth = max(1, math.floor(orders * seconds / start_s(shape))) if seconds else lanes + orders
        return max(0, min(orders - (lanes - busy), worth - lanes))

    def _scorers_wanted(self) -> int:
        """Return how many more scorers the cells that wait are worth: each has a start's time of work.

        The first needs none, unless one that is there takes them up as soon as that; what is overdue may never do so.
        """
        cells, idle = self.now.cells, sum(group.size - group.busy for group in self.groups.values())
        own_s = start_s(self.rules.scorer)
        takes_up = any(not group.busy or 0 < group.left_s < own_s for group in self.groups.values())
        first = 0 if takes_up else 1
        worth = max(first, math.floor(cells.seconds / own_s)) if cells.seconds else math.inf
        most = math.inf if self.rules.most is None else self.rules.most
        return int(max(0, min(cells.waiting - idle, worth - idle, most - self.scorers)))

    def _scorers_owed(self) -> int:
        """Return how many scorers what waits is worth, at the cost of moving GPUs there and back."""
        cells = self.now.cells
        if self.holding or not self.orders:
            return cells.waiting + self.scorers
        pays_s = PAYBACK * self._moving_s()
        if cells.seconds < self.gang * pays_s:
            return 0
        order_s = max(orders.seconds for orders in self.orders.values())
        refill_s = START_S + order_s + (self.cell_s if self.gang > 1 else 0.0)
        return max(self.gang, math.floor(cells.seconds / max(pays_s, 2 * refill_s)))

    def _moving_s(self) -> float:
        """Return what it costs each GPU to become a scorer and a lane's again, where gangs wait for their last."""
        return START_S + (self.cell_s / 2 if self.gang > 1 else 0.0)

    def _quotas(self) -> dict[Shape, int]:
        """Return the lanes of each shape that keep pace with scoring, as far as there is room for both."""
        work = {shape: orders.left * orders.seconds * size_of(shape) for shape, orders in self.now.orders.items()}
        scoring_s = sum(orders.left * orders.scoring_s for orders in self.now.orders.values()) + self.now.cells.seconds
        scorer = size_of(self.rules.scorer)
        total, quotas = sum(work.values()) + scoring_s * scorer, {}
        for shape, seconds in work.items():
            room, lane = self.room.slots(shape) * size_of(shape) / shape.workers, size_of(shape)
            fair = AHEAD * room * seconds / total / lane if total else 0.0
            quotas[shape] = max(0, min(round(fair), math.floor((room - scorer) / lane)))
        return quotas

    def _most_lanes(self) -> int:
        """Return how many lanes the nodes could hold together, of the shape with most."""
        counts = [0]
        for shape, orders in self.now.orders.items():
            counts.append(min(self.room.slots(shape) // shape.workers, orders.left + self.counts[shape]))
        return max(counts)

    # What is started

    def _start_lanes(self, orders: Mapping[Shape, int]) -> dict[Shape, int]:
        """Start lanes for orders where there is room, most work a GPU first; return how many more are wanted."""
        unmet = {shape: self._lanes_wanted(shape, count) for shape, count in orders.items()}
        open_ = {shape for shape, count in unmet.items() if count > 0}
        while open_ and len(self.decision.start_lanes) < STARTS_AT_ONCE:
            shape = max(open_, key=lambda shape: (self._work_a_gpu(shape), size_of(shape), shape))
            nodes = self.room.place(shape, self._not_for(shape))
            if nodes is None:
                open_.discard(shape)
                continue
            self.room.take(shape, nodes)
            self.decision.start_lanes.append((shape, nodes))
            self.kept.pop(shape, None)
            self.counts[shape] += 1
            unmet[shape] -= 1
            if not unmet[shape]:
                open_.discard(shape)
        return unmet

    def _work_a_gpu(self, shape: Shape) -> float:
        """Return the seconds that a shape's GPUs would take for its orders, had it one lane more."""
        orders = self.orders[shape]
        return orders.left * max(1.0, orders.seconds) / (self.counts[shape] + 1)

    def _start_scorers(self, wanted: int) -> int:
        """Start groups of scorers where there is room; return how many have none."""
        shape = self.rules.scorer
        groups = GROUPS if shape.gpus else CPU_GROUPS
        largest = max(1, math.ceil(self.scoring_room.slots(shape) / groups))
        while wanted > 0 and len(self.decision.start_groups) < STARTS_AT_ONCE:
            nodes = self.scoring_room.place(shape, self._not_for(None))
            if nodes is None:
                break
            size = min(wanted, largest, self.scoring_room.fits(shape, nodes[0]))
            self.scoring_room.take(shape, nodes * size)
            self.decision.start_groups.append((nodes[0], size))
            self.scorers += size
            wanted -= size
        return wanted

    def _not_for(self, shape: Shape | None) -> set[str]:
        """Return the nodes on which this shape, or scorers, may not start now."""
        kept = {node for other, nodes in self.kept.items() if other != shape for node in nodes}
        if shape is None:
            return kept | self.now.cells.unfit
        return kept | (self.orders[shape].unfit if shape in self.orders else frozenset())

    def _note_what_lacks(self, orders: Mapping[Shape, int], cells: int) -> None:
        """Note the lanes that so many orders are worth, and the scorers, that have no room."""
        wanted = {shape: self._lanes_wanted(shape, count) for shape, count in orders.items()}
        begun = len(self.decision.start_lanes), len(self.decision.start_groups)
        if max(begun) < STARTS_AT_ONCE:  # else there is room for more of them
            wanted[self.rules.scorer] = wanted.get(self.rules.scorer, 0) + cells
            self.decision.lacking = {shape: count for shape, count in wanted.items() if count}

    # What is let end

    def _end_what_is_done(self) -> None:
        for lane in list(self.lanes.values()):
            if not (lane.busy or self.now.grows or self.now.orders.get(lane.shape, _NONE).left):
                self._end(lane)
        is_scored = not self.now.cells.waiting and not self.now.cells.more
        for group in list(self.groups.values()):
            if is_scored or group in self.beyond:
                self._end(group)

    def _end(self, holder: Lane | Group) -> None:
        if isinstance(holder, Lane):
            del self.lanes[holder.name]
            self.counts[holder.shape] -= 1
            self.decision.end_lanes.append(holder.name)
        else:
            del self.groups[holder.name]
            self.scorers -= holder.size
            self.decision.end_groups.append(holder.name)

    def _end_idle(self, unmet: Mapping[Shape, int], cells: int) -> None:
        """End what has nothing to do, as far as somebody who waits could use its room."""
        claims = [(shape, count) for shape, count in unmet.items() if count]
        claims += [(self.rules.scorer, cells)] if cells and not self.rules.apart else []
        for shape, count in claims:
            needed = count * size_of(shape)
            holders: list[Lane | Group] = [*self.groups.values(), *self.lanes.values()]
            for holder in holders:
                if needed > 0 and self._is_idle(holder) and self._serves(holder, shape):
                    needed -= self._size(holder)
                    self._end(holder)

    def _end_all_idle(self) -> None:
        holders: list[Lane | Group] = [*self.groups.values(), *self.lanes.values()]
        for holder in holders:
            if self._is_idle(holder) and not holder.waits_s:
                self._end(holder)

    def _is_idle(self, holder: Lane | Group) -> bool:
        """Return whether something has nothing to do, and nothing waits for it."""
        if isinstance(holder, Group):
            return not holder.busy and not self.now.cells.waiting
        waited = not holder.busy and holder.idle_s >= IDLE_S
        return waited and not self.now.orders.get(holder.shape, _NONE).queued

    def _serves(self, holder: Lane | Group, shape: Shape) -> bool:
        """Return whether the room of something could be a part of what another shape needs."""
        own = holder.shape if isinstance(holder, Lane) else self.rules.scorer
        if isinstance(holder, Group) and self.rules.apart:
            return False
        nodes = holder.nodes if isinstance(holder, Lane) else (holder.node,)
        return bool(own.gpus or not shape.gpus) and any(self.empty.fits(shape, node) for node in nodes)

    def _size(self, holder: Lane | Group) -> float:
        return size_of(holder.shape) if isinstance(holder, Lane) else holder.size * size_of(self.rules.scorer)

    def _keep_nodes(self, unmet: Mapping[Shape, int]) -> None:
        """Keep nodes for shapes that have orders and no room, and let end there what is in the way."""
        if not any(unmet.values()):
            self.kept.clear()
            return
        for group in self.beyond:  # they end in any case
            self.room.give(self.rules.scorer, [group.node] * group.size)
        alive, on = {node.id for node in self.now.nodes}, holders_by_node(self.now, self.rules)
        for shape in [*self.kept]:
            if not unmet.get(shape) or not alive.issuperset(self.kept[shape]):
                del self.kept[shape]
        for shape in sorted((shape for shape, count in unmet.items() if count), key=size_of, reverse=True):
            closed = self._not_for(shape)
            nodes = [node for node in self.now.nodes if node.id not in closed]
            places = [self.kept[shape]] if shape in self.kept else find_places(shape, nodes, self.lane_share)
            ways = [way for place in places if (way := self._clear(shape, place, on)) is not None]
            if ways:
                way = min(ways, key=lambda way: (way.waste_s, way.wait_s, way.nodes))
                self.kept[shape] = way.nodes
                for holder in way.holders:
                    if holder.name in self.lanes or holder.name in self.groups:
                        self._end(holder)

    def _clear(self, shape: Shape, place: tuple[str, ...], on: Mapping[str, list[Holder]]) -> Clearing | None:
        """Return what must end for a shape to have room in a place; None where what is there may not end."""
        there = {holder[0].name: holder for node in place for holder in on.get(node, ())}.values()
        room = self.room.part(place)
        return clear(shape, room, place, there, lambda holder, taken: self._may_end(holder, shape, taken))

    def _may_end(self, holder: Lane | Group, shape: Shape, taken: float) -> bool:
        """Return whether something ends, or may, for a shape that has no room; ``taken``: scorers' GPUs before it."""
        lanes = self.counts[shape]
        if isinstance(holder, Lane):
            had_its_turn = not lanes and holder.up_s >= TURN_S
            return holder.name not in self.lanes or self._is_idle(holder) or (had_its_turn and holder.shape != shape)
        if holder.name not in self.groups or lanes < self.quotas[shape] or not self.now.cells.waiting:
            return True
        refill_s = START_S + holder.left_s + self.orders[shape].seconds
        others = self.scorers - (taken + self._size(holder)) / size_of(self.rules.scorer)
        return self.now.cells.seconds < refill_s * others

    def _end_lanes_for_scoring(self, owed: int) -> None:
        """Let lanes end after their orders, the soonest first, for the scorers that are owed room."""
        leaving = [lane for lane in self.now.lanes if lane.name not in self.lanes]
        needed = owed * size_of(self.rules.scorer) - sum(size_of(lane.shape) for lane in leaving)
        for lane in sorted(self.lanes.values(), key=lambda lane: (lane.busy, lane.left_s, lane.name)):
            spare = self.counts[lane.shape] > self.quotas.get(lane.shape, 0)
            may_end = spare and (self.holding or lane.up_s >= TURN_S)
            may_end |= self.holding and lane.idle_s > self._moving_s() / 4
            if needed > 0 and may_end and self._serves(lane, self.rules.scorer):
                needed -= size_of(lane.shape)
                self._end(lane)
