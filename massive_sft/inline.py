"""Run a sweep in this process, one trajectory after another: for tests, debugging and a single machine."""

from __future__ import annotations

from collections.abc import Callable

from massive_sft.finish import finish_cell
from massive_sft.ledger.store import Ledger
from massive_sft.plan import Plan
from massive_sft.sft.events import Event
from massive_sft.stages.finishing import Finisher
from massive_sft.stages.training import train
from massive_sft.trial import Listen, Order, make_recorder, retain, todo, train_run


def run_inline(plan: Plan, listen: Listen, retrain: bool = False) -> None:
    """Do what a plan leaves to do: base models first, then each trajectory's training, scores, measures and records.

    Args:
        plan: of the sweep; local files are all there (``plan.require_settled``).
        listen: told what happens.
        retrain: train again where a snapshot that is needed was removed.
    """
    recorder = make_recorder(plan)
    finisher = Finisher(recorder)
    for cell in plan.base:
        if not cell.is_done:
            finish_cell(cell, None, finisher, listen)
    for run in plan.todo:
        if train_run(run, recorder, submit_inline, listen, retrain):
            for cell in todo(run):
                finish_cell(cell, run, finisher, listen)
            retain(run, plan.sweep.file.storage.keep_snapshots, recorder.ledger)


def submit_inline(order: Order, report: Callable[[Event], None]) -> None:
    """Serve an order in this process."""
    train(order.run, Ledger.open(order.root), order.attempt, report)
