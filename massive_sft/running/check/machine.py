"""Whether this machine can hold what ``resources`` ask for."""

from __future__ import annotations

from collections.abc import Iterator

from massive_sft.core.cores import usable_cores
from massive_sft.core.errors import Problem
from massive_sft.models.device import count_gpus
from massive_sft.planning.plan import Plan

ELSEWHERE = "check it where it will run, or name its cluster (RAY_ADDRESS)"


def machine_problems(plan: Plan) -> Iterator[Problem]:
    """Say which trainings that are left cannot be on this machine."""
    cpus = usable_cores()
    asked = {(plan.rules.place(run.trajectory.recipe), run.layout.gpus, run.layout.workers) for run in plan.todo}
    for place, gpus, workers in sorted(asked):
        if gpus and gpus > (there := count_gpus()):
            yield Problem(f"{place}.gpus", f"asks for more GPUs than this machine's {there}; {ELSEWHERE}", gpus)
        if workers > cpus:
            rule = f"asks for more workers than this machine's {cpus} CPUs; {ELSEWHERE}"
            yield Problem(f"{place}.workers", rule, workers)


def machine_warnings(plan: Plan) -> Iterator[Problem]:
    """Say which of this machine's GPUs the plan leaves unused."""
    if not plan.uses_gpus and (there := count_gpus()):
        rule = "gives no training a GPU (resources[].gpus): all is computed on the CPU beside"
        yield Problem(plan.sweep.place("resources"), rule, f"{there} GPUs")
