"""Run a sweep in this process, one trajectory after another: for tests, debugging and a single machine."""

from __future__ import annotations

import os
import socket

from massive_sft.ledger.provenance import capture
from massive_sft.ledger.store import Ledger
from massive_sft.plan import Plan
from massive_sft.stages.recording import Finisher
from massive_sft.trial import Listen, retain, score_cell, submit_inline, todo, train_run


def run_inline(plan: Plan, listen: Listen, retrain: bool = False) -> None:
    """Do what a plan leaves to do: base models first, then each trajectory's training, scores, measures and records.

    Args:
        plan: of the sweep; local files are all there (``plan.require_settled``).
        listen: told what happens.
        retrain: train again where a snapshot that is needed was removed.
    """
    finisher = make_finisher(plan)
    for cell in plan.base:
        if not cell.is_done:
            score_cell(cell, None, finisher, listen)
    for run in plan.todo:
        if train_run(run, finisher, submit_inline, listen, retrain):
            for cell in todo(run):
                score_cell(cell, run, finisher, listen)
            retain(run, plan.sweep.file.storage.keep_snapshots, finisher.ledger)


def make_finisher(plan: Plan) -> Finisher:
    """Return what takes this process's cells to their records."""
    return Finisher(
        ledger=Ledger.open(plan.root),
        evaluation=plan.sweep.file.evaluation,
        provenance=capture(plan.sweep.path),
        owner=f"{socket.gethostname()}:{os.getpid()}",
    )
