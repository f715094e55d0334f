"""Orders on their way from trials: what is expected, what is queued for which shape, what trials hear of theirs."""

from __future__ import annotations

import bisect
from collections import Counter, defaultdict
from collections.abc import Mapping

from massive_sft.scheduling.nodes import Shape
from massive_sft.scheduling.orders import Message, QueuedOrder
from massive_sft.scheduling.pool import Pool


class OrderQueue(Pool):
    """What trials and the run say of orders, in an asynchronous actor.

    Args:
        expected: how many orders of each shape will come.
        grows: whether other orders may come until ``close``.
    """

    def __init__(self, expected: Mapping[Shape, int], grows: bool = False):
        super().__init__()
        self.grows = grows
        self.assigned: dict[str, bytes] = {}
        self.met: set[str] = set()  # trials that have come for it
        self.expected = Counter(expected)
        self.queues: defaultdict[Shape, list[QueuedOrder]] = defaultdict(list, {shape: [] for shape in expected})
        self.orders: dict[str, QueuedOrder] = {}
        self.submitted: set[str] = set()  # or skipped: expected no more
        self.taken = 0  # orders, for their places
        self.broken: dict[Shape, str] = {}

    # Trials

    async def assign(self, trial: str, data: bytes, unexpected: Shape | None = None) -> None:
        """Keep what a trial has to do until it ends.

        Args:
            unexpected: the shape of its order, where that was not expected.
        """
        self.assigned[trial] = data
        self.submitted.discard(trial)  # more of a trajectory is another order
        if unexpected is not None:
            self.expected[unexpected] += 1
        await self._notify()

    async def close(self) -> None:
        """Say that no other orders come than those that are expected."""
        self.grows = False
        await self._notify()

    async def take_up(self, trial: str) -> bytes | None:
        """Say that a trial begins; return what it has to do, or None when the run should end."""
        self.met.add(trial)
        return self.assigned.get(trial) if await self.begin(trial) else None

    async def end(self, work: str) -> None:
        """Say that a trial is over."""
        self.assigned.pop(work, None)
        await super().end(work)

    async def submit(self, shape: Shape, order: str, data: bytes, priority: float = 0.0) -> None:
        """Take an order of a trial, by its id; those of higher priority are given out first, then the older ones.

        An order of the same id is one whose trial died: a lane that still has it ends it, and is not heard any more.
        """
        taken = QueuedOrder(order, shape, data, priority, self.taken)
        self.queues[shape] = [each for each in self.queues[shape] if each.id != order]
        self.taken += 1
        if order not in self.submitted:
            self.expected[shape] -= 1
            self.submitted.add(order)
        self.orders[order] = taken
        if self.stopping:
            taken.messages.append(Message("stopped"))
        elif shape in self.broken:
            taken.messages.append(Message("failed", self.broken[shape]))
        else:
            bisect.insort(self.queues[shape], taken, key=lambda each: each.place)
        await self._notify()

    async def skip(self, shape: Shape, order: str) -> None:
        """Say that an expected order will not come, or not any more: a lane that has it ends it."""
        if order not in self.submitted:
            self.expected[shape] -= 1
            self.submitted.add(order)
        self.queues[shape] = [each for each in self.queues[shape] if each.id != order]
        self.orders.pop(order, None)
        await self._notify()

    async def messages(self, order: str) -> list[Message]:
        """Return an order's messages since the last call, as soon as there are some."""
        taken = self.orders[order]
        async with self.changed:
            await self.changed.wait_for(lambda: taken.messages or self.orders.get(order) is not taken)
            messages, taken.messages = taken.messages, []
        return messages

    # The run

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
        for order in self.queues[shape]:
            order.messages.append(message)
        self.queues[shape].clear()
