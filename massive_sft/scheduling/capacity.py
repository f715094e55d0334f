"""Whether the cluster that ``RAY_ADDRESS`` names can hold a plan and sees what it names, and what would stay unused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.ledger.store import Ledger
from massive_sft.planning.plan import Plan, RunPlan
from massive_sft.running.trial import trainings_left
from massive_sft.scheduling.cluster import connected
from massive_sft.scheduling.cluster_paths import path_problems
from massive_sft.scheduling.demand import NoRoom, gpu_kinds, make_demand
from massive_sft.scheduling.live_nodes import usable_nodes
from massive_sft.scheduling.nodes import Node


def capacity_problems(plan: Plan) -> tuple[list[Problem], list[Problem]]:
    """Connect to the cluster.

    Returns:
        Why it cannot be used, what of the plan cannot be on it and what its nodes lack; and what would stay unused.
    """
    try:
        to_train = trainings_left(plan, Ledger(plan.storage))
        with connected():
            nodes = usable_nodes()
            lacking = _lacking(plan, to_train, nodes)
            problems, warnings = path_problems(plan.sweep), list(unused_gpus(plan, nodes))
    except InvalidInput as error:
        return error.problems, []
    wait_s = plan.sweep.file.cluster.wait
    if wait_s:
        warnings += (replace(one, rule=f"{one.rule} (a run waits {wait_s:g} s for more)") for one in lacking)
    return problems if wait_s else lacking + problems, warnings


def _lacking(plan: Plan, to_train: Sequence[RunPlan], nodes: Sequence[Node]) -> list[Problem]:
    try:
        make_demand(plan, to_train, [], nodes)
    except NoRoom as error:
        return error.problems
    return []


def unused_gpus(plan: Plan, nodes: Sequence[Node]) -> Iterator[Problem]:
    """Say which GPUs of these nodes no rule uses, and that no rule says which of several kinds it means."""
    place, gpus = plan.sweep.place("resources"), sum(node.gpus for node in nodes)
    if gpus and not plan.uses_gpus:
        yield Problem(
            place, "gives no training a GPU (resources[].gpus): all is computed on CPUs beside", f"{gpus:g} GPUs"
        )
    kinds, rules = gpu_kinds(nodes), plan.sweep.file.resources
    if len(kinds) > 1 and any(rule.gpus and not rule.gpu for rule in rules):
        rule = (
            "names no kind of GPU (resources[].gpu): each training and each scorer gets any one of those that there are"
        )
        yield Problem(place, rule, ", ".join(kinds))
