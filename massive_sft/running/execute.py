"""One run of a plan, from the last check to the report: what `massive-sft run` does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Protocol

from massive_sft.core.errors import InvalidInput, MassiveSFTError, Problem, describe_error
from massive_sft.core.stop import StopSignal
from massive_sft.cost.calibrate import calibrate
from massive_sft.ledger.lease import this_process
from massive_sft.ledger.run_requirements import publish_requirements
from massive_sft.ledger.runs import Run, register_run
from massive_sft.ledger.store import Ledger
from massive_sft.planning.changes import save_last_plan
from massive_sft.planning.outcome import AsPlanAsks
from massive_sft.planning.plan import Plan
from massive_sft.report.source import report_folder
from massive_sft.report.write import write_report
from massive_sft.running.check import require_runnable
from massive_sft.running.events import CellRecorded, CellSkipped, Decided, Listen, RunEvent
from massive_sft.running.peers import requirements_left, run_with_peers
from massive_sft.running.search_work import SearchWork
from massive_sft.running.trial import retain_rest
from massive_sft.running.work import WorkSource
from massive_sft.search.plan import make_whole_plan
from massive_sft.search.tags import search_tags, tags_of
from massive_sft.study.results import Results, results_of
from massive_sft.sweep.cell import Coordinates
from massive_sft.tracking.mirror import Mirror

FLUSH_S = 120.0  # seconds that the tracker may take to catch up at the end
FLUSH_STOPPED_S = 10.0  # the same, when somebody waits for the end


class Progress(Protocol):
    """Where a run reports to, one call at a time."""

    def listen(self, event: RunEvent) -> None:
        """Take note of what happened."""

    def say(self, text: str) -> None:
        """Take note of a sentence about the run itself."""


# Does what a plan leaves to do, here or on a cluster, and reports each event.
Runner = Callable[[Plan, Listen, WorkSource | None], None]


@dataclass(frozen=True)
class Ended:
    """How things stand after a run.

    Attributes:
        plan: of the whole sweep.
        results: what the report was made of; None where the run was stopped, which writes none.
    """

    plan: Plan
    results: Results | None


@contextmanager
def checked(plan: Plan, whole: Plan, say: Callable[[str], None], warn: Callable[[Problem], None]) -> Iterator[Run]:
    """Register a run and check what it needs; yield its registration, which stands while the block runs.

    Args:
        plan: the part of the sweep that is wanted.
        whole: the plan of all of it.
        say: called with what is being checked.
        warn: called with what the user should know of what was found.

    Raises:
        InvalidInput: with every problem that stands in the way; nothing was trained.
    """
    if plan.missing:
        require_runnable(plan, say, warn)  # before there is a storage root
    with _registered(plan) as (run, ledger):
        require_runnable(plan, say, warn)
        save_last_plan(whole, ledger)
        with suppress(OSError):  # what a run took that was killed counts for this one's estimates
            calibrate(whole, ledger)
        yield run


def execute(
    plan: Plan, whole: Plan, run: Run, runner: Runner, progress: Progress, stop: StopSignal, decides: bool = True
) -> Ended:
    """Do what a checked plan leaves to do, mirror it to the tracker, write the report; return how things stand then.

    Ctrl-C, SIGTERM, SIGHUP and ``massive-sft cancel`` end it early, without a report: once nothing is in hand, or on a
    second Ctrl-C at once. Must be called on the main thread, which is where signals arrive.

    Args:
        plan: of what is wanted.
        whole: the plan of all of the sweep, which the tracker shows.
        run: its registration.
        runner: does a plan: this one, then what of it other runs held and did not finish.
        progress: gets each event, and sentences about the run.
        stop: afterwards true when it ended early.
        decides: whether the sweep's searches go on; else what they decided is done, as far as the plan has it.

    Raises:
        Stuck: when nothing moves on the cluster.
    """
    file, ledger = plan.sweep.file, plan.open_ledger()
    names = {cell.cell.id: cell.cell.coordinates for cell in whole.cells}
    as_asked = AsPlanAsks(whole, search_tags(plan.sweep, plan.storage))
    mirror = Mirror.open(ledger, file.name, names, file.tracking.mlflow, as_asked)
    listen = _Listener(progress, mirror, names, as_asked, run, requirements_left(plan))
    listen.work = work = SearchWork(plan, ledger, listen, progress.say) if decides and file.search else None
    try:
        mirror.artifact(plan.sweep.path)
        with stop.handle_signals(run.end_requested, progress.say):
            progress.say(f"tracker: {mirror.uri}")
            if mirror.elsewhere:
                beside = f"the tracker also has runs of a sweep {file.name} of another ledger"
                progress.say(f"{beside}, {mirror.elsewhere}: the tag massive_sft.ledger tells whose each is")
            run_with_peers(plan, ledger, runner, listen, progress.say, stop, work)
        after = make_whole_plan(plan.sweep, Ledger.states)
        if work is not None:
            save_last_plan(after, ledger)  # with what searches decided
        _learn(after, ledger, progress.say)
        results = None if stop() else results_of(after)
        if results is not None:
            retain_rest(after, ledger, progress.say)  # before the report, which says that a run came to its end
            _report(after, results, mirror, progress.say)
    finally:
        if work is not None:
            work.close()
        left = mirror.close(FLUSH_STOPPED_S if stop() else FLUSH_S, progress.say)
        if left:
            progress.say(f"the tracker lags behind: {left}; `massive-sft mirror` catches up")
    return Ended(after, results)


@dataclass
class _Listener:
    """Passes the events of a run on, one at a time: decisions are told by another thread than what came of them.

    Attributes:
        names, as_asked: what the mirror knows of cells, which decisions add to.
        wanted: what the run has told others that it wants.
    """

    progress: Progress
    mirror: Mirror
    names: dict[str, Coordinates]
    as_asked: AsPlanAsks
    run: Run
    wanted: dict[str, tuple[str, ...]]
    work: SearchWork | None = None
    _turn: threading.RLock = field(default_factory=threading.RLock)

    def __call__(self, event: RunEvent) -> None:
        with self._turn:
            if isinstance(event, Decided):
                self.names.update({cell.cell.id: cell.cell.coordinates for cell in event.plan.cells})
                self.as_asked.add(event.plan, tags_of(event.search, event.entries))
                self.wanted |= requirements_left(event.plan)
                publish_requirements(self.run, self.wanted)
            if isinstance(event, CellRecorded):
                self.progress.listen(replace(event, record=self.as_asked(event.record)))
                self.mirror.put(event.record.cell)
            else:
                self.progress.listen(event)
            if isinstance(event, CellSkipped) and self.work is not None:
                self.work.hear(event)


@contextmanager
def _registered(plan: Plan) -> Iterator[tuple[Run, Ledger]]:
    """Register a run and say what it wants before the checks, which take their time, so that nobody removes it."""
    try:
        ledger = plan.open_ledger()
    except InvalidInput:
        require_runnable(plan)  # says so with everything else
        raise
    with register_run(ledger.sweeps, plan.sweep.file.name, this_process()) as run:
        publish_requirements(run, requirements_left(plan))
        yield run, ledger


def _report(plan: Plan, results: Results, mirror: Mirror, say: Callable[[str], None]) -> None:
    """Write the report of a run; an error in it leaves the run as complete as it is.

    What the storage refuses, as a full disk, is raised as it is everywhere.
    """
    try:
        report = write_report(plan, results, report_folder(plan))
    except (OSError, MassiveSFTError):
        raise
    except Exception as error:  # noqa: BLE001 - all records are there, and the verb `report` shows where it failed
        say(f"no report could be made of the records: {describe_error(error)}; `massive-sft report` tries again")
    else:
        mirror.artifact(report)
        say(f"report: {report}")


def _learn(plan: Plan, ledger: Ledger, say: Callable[[str], None]) -> None:
    """Take note of what the run took; that only makes estimates better, so a disk that refuses does not end it."""
    try:
        calibrate(plan, ledger)
    except OSError as error:
        say(f"what it took cannot be noted for estimates: {error}")
