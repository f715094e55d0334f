"""Run a sweep file, and choose what runs a plan."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from massive_sft.api.plan import pin_revisions, plan, sound_plan
from massive_sft.core.errors import Interrupted, InvalidInput
from massive_sft.core.imports import heavy_imports
from massive_sft.core.stop import StopSignal
from massive_sft.cost.budget import fit_to_budget
from massive_sft.cost.formatting import budget_lines
from massive_sft.planning.plan import Plan
from massive_sft.planning.selection import parse_where, select_cells
from massive_sft.running.events import CellRecorded, Listen, RunEvent
from massive_sft.running.left import Left, find_left, note_plan
from massive_sft.running.search_work import with_first_decisions
from massive_sft.scheduling.named_cluster import named_cluster
from massive_sft.sweep.paths import Paths, listed

if TYPE_CHECKING:
    from massive_sft.running.execute import Progress, Runner
    from massive_sft.running.work import WorkSource
    from massive_sft.study.results import Results

log = logging.getLogger(__name__)


class LoggedProgress:
    """Reports a run to the log of this module: a line a cell, and what the run says of itself."""

    def listen(self, event: RunEvent) -> None:
        """Take note of what happened."""
        if isinstance(event, CellRecorded):
            log.info("%s %s %s", event.record.status, event.cell.id, event.cell.coordinates)

    def say(self, text: str) -> None:
        """Take note of a sentence about the run itself."""
        log.info("%s", text)


def run(
    file: str | Path,
    overlays: Paths = (),
    where: str | None = None,
    inline: bool | None = None,
    retrain: bool = False,
    progress: Progress | None = None,
) -> Results:
    """Check a sweep, then train, score and measure what is missing of it, and write its report; return its results.

    What is done already is not done again, so running is resuming; a cell that FAILED or is PARTIAL says so in
    ``Results.cells``. A budget in the file (``budget.gpu_hours``) is kept. Call it on the main thread: Ctrl-C ends the
    run after the step or shard in hand.

    Args:
        file: the sweep file.
        overlays: files merged over it, or one.
        where: only these cells, as ``--where``; searches then decide nothing.
        inline: in this process, one after another; if False on Ray, on the cluster that ``RAY_ADDRESS`` names or here.
            None: in this process if no cluster is named and what is left takes less time than Ray's start.
        retrain: train again where a snapshot that is needed was removed.
        progress: gets each event and sentences about the run; without, the log of ``massive_sft.api.run`` does.

    Raises:
        InvalidInput: with every problem that stands in the way; nothing was trained.
        Interrupted: Ctrl-C, SIGTERM or ``massive-sft cancel`` ended it; the same call goes on.
        Stuck: nothing moves on the cluster.
    """
    progress, stop, overlays = progress or LoggedProgress(), StopSignal(), listed(overlays)
    whole = pin_revisions(sound_plan(file, overlays), progress.say)
    if where is None:
        whole = with_first_decisions(whole, progress.say)
    selected = _within_budget(select_cells(whole, parse_where(where)), progress.say)
    left = find_left(selected, whole)
    if left is Left.NOTHING:
        note_plan(selected, whole)
    else:
        progress.say("loading torch, transformers and lm-eval")
        with heavy_imports():
            from massive_sft.running.execute import checked, execute

        with checked(selected, whole, progress.say, lambda problem: progress.say(f"warning: {problem}")) as registered:
            runner = choose_runner(True if left is Left.REPORT else inline, retrain, stop, progress.say)
            execute(selected, whole, registered, runner, progress, stop, decides=where is None)
    if stop():
        raise Interrupted(f"stopped by {stop.reason}; the same call goes on")
    after = plan(file, overlays)
    return _results(select_cells(after, parse_where(where)), after)


def _results(selected: Plan, whole: Plan) -> Results:
    """Return what a plan has come to: all WAITING where nothing was begun, say because a budget pays for nothing."""
    from massive_sft.study.results import results_of

    if not selected.storage.exists():
        selected.open_ledger()
    return results_of(selected, whole)


def _within_budget(selected: Plan, say: Callable[[str], None]) -> Plan:
    """Return what the budget of the sweep file, if it has one, pays for; what it leaves out is said."""
    hours = selected.sweep.file.budget.gpu_hours
    if hours is None:
        return selected
    portion = fit_to_budget(selected, hours)
    for line in budget_lines(portion):
        say(line)
    return portion.plan


def choose_runner(inline: bool | None, retrain: bool, stop: StopSignal, say: Callable[[str], None]) -> Runner:
    """Return what does a plan: in this process, or on a cluster, connected to once there is something to do.

    Args:
        inline: as for ``run``; with None each plan that is to be done is looked at by itself.
        retrain: train again where a snapshot that is needed was removed.
        stop: the wish that the run ends.
        say: told of lanes and waiting, and of a plan that goes without Ray by itself.
    """

    def run_here(plan: Plan, listen: Listen, work: WorkSource | None) -> None:
        with heavy_imports():
            from massive_sft.running.inline import run_inline

        run_inline(plan, listen, retrain, stop, work)

    def run_there(plan: Plan, listen: Listen, work: WorkSource | None) -> None:
        with heavy_imports():
            from massive_sft.scheduling.cluster import connected
            from massive_sft.scheduling.cluster_paths import path_problems
            from massive_sft.scheduling.native_log import without_native_log
            from massive_sft.scheduling.run_on_ray import run_on_ray

        if stop():
            return
        say("joining the cluster" if named_cluster() else "Ray starts")
        with without_native_log(), connected(stop.nothing_in_hand()):
            if stop():
                return
            problems = path_problems(plan.sweep) if named_cluster() else []
            if problems:
                raise InvalidInput(problems)
            run_on_ray(plan, listen, say, retrain, stop, work)

    def run_shorter(plan: Plan, listen: Listen, work: WorkSource | None) -> None:
        from massive_sft.running.short_plan import is_short_plan

        is_short = work is None and not named_cluster() and is_short_plan(plan, retrain)
        if is_short:
            say("what is left takes less than a minute: done here, without the start of Ray (--ray starts it)")
        (run_here if is_short else run_there)(plan, listen, work)

    return run_shorter if inline is None else run_here if inline else run_there
