"""The meeting point of trials and scorers: cells to score."""

from __future__ import annotations

import pickle
from collections import deque
from typing import Any

import ray

from massive_sft.planning.plan import CellPlan, RunPlan
from massive_sft.scheduling.pool import STARTS, Pool


def cell_bytes(cell: CellPlan, run: RunPlan | None) -> tuple[str, bytes]:
    """Return a cell as the queue takes it."""
    return cell.cell.id, pickle.dumps((cell, run))


@ray.remote(num_cpus=0)
class CellQueue(Pool):
    """Cells between trials and scorers. One is given out until it is acknowledged, so a retried reader loses none."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: deque[tuple[str, bytes]] = deque()
        self.out: dict[str, bytes] = {}
        self.reader = 0
        self.entered = 0
        self.closed = False

    async def enter(self, scorers: int) -> bool:
        """Say that one of so many scorers is up, before it imports anything; return whether it is to go on.

        It is not when as many as ``STARTS`` for each died before it was ``ready``: so would this one.
        """
        self.entered += 1
        return self.entered <= STARTS * scorers

    async def ready(self) -> None:
        """Say that a scorer has imported all it needs."""
        self.entered = 0
        await self._notify()

    async def put(self, cells: list[tuple[str, bytes]]) -> None:
        """Add cells, by their ids."""
        self.waiting.extend(cells)
        await self._notify()

    async def close(self) -> None:
        """Say that no more cells come."""
        self.closed = True
        await self._notify()

    async def stop(self) -> None:
        """Give out nothing more: the run should end."""
        self.stopping = self.closed = True
        self.waiting.clear()
        await self._notify()

    async def take(self, reader: int) -> tuple[str, bytes] | None:
        """Return a cell as soon as there is one; None when there will be no more for this reader."""
        async with self.changed:
            await self.changed.wait_for(lambda: self.waiting or self.closed or reader != self.reader)
            if not self.waiting or reader != self.reader:
                return None
            cell, data = self.waiting.popleft()
            self.out[cell] = data
        return cell, data

    async def again(self) -> int:
        """Put what was given out and not acknowledged back in front, for a reader that begins anew; return its number.

        What an earlier one still asks for, it is no more there to take.
        """
        self.reader += 1
        self.waiting.extendleft(reversed(self.out.items()))
        self.out.clear()
        await self._notify()
        return self.reader

    async def acknowledge(self, cell: str) -> None:
        """Say that a cell has its record."""
        self.out.pop(cell, None)
        await self._notify()

    async def state(self) -> dict[str, Any]:
        """Return what waits, is given out and is begun, and a counter that moves with every change."""
        return {
            "waiting": len(self.waiting),
            "out": list(self.out),
            "begun": set(self.begun),
            "closed": self.closed,
            "entered": self.entered,
            "progress": self.progress,
        }
