"""vLLM servers: they are reachable, they have the base models, and no whole model is to be scored by them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from massive_sft.core.errors import Problem, Unsupported
from massive_sft.evaluation.vllm import REMEDY, served_by
from massive_sft.planning.plan import Plan


def server_problems(plan: Plan, say: Callable[[str], None]) -> Iterator[Problem]:
    """Ask the servers which models they have, for what is left to score."""
    servers = plan.sweep.file.evaluation.vllm
    left = [planned.cell for planned in plan.cells if any(item.template is not None for item in planned.unmet)]
    if servers is None or not left:
        return
    for name, model in {cell.coordinates.model: cell.model for cell in left}.items():
        say(f"vLLM server of {name}")
        try:
            served_by(model, servers)
        except Unsupported as error:
            yield Problem(plan.sweep.place("evaluation.vllm.servers"), str(error))
    recipes = [cell.recipe for cell in left if cell.recipe is not None]
    whole = sorted({recipe.setting_name for recipe in recipes if recipe.setting.method != "lora"})
    if whole:
        yield Problem(plan.sweep.place("evaluation.protocol.engine"), REMEDY, ", ".join(whole))
