"""Whether the cluster that ``RAY_ADDRESS`` names can hold a plan, and sees what it names."""

from __future__ import annotations

import ray

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.ledger.store import Ledger
from massive_sft.planning.plan import Plan
from massive_sft.running.trial import trainings_left
from massive_sft.scheduling.cluster import connected
from massive_sft.scheduling.cluster_paths import path_problems
from massive_sft.scheduling.resource_split import choose_mode


def capacity_problems(plan: Plan) -> list[Problem]:
    """Connect to the cluster; return why it cannot be used, what of the plan cannot be on it, what its nodes lack."""
    try:
        to_train = trainings_left(plan, Ledger(plan.root))
        with connected():
            choose_mode(plan, to_train, ray.cluster_resources())
            return path_problems(plan.sweep)
    except InvalidInput as error:
        return error.problems
