"""What the meeting points of a run share: waiting for a change of state, and who is at work.

Each of them is an asynchronous actor that holds no resource. What is passed through it is bytes, so that its process
imports nothing heavy.
"""

from __future__ import annotations

import asyncio

# Calls that an actor of a run takes at a time; most of them wait. Ray's own limit, 1,000, is that of 500 lanes.
MAX_CONCURRENCY = 100_000


class Pool:
    """Waiting for a change of state, and who is at work, in an asynchronous actor."""

    def __init__(self) -> None:
        self.changed = asyncio.Condition()
        self.progress = 0
        self.stopping = False
        self.begun: set[str] = set()

    async def _notify(self) -> None:
        self.progress += 1
        async with self.changed:
            self.changed.notify_all()

    async def stopped(self) -> None:
        """Return once the run should end."""
        async with self.changed:
            await self.changed.wait_for(lambda: self.stopping)

    async def begin(self, work: str) -> bool:
        """Say that somebody begins with something; return whether they should, which they should not at the end."""
        if not self.stopping:
            self.begun.add(work)
            await self._notify()
        return not self.stopping

    async def end(self, work: str) -> None:
        """Say that somebody has left what they began, or should not begin."""
        self.begun.discard(work)
        await self._notify()
