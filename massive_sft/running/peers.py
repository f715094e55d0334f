"""Other runs on the same root: what they hold is waited for at the end, and taken over when they die.

A run never waits while it holds anything: first it does what it can, then it looks after what it had to skip.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

from massive_sft.core.wording import counted
from massive_sft.ledger.index import Entry
from massive_sft.ledger.lease import Lease, LeaseWatch, read_lease, this_process
from massive_sft.ledger.record import Revision, Status
from massive_sft.ledger.store import Ledger
from massive_sft.planning.outcome import as_asked
from massive_sft.planning.plan import CellPlan, Plan
from massive_sft.planning.requirements import find_unmet
from massive_sft.running.events import CellRecorded, CellSkipped, Listen, RunEvent
from massive_sft.running.trial import retain
from massive_sft.running.work import WorkSource

POLL_S = 1.0  # seconds between looks at what others hold


def requirements_left(plan: Plan) -> dict[str, tuple[str, ...]]:
    """Return what a plan asks of each cell that is not done, as ``ledger.run_requirements`` takes it."""
    return {cell.cell.id: tuple(item.id for item in cell.unmet) for cell in plan.cells if not cell.is_done}


def run_with_peers(
    plan: Plan,
    ledger: Ledger,
    run_plan: Callable[[Plan, Listen, WorkSource | None], None],
    listen: Listen,
    say: Callable[[str], None],
    stop: Callable[[], bool],
    work: WorkSource | None = None,
) -> None:
    """Do a plan; then see to what of it another run held: wait until it is done, or do it once nobody holds it.

    A failure of the other run counts as the outcome, as one of this run would.

    Args:
        run_plan: does a plan, and reports each event.
        listen: called with each event, of this run and of these cells in the others.
        say: called with who is waited for.
        stop: whether to end early.
        work: gives the trainings, where others than the plan's may come; what it gives it looks after by itself.
    """
    others = _Peers(plan, ledger, listen, say)
    run_plan(plan, others.on_event, work)
    while others.held and not stop():
        free = others.poll()
        if free:
            run_plan(_restricted(plan, free), others.on_event, None)
        else:
            time.sleep(POLL_S)
    for run in plan.runs:
        if others.seen.intersection(cell.cell.id for cell in run.cells):
            retain(run, plan.sweep.file.storage.keep_snapshots, ledger)


@dataclass
class _Peers:
    """What other runs hold of a plan.

    Attributes:
        held: by cell, the revision of its newest record when it had to be skipped.
        seen: all cells that were ever held.
    """

    plan: Plan
    ledger: Ledger
    listen: Listen
    say: Callable[[str], None]
    held: dict[str, Revision] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)
    _watch: LeaseWatch = field(default_factory=LeaseWatch)
    _announced: frozenset[str] = frozenset()

    @cached_property
    def planned(self) -> frozenset[str]:
        """The cells of the plan."""
        return frozenset(cell.cell.id for cell in self.plan.cells)

    def on_event(self, event: RunEvent) -> None:
        """Take note of what is skipped; pass everything on."""
        if isinstance(event, CellSkipped):
            cells = self.planned.intersection(event.cells)
            entries = self.ledger.entries(cells)
            self.held |= {cell: entries[cell].revision if cell in entries else Revision() for cell in cells}
            self.seen.update(cells)
        self.listen(event)

    def poll(self) -> list[CellPlan]:
        """Return, and hold no longer, the cells that nobody works on and that are not done; forget those that are."""
        entries = self.ledger.entries(self.held)
        free, holders = [], set()
        for cell in [cell for cell in self.plan.cells if cell.cell.id in self.held]:
            now = _refreshed(cell, entries.get(cell.cell.id))
            if now.is_done or self._failed(cell.cell.id, entries):
                self._report(cell)
            elif names := set(self._holders(cell)):
                holders |= names
                continue
            else:
                free.append(now)
            del self.held[cell.cell.id]
        if holders and holders != self._announced:
            self._announced = frozenset(holders)
            self.say(f"waits for {counted(len(self.held), 'cell')} that {' and '.join(sorted(holders))} works on")
        return free

    def _failed(self, cell: str, entries: dict[str, Entry]) -> bool:
        entry = entries.get(cell)
        return entry is not None and entry.status is Status.FAILED and entry.revision > self.held[cell]

    def _report(self, cell: CellPlan) -> None:
        record = self.ledger.read_record(cell.cell.id)
        if record is not None:
            self.listen(CellRecorded(cell.cell, as_asked(record, cell.with_record(record), self.ledger)))

    def _holders(self, cell: CellPlan) -> Iterator[str]:
        """Yield who holds a cell or its training. A lease that its owner left standing is given back in its name."""
        homes = [self.ledger.cell_dir(cell.cell.id)]
        homes += [self.ledger.trajectory_dir(cell.cell.recipe.id)] if cell.cell.recipe else []
        for lease in map(self.ledger.lease_of, homes):
            seen = read_lease(lease)
            if seen is None or seen.released or seen.owner_is_gone():
                continue
            taken = Lease.acquire(lease, this_process(), self._watch) if self._watch.may_be_taken(lease, seen) else None
            if taken is None:
                yield str(seen.owner.get("name", "another run"))
            else:
                taken.release()


def _refreshed(cell: CellPlan, entry: Entry | None) -> CellPlan:
    if entry is None:
        return cell
    return replace(cell, recorded=entry.status, unmet=find_unmet(cell.requirements, entry.status, entry.answers))


def _restricted(plan: Plan, cells: Collection[CellPlan]) -> Plan:
    """Return the plan with these cells alone, as they are now, and the runs that have one."""
    by_id = {cell.cell.id: cell for cell in cells}

    def of(known: tuple[CellPlan, ...]) -> tuple[CellPlan, ...]:
        return tuple(by_id[cell.cell.id] for cell in known if cell.cell.id in by_id)

    runs = (replace(run, cells=of(run.cells)) for run in plan.runs)
    return replace(plan, runs=tuple(run for run in runs if run.cells), base=of(plan.base))
