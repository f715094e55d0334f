"""The meeting point of trials and lanes: orders in, messages back; and what is to become of lanes."""

from __future__ import annotations

import bisect
import time
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import ray

from massive_sft.scheduling.node_health import STARTS, NodeHealth
from massive_sft.scheduling.nodes import Node, Shape
from massive_sft.scheduling.order_queue import OrderQueue
from massive_sft.scheduling.orders import Message, QueuedOrder

TRIES = 3  # times an order is given out without getting further before it counts as what kills its workers
RESTARTS = 10  # of one lane's workers without any success; then another lane takes up what it had


@ray.remote(num_cpus=0)
class LanePool(OrderQueue):
    """Orders between trials and lanes.

    An order is the lane's until it says done, failed or stopped. A lane that asks again while it has one was restarted,
    so it gets the same again; what a lost lane had goes to another. ``TRIES`` times without a new step or a
    later checkpoint, and the order fails; what a node took with it when it went is no try.

    Args:
        expected: how many orders of each shape will come; a lane stays while more of its shape may come, unless it is
            told to leave.
        grows: whether other orders may come until ``close``.
    """

    def __init__(self, expected: Mapping[Shape, int], grows: bool = False):
        super().__init__(expected, grows)
        self.held: dict[str, QueuedOrder] = {}
        self.idle: dict[str, float] = {}  # since when
        self.leaving: set[str] = set()
        self.preempted: set[str] = set()
        self.refused: dict[str, str] = {}
        self.holding = False
        self.health = NodeHealth()
        self.seen = (frozenset[str](), frozenset[str]())
        self.restarts: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()
        self.watched: Counter[str] = Counter()

    # Lanes

    async def look(self, alive: Collection[str], draining: Collection[str], known: Collection[Node] = ()) -> None:
        """Take note of the nodes that could hold workers, of those about to go, and of what they have where known.

        Lanes on the latter end after the step in hand, with a checkpoint, and what they had is queued again.
        """
        seen = frozenset(alive), frozenset(draining)
        if seen == self.seen:  # as at nearly every look, which is no progress
            return
        self.seen = seen
        self.health.look(alive, draining, known)
        self.preempted |= {lane for lane in self.restarts if not self.health.nodes(lane).isdisjoint(draining)}
        await self._notify()

    async def enter(self, lane: str, shape: Shape, group: str, rank: int, node: str) -> bool:
        """Say that a lane's worker is up, before it imports anything; return whether it is to go on.

        It is not on a node where as many as ``STARTS`` before it died without asking for an order: so would this one.
        Nor is it in a lane whose workers were restarted ``RESTARTS`` times without any success.

        Args:
            group: the id of the placement group that the lane holds, another one with every start.
        """
        if self.health.enter(lane, shape, group, rank, node):
            self.restarts[lane] += 1
            self.idle.pop(lane, None)
        if node in self.seen[1]:
            self.preempted.add(lane)
        died = f"its workers died {STARTS} times before they could take an order"
        if self.health.cannot_start(shape):
            await self.break_shape(shape, died)
        if shape in self.broken:
            self.refused.setdefault(lane, self.broken[shape])  # what it gave up for stands
        elif not self.health.may_start(lane):
            self.refused.setdefault(lane, died)
        elif self.restarts[lane] > RESTARTS + 1:
            self.refused.setdefault(lane, f"its workers were restarted {RESTARTS} times without getting further")
        if lane in self.refused and lane in self.held:
            await self._take_back(lane, self.refused[lane])
        await self._notify()
        return lane not in self.refused

    async def ready(self, lane: str, rank: int) -> None:
        """Say that a lane's worker has imported all it needs."""
        self.health.ready(lane, rank)
        await self._notify()

    async def next(self, lane: str, shape: Shape) -> bytes | None:
        """Return the lane's next order, as soon as there is one; None when it should end."""
        self.asked[lane] += 1
        turn = self.asked[lane]
        if lane in self.held:
            held = self.held[lane]
            if not self.stopping and self._tries(held) < TRIES:
                return self._give(lane, held)
            reason = f"its workers died {TRIES} times without getting further{held.reason and f'; {held.reason}'}"
            await self.tell(lane, Message("stopped") if self.stopping else Message("failed", reason))
        self.idle[lane] = time.monotonic()
        await self._notify()
        async with self.changed:
            await self.changed.wait_for(
                lambda: (
                    self.asked[lane] != turn
                    or (self.queues[shape] and not self.holding)
                    or not (self.queues[shape] or self.expected[shape] > 0 or self.grows)
                    or self._must_leave(lane)
                )
            )
            asker_died = self.asked[lane] != turn  # its successor has asked since
            if asker_died:
                return None
            self.idle.pop(lane, None)
            if self._must_leave(lane) or self.holding or not self.queues[shape]:
                return None
            order = self.queues[shape].pop(0)
        return self._give(lane, order)

    def _must_leave(self, lane: str) -> bool:
        return self.stopping or lane in self.leaving or lane in self.preempted or lane in self.refused

    def _give(self, lane: str, order: QueuedOrder) -> bytes:
        order.tries.append(self.health.nodes(lane))
        self.held[lane] = order
        return order.data

    def _tries(self, order: QueuedOrder) -> int:
        """Return how often an order was tried without getting further, on nodes that are still there."""
        return sum(self.health.gone.isdisjoint(nodes) for nodes in order.tries)

    async def tell(self, lane: str, message: Message) -> None:
        """Pass on what a lane says of the order that it holds."""
        if lane not in self.held:
            return
        order = self.held[lane]
        if message.kind == "stopped" and not self.stopping:
            await self._put_back(lane, order)
            return
        got_further = message.step > order.step or message.checkpoint > order.checkpoint
        if message.kind != "event":
            del self.held[lane]
            order.data = b""
        elif got_further:
            order.step = max(order.step, message.step)
            order.checkpoint = max(order.checkpoint, message.checkpoint)
            order.tries = order.tries[-1:]
        if got_further or message.kind != "event":
            self.restarts[lane] = 1
        if got_further or message.kind == "done":
            self.health.works(order.shape)
        order.messages.append(message)
        await self._notify()

    async def blame(self, lane: str, reason: str) -> None:
        """Note why workers of a lane end, which may be only that another one of them was lost."""
        if lane in self.held:
            self.held[lane].reason = reason
        await self._notify()

    async def give_up(self, lane: str, shape: Shape, reason: str) -> None:
        """Say that a lane's machine cannot serve its orders: it ends, and one elsewhere takes up what it has."""
        self.refused[lane] = reason
        self.health.failed_to_serve(lane)
        if lane in self.held:
            self.held[lane].tries.clear()
        await self._take_back(lane, reason)
        if self.health.cannot_start(shape):
            await self.break_shape(shape, reason)
        await self._notify()

    async def again(self, lane: str) -> None:
        """Say that what a lane holds is to be tried once more, in another way than before: its tries begin anew."""
        if lane in self.held:
            self.held[lane].tries.clear()
            self.restarts[lane] = 1
        await self._notify()

    async def told_to_stop(self, lane: str) -> None:
        """Return once a lane should end the training in hand with a checkpoint; or when it asks this anew."""
        self.watched[lane] += 1
        turn = self.watched[lane]
        async with self.changed:
            self.changed.notify_all()
            await self.changed.wait_for(lambda: self._should_stop(lane) or self.watched[lane] != turn)

    def _should_stop(self, lane: str) -> bool:
        is_abandoned = lane in self.held and self.orders.get(self.held[lane].id) is not self.held[lane]
        return self.stopping or lane in self.preempted or is_abandoned

    async def lost(self, lane: str, shape: Shape, reason: str, failed_to_start_on: Collection[str] = ()) -> None:
        """Say that a lane is gone, maybe because these nodes could not start its workers.

        Another takes up what it had, or that failed when it was tried often enough.
        """
        await self._take_back(lane, reason)
        (self.health.forget if lane in self.refused else self.health.leave)(lane)
        if lane not in self.restarts and failed_to_start_on:
            self.health.failed_to_start(shape, failed_to_start_on)
        elif lane not in self.restarts:
            self.health.never_entered(shape)
        if self.health.cannot_start(shape):
            await self.break_shape(shape, f"its lanes cannot be started: {reason}")
        self.idle.pop(lane, None)
        await self._notify()

    async def ended(self, lane: str) -> None:
        """Say that a lane has ended because it was told to."""
        await self._take_back(lane, "its workers ended")
        self.health.forget(lane)
        self.idle.pop(lane, None)
        await self._notify()

    async def _take_back(self, lane: str, reason: str) -> None:
        if lane in self.held:
            order = self.held[lane]
            if self.stopping:
                await self.tell(lane, Message("stopped"))
            elif self._tries(order) >= TRIES:
                await self.tell(lane, Message("failed", reason))
            else:
                await self._put_back(lane, order)

    async def _put_back(self, lane: str, order: QueuedOrder) -> None:
        """Queue an order again where it stood, unless its trial has begun anew."""
        del self.held[lane]
        if self.orders.get(order.id) is order:
            bisect.insort(self.queues[order.shape], order, key=lambda each: each.place)
        await self._notify()

    async def leave(self, lanes: Collection[str]) -> None:
        """Say that lanes are to end: at once if they are idle, else after their order."""
        if not self.leaving.issuperset(lanes):
            self.leaving.update(lanes)
            await self._notify()

    async def hold(self, holding: bool) -> None:
        """Say whether orders stay in their queues for now."""
        if holding != self.holding:
            self.holding = holding
            await self._notify()

    # The run

    async def state(self) -> dict[str, Any]:
        """Return what is queued, expected and held, who is idle since how long, and a counter that moves with changes.

        ``unfit`` are the nodes, by shape, on which its lanes cannot start; ``groups`` the placements that are up;
        ``ready`` the lanes that have asked for an order, ``late`` the trials that have not asked what they have to do.
        """
        return {
            "queued": {shape: len(queue) for shape, queue in self.queues.items()},
            "expected": {shape: count for shape, count in self.expected.items() if shape not in self.broken},
            "grows": self.grows,
            "held": {lane: order.id for lane, order in self.held.items()},
            "idle": {lane: time.monotonic() - since for lane, since in self.idle.items()},
            "refused": dict(self.refused),
            "unfit": {shape: set(nodes) for shape, nodes in self.health.unfit.items()},
            "begun": set(self.begun),
            "groups": self.health.groups,
            "up": {lane for lane in self.restarts if self.health.nodes(lane)},
            "ready": set(self.asked),
            "late": self.assigned.keys() - self.met,
            "progress": self.progress,
        }
