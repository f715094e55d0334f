"""Run a sweep in this process, one trajectory after another: for tests, debugging and a single machine."""

from __future__ import annotations

from collections.abc import Callable

from massive_sft.core.stop import never_stop
from massive_sft.ledger.store import Ledger
from massive_sft.planning.plan import CellPlan, Plan
from massive_sft.running.cell import CellEvaluator, evaluate_cell
from massive_sft.running.events import Listen
from massive_sft.running.training import train
from massive_sft.running.trial import Order, make_record_writer, retain, train_run
from massive_sft.training.events import Event


def run_inline(plan: Plan, listen: Listen, retrain: bool = False, stop: Callable[[], bool] = never_stop) -> None:
    """Do what a plan leaves to do: base models first, then each trajectory's training, scores, measures and records.

    Where ``stop`` says that the run should end, a training writes a checkpoint first, and what is scored stays.

    Args:
        plan: of the sweep; checked, so its local files are all there.
        listen: called with each event.
        retrain: train again where a snapshot that is needed was removed.
        stop: asked between cells, after each step and before each shard.
    """
    recorder = make_record_writer(plan)
    evaluator = CellEvaluator(recorder, stop, plan.uses_gpus, listen)

    def submit(order: Order, report: Callable[[Event], None]) -> None:
        evaluator.warm.release()  # a training needs the memory
        submit_inline(order, report, stop)

    for cell in plan.base:
        if not (cell.is_done or stop()):
            evaluate_cell(cell, None, evaluator, listen)
    for run in plan.todo:
        if stop():
            return
        trained: list[CellPlan] = []
        train_run(run, recorder, submit, listen, trained.extend, retrain)
        for cell in trained:
            if not stop():
                evaluate_cell(cell, run, evaluator, listen)
        if trained:
            retain(run, plan.sweep.file.storage.keep_snapshots, recorder.ledger)


def submit_inline(order: Order, report: Callable[[Event], None], stop: Callable[[], bool] = never_stop) -> None:
    """Serve an order in this process. Raises Interrupted once ``stop`` says so, after a checkpoint."""
    train(order.run, Ledger.open(order.root), order.attempt, report, stop=stop)
