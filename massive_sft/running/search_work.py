"""Searches as a source of trainings: each decision becomes one as soon as it is written."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from massive_sft.core.errors import LeaseLost
from massive_sft.cost.gpu_counts import with_gpu_counts
from massive_sft.ledger.attempt import KEPT
from massive_sft.ledger.last_plan import sweeps_keeping_state
from massive_sft.ledger.lease import this_process
from massive_sft.ledger.store import Ledger
from massive_sft.planning.plan import Plan, RunPlan
from massive_sft.running.events import CellRecorded, CellSkipped, Decided, Listen, RunEvent
from massive_sft.search.decider import Decider
from massive_sft.search.plan import Planned, make_whole_plan, plan_points, plan_searches
from massive_sft.search.rules import Decision, trained_of
from massive_sft.search.view import decision_line, stale_text

LOOK_S = 2.0  # seconds between looks at what other runs on the root have decided and done


def with_first_decisions(plan: Plan, say: Callable[[str], None] = lambda _: None) -> Plan:
    """Decide what the searches of a sweep can decide before anything is trained; return the plan with it.

    Nothing is decided while files are missing or revisions are no commits, for then ids are provisional.
    Where another process has the right to decide, or died with it a minute ago, and nothing is to be done, it waits.

    Args:
        say: told who is waited for.
    """
    searches = () if plan.missing or plan.unpinned else plan_searches(plan.sweep)
    if not searches:
        return plan
    ledger = plan.open_ledger()
    deciders = {one.search.name: Decider.of(one, ledger) for one in searches}
    is_told = False
    while True:
        waits = [name for name, decider in deciders.items() if not _decides_first(decider)]
        whole = make_whole_plan(plan.sweep, Ledger.states)
        if not waits or not all(cell.is_done for cell in whole.cells):
            return whole
        if not is_told:
            say(f"search {', '.join(waits)}: another run decides, or died just now; this one waits for something to do")
        is_told = True
        time.sleep(LOOK_S)


def _decides_first(decider: Decider) -> bool:
    """Decide what can be decided now; return whether it could, or the search is over."""
    try:
        if decider.lead():
            decider.advance()
            return True
    except LeaseLost:
        pass  # somebody else decides by now
    finally:
        decider.release()
    decider.look()
    return decider.is_over


@dataclass
class _Search:
    """A search of the run.

    Attributes:
        given: decisions whose trainings were given out, by the cell that they wait for.
        seen: how many decisions were looked at.
    """

    planned: Planned
    decider: Decider
    given: dict[str, Decision] = field(default_factory=dict)
    seen: int = 0


class SearchWork:
    """What a plan leaves, then whatever its searches decide.

    One process decides for a search. The others on the root see its decisions, help with what nobody works on, and
    one of them takes over when it is gone.

    Args:
        plan: of the sweep, with its first decisions.
        listen: told of each decision.
        say: told who decides.
    """

    grows = True

    def __init__(self, plan: Plan, ledger: Ledger, listen: Listen, say: Callable[[str], None]):
        self._plan, self._ledger, self._listen, self._say = plan, ledger, listen, say
        self._searches = [_Search(one, Decider.of(one, ledger)) for one in plan_searches(plan.sweep)]
        self.known: Sequence[RunPlan] = tuple(sorted(plan.todo, key=lambda run: not self._is_searched(run)))
        self._left = deque(self.known)
        self._hand = {cell.cell.id for run in self.known for cell in run.cells}  # cells that somebody here has
        self._looked_s = float("-inf")
        self._said: set[str] = set()
        for search in self._searches:
            search.decider.look()
            search.seen = len(search.decider.entries)

    def _is_searched(self, run: RunPlan) -> bool:
        names = {search.planned.search.name for search in self._searches}
        return any(names.intersection(cell.cell.blocks) for cell in run.cells)

    def next(self) -> tuple[RunPlan, float] | None:
        """As ``WorkSource.next``: trainings of searches go first, for the next decision may wait for them."""
        if not self._left and time.monotonic() - self._looked_s >= LOOK_S:
            self._look()
        if not self._left:
            return None
        run = self._left.popleft()
        return run, float(self._is_searched(run))

    def told(self, event: CellRecorded) -> None:
        """As ``WorkSource.told``."""
        self._hand.discard(event.cell.id)
        self._looked_s = float("-inf")

    def hear(self, event: RunEvent) -> None:
        """Take note of what others work on: it is looked after until they are done, or gone."""
        if isinstance(event, CellSkipped):
            self._hand.difference_update(event.cells)

    def is_exhausted(self) -> bool:
        """As ``WorkSource.is_exhausted``."""
        return not self._left and all(self._is_done(one) for one in self._searches)

    def _is_done(self, search: _Search) -> bool:
        """Whether a search is over, or whatever it waits for needs a run with ``--retrain``."""
        left = search.decider.left()
        if not left:
            return search.decider.is_over
        has_looked = self._looked_s > float("-inf")  # since the last record
        return has_looked and all(self._waits(search, entry) for entry in left)

    def _waits(self, search: _Search, entry: Decision) -> bool:
        """Whether nobody here works on a decision's cell, for its weights are gone."""
        return entry["cell"] not in self._hand and search.decider.needs_retraining(entry)

    def close(self) -> None:
        """Give the right to decide back."""
        for search in self._searches:
            with suppress(OSError):
                search.decider.release()

    def _look(self) -> None:
        """Decide what can be decided; queue what is decided and in nobody's hands."""
        self._looked_s = time.monotonic()
        for search in self._searches:
            self._decide(search)
            fresh = search.decider.entries[search.seen :]
            search.seen += len(fresh)
            self._queue(search, fresh, [entry for entry in search.decider.left() if entry not in fresh])

    def _decide(self, search: _Search) -> None:
        name = search.planned.search.name
        try:
            if search.decider.lead():
                search.decider.advance()
                self._tell_stale(search)
                return
        except LeaseLost as error:
            search.decider.release()
            self._say(f"search {name}: {error}")
        search.decider.look()
        if name not in self._said:
            self._said.add(name)
            self._say(f"search {name}: another run decides; this one helps with what it decided")

    def _tell_stale(self, search: _Search) -> None:
        stale, key = search.decider.stale(), f"stale {search.planned.search.name}"
        if stale and key not in self._said:
            self._said.add(key)
            self._say(f"search {search.planned.search.name}: {stale_text(stale)}")

    def _queue(self, search: _Search, fresh: Sequence[Decision], left: Sequence[Decision]) -> None:
        """Queue the trainings of new decisions, and of older ones that have no outcome and nobody's care."""
        asked = trained_of(fresh)
        for entry in fresh:
            if entry["kind"] == "drop":
                self._drop(search, entry["trial"])
        idle = [entry for entry in left if entry["cell"] not in self._hand and not self._waits(search, entry)]
        again = [entry for entry in idle if self._is_free(search, entry)]
        if not (fresh or again):
            return
        plan = with_gpu_counts(plan_points(self._plan.sweep, [search.planned.point(one) for one in (*asked, *again)]))
        lines = tuple(decision_line(entry, search.planned.named(entry)) for entry in fresh)
        self._listen(Decided(search.planned.search.name, tuple(fresh), lines, plan))
        for run in plan.todo:
            self._hand.update(cell.cell.id for cell in run.cells)
            self._left.append(run)

    def _drop(self, search: _Search, trial: int) -> None:
        """Remove what a parked training could go on from, unless another sweep keeps it or somebody works on it."""
        trajectory = search.planned.trajectory(search.decider.entries[trial])
        if sweeps_keeping_state(self._ledger.sweeps, trajectory, self._plan.sweep.file.name):
            return
        lease = self._ledger.lease_folder(self._ledger.trajectory_dir(trajectory), this_process())
        if lease is not None:  # else gc finds it
            with lease:
                self._ledger.trajectory(trajectory).delete(KEPT)

    def _is_free(self, search: _Search, entry: Decision) -> bool:
        """Whether nobody works on a decision's cell or its training."""
        return self._ledger.is_free(entry["cell"]) and self._ledger.is_training_free(search.planned.trajectory(entry))
