"""The two meeting points of a run: orders between trials and lanes, cells between trials and scorers.

Both are actors that hold no resource. Orders and cells pass through as bytes, so that these processes import nothing
heavy.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import ray

TRIES = 3  # times an order is given out before it counts as what kills its workers


class Shape(NamedTuple):
    """What a lane is made of: workers, and the CPUs and GPUs that each holds."""

    workers: int
    cpus: float
    gpus: float

    def needs(self) -> dict[str, float]:
        """Return the lane's resources in total."""
        return {"CPU": self.workers * self.cpus, "GPU": self.workers * self.gpus}

    def __str__(self) -> str:
        return f"{self.workers} x {f'{self.gpus:g} GPU' if self.gpus else f'{self.cpus:g} CPU'}"


@dataclass(frozen=True)
class Message:
    """What a lane says of an order: ``event`` (its content pickled), ``done``, or ``failed`` (with the reason)."""

    kind: str
    content: Any = None


class _Pool:
    """Waiting for a change of state, in an asynchronous actor."""

    def __init__(self) -> None:
        self.changed = asyncio.Condition()
        self.progress = 0

    async def _notify(self) -> None:
        self.progress += 1
        async with self.changed:
            self.changed.notify_all()


@ray.remote(num_cpus=0)
class LanePool(_Pool):
    """Orders between trials and lanes.

    An order is the lane's until it says done or failed. A lane that asks again while it has one was restarted, so it
    gets the same again, at most ``TRIES`` times.

    Args:
        expected: how many orders of each shape will come; a lane stays while more of its shape may come, unless
            another shape has orders and no room.
    """

    def __init__(self, expected: Mapping[Shape, int]):
        super().__init__()
        self.expected = Counter(expected)
        self.queues: dict[Shape, deque[tuple[str, bytes]]] = {shape: deque() for shape in expected}
        self.held: dict[str, tuple[str, bytes, int]] = {}
        self.inbox: dict[str, list[Message]] = {}
        self.served: set[str] = set()
        self.leaving: set[str] = set()
        self.starving = False
        self.broken: dict[Shape, str] = {}

    async def submit(self, shape: Shape, order: str, data: bytes) -> None:
        """Take an order of a trial, by its id."""
        self.expected[shape] -= 1
        self.inbox[order] = []
        if shape in self.broken:
            self.inbox[order].append(Message("failed", self.broken[shape]))
        else:
            self.queues[shape].append((order, data))
        await self._notify()

    async def skip(self, shape: Shape) -> None:
        """Say that an expected order will not come."""
        self.expected[shape] -= 1
        await self._notify()

    async def next(self, lane: str, shape: Shape) -> bytes | None:
        """Return the lane's next order, as soon as there is one; None when it should end."""
        if lane in self.held:
            order, data, tries = self.held[lane]
            if tries < TRIES:
                self.held[lane] = (order, data, tries + 1)
                return data
            await self.tell(lane, Message("failed", f"its workers died {TRIES} times"))
        async with self.changed:
            while (
                not self.queues[shape] and self.expected[shape] > 0 and lane not in self.leaving and not self.starving
            ):
                await self.changed.wait()
            if lane in self.leaving or not self.queues[shape]:
                return None
            order, data = self.queues[shape].popleft()
            self.held[lane] = (order, data, 1)
            self.served.add(lane)
        return data

    async def tell(self, lane: str, message: Message) -> None:
        """Pass on what a lane says of the order that it holds."""
        if lane not in self.held:
            return
        order = self.held[lane][0]
        if message.kind != "event":
            del self.held[lane]
        self.inbox[order].append(message)
        await self._notify()

    async def messages(self, order: str) -> list[Message]:
        """Return an order's messages since the last call, as soon as there are some."""
        async with self.changed:
            while not self.inbox[order]:
                await self.changed.wait()
            taken, self.inbox[order] = self.inbox[order], []
        return taken

    async def state(self) -> dict[str, Any]:
        """Return what is queued, expected and held, and a counter that moves with every change."""
        return {
            "queued": {shape: len(queue) for shape, queue in self.queues.items()},
            "expected": dict(self.expected),
            "held": {lane: order for lane, (order, _, _) in self.held.items()},
            "served": set(self.served),
            "progress": self.progress,
        }

    async def starve(self, starving: bool, leaving: list[str]) -> None:
        """Say whether a shape has orders and no room: then idle lanes end, and ``leaving`` ones after their order."""
        if starving != self.starving or not self.leaving.issuperset(leaving):
            self.starving = starving
            self.leaving.update(leaving)
            await self._notify()

    async def lost(self, lane: str, reason: str) -> None:
        """Say that a lane is gone: the order it held failed."""
        await self.tell(lane, Message("failed", reason))

    async def break_shape(self, shape: Shape, reason: str) -> None:
        """Say that no lane of a shape can be started: what is queued for it, and what will come, fails."""
        self.broken[shape] = reason
        while self.queues[shape]:
            self.inbox[self.queues[shape].popleft()[0]].append(Message("failed", reason))
        await self._notify()


@ray.remote(num_cpus=0)
class CellQueue(_Pool):
    """Cells between trials and scorers. One is given out until it is acknowledged, so a retried reader loses none."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: deque[tuple[str, bytes]] = deque()
        self.out: dict[str, bytes] = {}
        self.closed = False

    async def put(self, cells: list[tuple[str, bytes]]) -> None:
        """Add cells, by their ids."""
        self.waiting.extend(cells)
        await self._notify()

    async def close(self) -> None:
        """Say that no more cells come."""
        self.closed = True
        await self._notify()

    async def take(self) -> tuple[str, bytes] | None:
        """Return a cell as soon as there is one; None when there will be no more."""
        async with self.changed:
            while not self.waiting and not self.closed:
                await self.changed.wait()
            if not self.waiting:
                return None
            cell, data = self.waiting.popleft()
            self.out[cell] = data
        return cell, data

    async def again(self) -> None:
        """Put what was given out and not acknowledged back in front: a reader begins anew."""
        self.waiting.extendleft(reversed(self.out.items()))
        self.out.clear()
        await self._notify()

    async def acknowledge(self, cell: str) -> None:
        """Say that a cell has its record."""
        self.out.pop(cell, None)
        await self._notify()

    async def state(self) -> dict[str, Any]:
        """Return what waits, what is given out, and a counter that moves with every change."""
        return {"waiting": len(self.waiting), "out": list(self.out), "closed": self.closed, "progress": self.progress}


@ray.remote(num_cpus=0)
class Relay(_Pool):
    """What trials tell the run that started them, as bytes, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[bytes] = []
        self.closed = False

    async def tell(self, happening: bytes) -> None:
        """Pass on what happened."""
        self.told.append(happening)
        await self._notify()

    async def close(self) -> None:
        """Say that nothing more will happen."""
        self.closed = True
        await self._notify()

    async def take(self) -> list[bytes] | None:
        """Return what happened since the last call, as soon as something has; None at the end."""
        async with self.changed:
            while not self.told and not self.closed:
                await self.changed.wait()
            taken, self.told = self.told, []
        return taken or None
