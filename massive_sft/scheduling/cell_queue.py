"""The meeting point of trials and scorers: cells to score, and what became of them."""

from __future__ import annotations

import bisect
import pickle
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import ray

from massive_sft.planning.plan import CellPlan, RunPlan
from massive_sft.scheduling.node_health import STARTS
from massive_sft.scheduling.pool import Pool

JUDGES = "judges"  # has cells in the place of a group of scorers


def cell_bytes(cell: CellPlan, run: RunPlan | None) -> tuple[str, bytes]:
    """Return a cell as the queue takes it."""
    return cell.cell.id, pickle.dumps((cell, run))


@dataclass(frozen=True)
class _Waiting:
    """A cell in the queue: its id, its pickle, where it stands, and what it is estimated to take."""

    id: str
    data: bytes
    place: tuple[float, float, int]
    seconds: float
    size_bytes: float


@ray.remote(num_cpus=0)
class CellQueue(Pool):
    """Cells between trials and scorers.

    A group of scorers has a reader that takes cells for it. A cell is given out until it is acknowledged; until a
    scorer has begun it, it waits. A group has no more cells than scorers. What a lost group had waits again; but what
    its scorers had begun is given out only once it is ``released``, for they may still hold it in the ledger.

    A group rather gets a cell of the base model that its free scorer has in memory, where one of equal priority waits
    that is not less than half as long as the first.

    Args:
        keeps_records: whether somebody will ask for ``outcomes``.
        estimates: seconds of a cell and bytes of its snapshot, by its id, where they are known.
        bases: what tells a cell's base model from others, by its id, where it is known.
    """

    def __init__(
        self,
        keeps_records: bool = False,
        estimates: Mapping[str, tuple[float, float]] = MappingProxyType({}),
        bases: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self.estimates = estimates
        self.bases = bases
        self.warm: dict[str, str | None] = {}  # by group: the base of the cell that it finished last
        self.promised: dict[str, str] = {}  # by group: the cell that it was told is next
        self.keeps_records = keeps_records
        self.waiting: list[_Waiting] = []
        self.out: dict[str, tuple[str, _Waiting]] = {}  # by cell: the group that has it
        self.scorers: dict[str, str] = {}  # that began each cell last
        self.lost_cells: dict[str, _Waiting] = {}
        self.deaths: Counter[str] = Counter()  # of scorers, by cell
        self.readers: Counter[str] = Counter()
        self.entered: Counter[str] = Counter()
        self.leaving: set[str] = set()
        self.records: dict[str, bytes] = {}
        self.added = 0
        self.closed = False

    async def enter(self, group: str, scorers: int) -> bool:
        """Say that one of a group of scorers is up, before it imports anything; return whether it is to go on.

        It is not when as many as ``STARTS`` for each died before one was ``ready``: so would this one.
        """
        self.entered[group] += 1
        await self._notify()
        return self.entered[group] <= STARTS * scorers

    async def ready(self, group: str) -> None:
        """Say that a scorer has imported all it needs."""
        self.entered[group] = 0
        await self._notify()

    async def put(self, cells: list[tuple[str, bytes]], priority: float = 0.0) -> None:
        """Add cells, by their ids; those of higher priority are given out first, then the longer, then the older."""
        for cell, data in cells:
            self.added += 1
            seconds, size_bytes = self.estimates.get(cell, (0.0, 0.0))
            waiting = _Waiting(cell, data, (-priority, -seconds, self.added), seconds, size_bytes)
            bisect.insort(self.waiting, waiting, key=lambda each: each.place)
        await self._notify()

    async def close(self) -> None:
        """Say that no more cells come."""
        self.closed = True
        await self._notify()

    async def stop(self) -> None:
        """Give out nothing more: the run should end."""
        self.stopping = self.closed = True
        self.waiting.clear()
        self.lost_cells.clear()
        await self._notify()

    async def leave(self, groups: Collection[str]) -> None:
        """Say that groups of scorers take no more cells."""
        if not self.leaving.issuperset(groups):
            self.leaving.update(groups)
            for group in groups:
                self.promised.pop(group, None)
            await self._notify()

    async def take(self, group: str, reader: int, scorers: int = 1) -> tuple[str, bytes] | None:
        """Return a cell as soon as there is one and the group has fewer than scorers; None when it gets no more."""

        def is_free() -> bool:
            return sum(owner == group for owner, _ in self.out.values()) < scorers

        async with self.changed:
            await self.changed.wait_for(
                lambda: (is_free() if self.waiting else self.closed) or self._is_dismissed(group, reader)
            )
            if not self.waiting or self._is_dismissed(group, reader):
                return None
            cell = self.waiting.pop(self._choose(group))
            self.promised.pop(group, None)
            self.out[cell.id] = (group, cell)
        return cell.id, cell.data

    async def upcoming(self, group: str) -> bytes | None:
        """Return the cell that a group will probably get next, once there is one; None when it gets no more.

        It is left to the group as long as there are others.
        """
        async with self.changed:
            await self.changed.wait_for(lambda: self.waiting or self.closed or group in self.leaving)
            if not self.waiting or group in self.leaving:
                return None
            cell = self.waiting[self._choose(group)]
            self.promised[group] = cell.id
            return cell.data

    def _choose(self, group: str) -> int:
        """Return the place of the waiting cell that a group gets."""
        first, base, own = self.waiting[0], self.warm.get(group), self.promised.get(group)
        others = {cell for owner, cell in self.promised.items() if owner != group}
        found: dict[str, int] = {}
        for place, cell in enumerate(self.waiting):
            if cell.place[0] > first.place[0] or cell.seconds < first.seconds / 2:
                break  # so are all after it
            if cell.id == own:
                return place
            if cell.id not in others:
                found.setdefault("base" if self.bases.get(cell.id, "") == base else "other", place)
        return found.get("base", found.get("other", 0))

    def _is_dismissed(self, group: str, reader: int) -> bool:
        return group in self.leaving or reader != self.readers[group]

    async def again(self, group: str) -> int:
        """Put what a group has and did not acknowledge back, for a reader that begins anew; return its number.

        What an earlier one still asks for, it is no more there to take.
        """
        await self._take_back(group)
        return self.readers[group]

    async def begin(self, work: str, scorer: str = "") -> bool:
        """Say that a scorer begins a cell; return whether it should."""
        self.scorers[work] = scorer
        return await super().begin(work)

    async def died(self, group: str, scorer: str = "") -> None:
        """Say that a group is no more there because one of its scorers died.

        Args:
            scorer: which of them; empty where that is not known, so that it may be any.
        """
        begun = [cell for cell, (owner, _) in self.out.items() if owner == group and cell in self.begun]
        self.deaths.update(cell for cell in begun if scorer in ("", self.scorers[cell]))
        await self.lost(group)

    async def lost(self, group: str) -> None:
        """Say that a group is no more there."""
        self.leaving.add(group)
        self.promised.pop(group, None)
        self.lost_cells |= {
            cell.id: cell for owner, cell in self.out.values() if owner == group and cell.id in self.begun
        }
        await self._take_back(group)

    async def release(self, cell: str) -> None:
        """Put a cell of a lost group back, for nobody holds it any more."""
        if cell in self.lost_cells:
            self._wait_again(self.lost_cells.pop(cell))
            await self._notify()

    async def data_of(self, cell: str) -> bytes | None:
        """Return a cell of a lost group as it was put; None when something became of it meanwhile."""
        return self.lost_cells[cell].data if cell in self.lost_cells else None

    async def _take_back(self, group: str) -> None:
        self.readers[group] += 1
        for cell in [cell for owner, cell in self.out.values() if owner == group]:
            del self.out[cell.id]
            self.begun.discard(cell.id)
            if cell.id not in self.lost_cells:
                self._wait_again(cell)
        await self._notify()

    def _wait_again(self, cell: _Waiting) -> None:
        if not self.stopping:
            bisect.insort(self.waiting, cell, key=lambda each: each.place)

    async def acknowledge(self, cell: str, record: bytes = b"") -> None:
        """Say that something became of a cell that was given out; ``record`` is the event that says which record."""
        if cell in self.out:
            self.warm[self.out.pop(cell)[0]] = self.bases.get(cell)
        self.lost_cells.pop(cell, None)
        if self.keeps_records:
            self.records[cell] = record or self.records.get(cell, b"")
        await self._notify()

    async def hand_on(self, cell: str) -> None:
        """Say that verdicts are all that a cell lacks: its scorer is free, and it is out until it is acknowledged."""
        if cell in self.out:
            group, given = self.out[cell]
            self.warm[group] = self.bases.get(cell)
            self.out[cell] = JUDGES, given
        await self._notify()

    async def outcomes(self, cells: list[str]) -> list[bytes]:
        """Return the records of cells, as events, once something became of each; nothing of those that have none."""
        async with self.changed:
            await self.changed.wait_for(lambda: self.stopping or all(cell in self.records for cell in cells))
        return [self.records[cell] for cell in cells if self.records.get(cell)]

    async def state(self) -> dict[str, Any]:
        """Return what waits, is given out and is begun, and a counter that moves with every change.

        ``judging`` are the cells that wait for verdicts, which is what they lack. ``lost`` are those that scorers of
        lost groups had begun, with how many of these each of them cost; they are ``out`` of no group.
        """
        return {
            "waiting": len(self.waiting),
            "seconds": sum(cell.seconds for cell in self.waiting),
            "size_bytes": sum(cell.size_bytes for cell in self.waiting),
            "out": {cell: group for cell, (group, _) in self.out.items()} | dict.fromkeys(self.lost_cells, ""),
            "judging": {cell for cell, (group, _) in self.out.items() if group == JUDGES},
            "lost": {cell: self.deaths[cell] for cell in self.lost_cells},
            "begun": set(self.begun),
            "closed": self.closed,
            "entered": dict(self.entered),
            "progress": self.progress,
        }
