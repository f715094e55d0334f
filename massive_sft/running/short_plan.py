"""A plan that is done in this process before Ray's processes would be up."""

from __future__ import annotations

from massive_sft.cost.estimate import estimate
from massive_sft.ledger.lease import read_lease
from massive_sft.planning.plan import Plan

SHORT_S = 60.0
"""Estimated seconds of work. Ray's start and end cost 20 to 30 s on two cores (docs/benchmarks.md), and a scorer beside
a lane gains at most half of the work."""


def is_short_plan(plan: Plan, retrain: bool = False) -> bool:
    """Return whether a plan is better done in this process.

    It then has one training at most, of one worker, and takes ``SHORT_S`` at most, of which everything is known. Where
    a process died at it (or works on it), it is no such plan: Ray's workers die alone, and the run tells why.

    Args:
        plan: what is left to do.
        retrain: whether trainings whose snapshots were removed are done again.
    """
    cost = estimate(plan)
    work = cost.training + cost.evaluation
    if retrain and cost.retrainings:
        work += cost.retraining
    if cost.runs + cost.retrainings * retrain > 1 or not work.complete or work.value > SHORT_S:
        return False
    return all(run.layout.workers == 1 for run in plan.todo) and not _is_held(plan)


def _is_held(plan: Plan) -> bool:
    """Whether the lease of anything that is left stands: its holder works, or died without giving it back."""
    ledger = plan.open_ledger()
    homes = [ledger.trajectory_dir(run.trajectory.id) for run in plan.todo]
    homes += [ledger.cell_dir(cell.cell.id) for cell in plan.cells if not cell.is_done]
    leases = (read_lease(ledger.lease_of(home)) for home in homes)
    return any(seen is not None and not seen.released for seen in leases)
