"""One run of a plan, from the last check to the report: what `massive-sft run` does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.text import Text

from massive_sft.changes import remember
from massive_sft.check import require_runnable
from massive_sft.companions import finish_together, wants
from massive_sft.cost.learn import learn
from massive_sft.errors import InvalidInput
from massive_sft.ledger.lease import this_process
from massive_sft.ledger.runs import Run, registered
from massive_sft.ledger.store import Ledger
from massive_sft.ledger.wants import announce
from massive_sft.plan import Plan, make_plan
from massive_sft.progress import RunProgress, outliving
from massive_sft.report.write import write_report
from massive_sft.stop import Stop
from massive_sft.tracking.mirror import Mirror
from massive_sft.trial import Happening, Listen, Recorded

FLUSH = 120.0  # seconds that the tracker may take to catch up at the end
FLUSH_STOPPED = 10.0  # the same, when somebody waits for the end


def execute(plan: Plan, whole: Plan, out: Console, err: Console, inline: bool, retrain: bool, stop: Stop) -> Plan:
    """Check a plan, do what it leaves to do, mirror it to the tracker, write the report; return the plan afterwards.

    Ctrl-C, SIGTERM, SIGHUP and ``massive-sft cancel`` end it early, without a report: once nothing is in hand, or on a
    second Ctrl-C at once. A terminal that is lost otherwise costs only what would be printed to it. Must be called on
    the main thread, which is where signals arrive.

    Args:
        plan: the part of the sweep that is wanted.
        whole: the plan of all of it.
        out: for progress.
        err: for what is being checked.
        inline: in this process, without Ray.
        retrain: train again where a snapshot that is needed was removed.
        stop: afterwards true when it ended early.

    Raises:
        InvalidInput: with every problem that stands in the way; nothing was trained.
        Stuck: when nothing moves on the cluster.
    """
    with outliving(), _announced(plan) as run:
        with err.status("checking") as status:
            require_runnable(plan, lambda what: status.update(Text(f"checking {what}")))
        ledger = Ledger.open(plan.root)
        remember(whole, ledger)
        return _mirrored(plan, ledger, run, out, inline, retrain, stop)


@contextmanager
def _announced(plan: Plan) -> Iterator[Run]:
    """Register a run and say what it wants before the checks, which take their time, so that nobody removes it."""
    try:
        ledger = Ledger.open(plan.root)
    except InvalidInput:
        require_runnable(plan)  # says so with everything else
        raise
    with registered(ledger.sweeps, plan.sweep.file.name, this_process()) as run:
        announce(run, wants(plan))
        yield run


def _mirrored(plan: Plan, ledger: Ledger, run: Run, out: Console, inline: bool, retrain: bool, stop: Stop) -> Plan:
    file = plan.sweep.file
    names = {cell.cell.id: cell.cell.coordinates for cell in plan.cells}
    mirror = Mirror.open(ledger, file.name, names, file.tracking.mlflow)
    try:
        mirror.artifact(plan.sweep.path)
        with RunProgress(plan, out) as progress, stop.heeding(run, progress.say):
            progress.say(f"tracker: {mirror.uri}")

            def listen(happening: Happening) -> None:
                progress.listen(happening)
                if isinstance(happening, Recorded):
                    mirror.put(happening.record.cell)

            def do(left: Plan, listen: Listen) -> None:
                _do(left, listen, progress, inline, retrain, stop)

            finish_together(plan, ledger, do, listen, progress.say, stop)
        after = make_plan(plan.sweep)
        _learn(after, ledger, out)
        if stop():
            return after
        report = write_report(after, ledger, ledger.sweep_dir(file.name) / "report")
        mirror.artifact(report)
        out.print(f"report: {report}", soft_wrap=True, markup=False, highlight=False)
    finally:
        left = mirror.close(timeout=FLUSH_STOPPED if stop() else FLUSH)
        if left:
            out.print(f"the tracker lags behind: {left}; `massive-sft mirror` catches up", markup=False)
    return after


def _learn(plan: Plan, ledger: Ledger, out: Console) -> None:
    """Take note of what the run took; that only makes estimates better, so a disk that refuses does not end it."""
    try:
        learn(plan, ledger)
    except OSError as error:
        out.print(f"what it took cannot be noted for estimates: {error}", markup=False)


def _do(plan: Plan, listen: Listen, progress: RunProgress, inline: bool, retrain: bool, stop: Stop) -> None:
    if inline:
        from massive_sft.inline import run_inline

        run_inline(plan, listen, retrain, stop)
        return
    from massive_sft.scheduling.cluster import connected
    from massive_sft.scheduling.schedule import run_on_ray

    with connected():
        run_on_ray(plan, listen, progress.say, retrain, stop)
