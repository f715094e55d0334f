"""The meeting point of trials and lanes: orders in, messages back."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray

from massive_sft.scheduling.nodes import Shape
from massive_sft.scheduling.pool import STARTS, Pool

TRIES = 3  # times an order is given out without getting further before it counts as what kills its workers


@dataclass(frozen=True)
class Message:
    """What a lane says of an order.

    Attributes:
        kind: ``event``, ``done``, ``failed``, or ``stopped`` (it ended because the run should).
        content: of an event its pickle, of a failure the reason.
        step, checkpoint: how far the training and its checkpoint are, for an event that says so.
    """

    kind: str
    content: Any = None
    step: int = 0
    checkpoint: int = 0


@dataclass
class _Order:
    """An order in the pool: how often it was given out since it last got further than ever, and what ended it."""

    id: str
    data: bytes
    tries: int = 0
    step: int = 0
    checkpoint: int = 0
    reason: str = ""


@ray.remote(num_cpus=0)
class LanePool(Pool):
    """Orders between trials and lanes.

    An order is the lane's until it says done, failed or stopped. A lane that asks again while it has one was restarted,
    so it gets the same again; what a lost lane had goes to another. ``TRIES`` times without a new step or a
    later checkpoint, and the order fails.

    Args:
        expected: how many orders of each shape will come; a lane stays while more of its shape may come, unless
            another shape has orders and no room.
    """

    def __init__(self, expected: Mapping[Shape, int]):
        super().__init__()
        self.expected = Counter(expected)
        self.queues: dict[Shape, deque[_Order]] = {shape: deque() for shape in expected}
        self.held: dict[str, _Order] = {}
        self.inbox: dict[str, list[Message]] = {}
        self.served: set[str] = set()
        self.leaving: set[str] = set()
        self.groups: dict[str, str] = {}
        self.starving = False
        self.broken: dict[Shape, str] = {}
        self.entered: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()

    async def enter(self, lane: str, shape: Shape, group: str) -> bool:
        """Say that a lane's workers are up, before they import anything; return whether they are to go on.

        They are not when as many as ``STARTS`` before them died without asking for an order: so would these.

        Args:
            group: the id of the placement group that the lane holds.
        """
        self.groups[lane] = group
        self.entered[lane] += 1
        if self.entered[lane] > STARTS:
            await self.break_shape(shape, f"its workers died {STARTS} times before they could take an order")
        return shape not in self.broken

    async def submit(self, shape: Shape, order: str, data: bytes) -> None:
        """Take an order of a trial, by its id."""
        self.expected[shape] -= 1
        self.inbox[order] = []
        if self.stopping:
            self.inbox[order].append(Message("stopped"))
        elif shape in self.broken:
            self.inbox[order].append(Message("failed", self.broken[shape]))
        else:
            self.queues[shape].append(_Order(order, data))
        await self._notify()

    async def skip(self, shape: Shape) -> None:
        """Say that an expected order will not come."""
        self.expected[shape] -= 1
        await self._notify()

    async def next(self, lane: str, shape: Shape) -> bytes | None:
        """Return the lane's next order, as soon as there is one; None when it should end."""
        self.entered[lane] = 0
        self.asked[lane] += 1
        turn = self.asked[lane]
        if lane in self.held:
            held = self.held[lane]
            if not self.stopping and held.tries < TRIES:
                held.tries += 1
                return held.data
            reason = f"its workers died {TRIES} times without getting further{held.reason and f'; {held.reason}'}"
            await self.tell(lane, Message("stopped") if self.stopping else Message("failed", reason))
        async with self.changed:
            await self.changed.wait_for(
                lambda: (
                    self.asked[lane] != turn
                    or self.queues[shape]
                    or self.expected[shape] <= 0
                    or lane in self.leaving
                    or self.starving
                    or self.stopping
                )
            )
            asker_died = self.asked[lane] != turn  # its successor has asked since
            if asker_died or lane in self.leaving or self.stopping or not self.queues[shape]:
                return None
            order = self.queues[shape].popleft()
            order.tries += 1
            self.held[lane] = order
            self.served.add(lane)
        return order.data

    async def tell(self, lane: str, message: Message) -> None:
        """Pass on what a lane says of the order that it holds."""
        if lane not in self.held:
            return
        order = self.held[lane]
        if message.kind != "event":
            del self.held[lane]
        elif message.step > order.step or message.checkpoint > order.checkpoint:
            order.step = max(order.step, message.step)
            order.checkpoint = max(order.checkpoint, message.checkpoint)
            order.tries = 1
        self.inbox[order.id].append(message)
        await self._notify()

    async def blame(self, lane: str, reason: str) -> None:
        """Note why workers of a lane end, which may be only that another one of them was lost."""
        if lane in self.held:
            self.held[lane].reason = reason
        await self._notify()

    async def again(self, lane: str) -> None:
        """Say that what a lane holds is to be tried once more, in another way than before: its tries begin anew."""
        if lane in self.held:
            self.held[lane].tries = 0
        await self._notify()

    async def messages(self, order: str) -> list[Message]:
        """Return an order's messages since the last call, as soon as there are some."""
        async with self.changed:
            await self.changed.wait_for(lambda: self.inbox[order])
            taken, self.inbox[order] = self.inbox[order], []
        return taken

    async def state(self) -> dict[str, Any]:
        """Return what is queued, expected and held, and a counter that moves with every change."""
        return {
            "queued": {shape: len(queue) for shape, queue in self.queues.items()},
            "expected": {shape: count for shape, count in self.expected.items() if shape not in self.broken},
            "held": {lane: order.id for lane, order in self.held.items()},
            "served": set(self.served),
            "begun": set(self.begun),
            "groups": dict(self.groups),
            "progress": self.progress,
        }

    async def starve(self, starving: bool, leaving: list[str]) -> None:
        """Say whether a shape has orders and no room: then idle lanes end, and ``leaving`` ones after their order."""
        if starving != self.starving or not self.leaving.issuperset(leaving):
            self.starving = starving
            self.leaving.update(leaving)
            await self._notify()

    async def lost(self, lane: str, shape: Shape, reason: str) -> None:
        """Say that a lane is gone: another takes up what it had, or that failed when it was tried often enough."""
        if lane not in self.held:
            return
        order = self.held[lane]
        if self.stopping:
            await self.tell(lane, Message("stopped"))
        elif order.tries >= TRIES:
            await self.tell(lane, Message("failed", reason))
        else:
            del self.held[lane]
            self.queues[shape].appendleft(order)
            await self._notify()

    async def break_shape(self, shape: Shape, reason: str) -> None:
        """Say that no lane of a shape can be started: what is queued for it, and what will come, fails."""
        self.broken[shape] = reason
        self._refuse(shape, Message("failed", reason))
        await self._notify()

    async def stop(self) -> None:
        """Give out nothing more: the run should end."""
        self.stopping = True
        for shape in self.queues:
            self._refuse(shape, Message("stopped"))
        await self._notify()

    def _refuse(self, shape: Shape, message: Message) -> None:
        while self.queues[shape]:
            self.inbox[self.queues[shape].popleft().id].append(message)
