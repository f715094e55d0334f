"""Run a sweep in this process, one trajectory after another: for tests, debugging and a single machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

from massive_sft.core.stop import never_stop
from massive_sft.planning.adapter_groups import grouped
from massive_sft.planning.plan import CellPlan, Plan, RunPlan
from massive_sft.running.cell import CellEvaluator, evaluate_cell
from massive_sft.running.events import CellRecorded, Listen, RunEvent
from massive_sft.running.serving import serve
from massive_sft.running.trial import Order, make_record_writer, retain, train_runs, trainings_left
from massive_sft.running.work import FixedWork, WorkSource
from massive_sft.training.events import Event

POLL_S = 0.5  # seconds between questions to a source that has nothing now


def run_inline(
    plan: Plan,
    listen: Listen,
    retrain: bool = False,
    stop: Callable[[], bool] = never_stop,
    work: WorkSource | None = None,
) -> None:
    """Do what a plan leaves to do: base models first, then each trajectory's training, scores, measures and records.

    Where ``stop`` says that the run should end, a training writes a checkpoint first, and what is scored stays.

    Args:
        plan: of the sweep; checked, so its local files are all there.
        listen: called with each event.
        retrain: train again where a snapshot that is needed was removed.
        stop: asked between cells, after each step and before each shard.
        work: gives the trainings; None for all that the plan leaves. It is told of each of their records.
    """
    recorder = make_record_writer(plan)
    evaluator = CellEvaluator(recorder, stop, plan.uses_gpus, listen)

    def submit(order: Order, report: Callable[[int, Event], None]) -> Sequence[Exception | None]:
        evaluator.warm.release()  # a training needs the memory
        return serve(order, report, stop)

    for cell in plan.base:
        if not (cell.is_done or stop()):
            evaluate_cell(cell, None, evaluator, listen)
    to_train = {run.trajectory.id for run in trainings_left(plan, recorder.ledger, retrain)}
    source = work or FixedWork(grouped(plan.todo, to_train))

    def told(event: RunEvent) -> None:
        if isinstance(event, CellRecorded):
            source.told(event)
        listen(event)

    while not (stop() or source.is_exhausted()):
        given = source.next()
        if given is None:
            time.sleep(POLL_S)  # for what another run on the root has
            continue
        runs = (given[0], *given[0].grouped_with)
        trained: dict[str, list[CellPlan]] = {}
        train_runs(runs, recorder, submit, told, partial(_collect, trained), retrain)
        for run in runs:
            for cell in trained.get(run.trajectory.id, []):
                if not stop():
                    evaluate_cell(cell, run, evaluator, told)
            if run.trajectory.id in trained:
                retain(run, plan.sweep.file.storage.keep_snapshots, recorder.ledger)


def _collect(trained: dict[str, list[CellPlan]], run: RunPlan, cells: Sequence[CellPlan]) -> None:
    trained.setdefault(run.trajectory.id, []).extend(cells)


def submit_inline(order: Order, report: Callable[[Event], None], stop: Callable[[], bool] = never_stop) -> None:
    """Serve an order in this process. Raises Interrupted once ``stop`` says so, after a checkpoint."""
    serve(order, lambda _, event: report(event), stop)
