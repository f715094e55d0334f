"""Which LoRA trainings of a plan take their steps together (``resources.lora_at_once``)."""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import replace

from massive_sft.planning.plan import RunPlan, token_key


def grouped(runs: Iterable[RunPlan], to_train: Container[str]) -> list[RunPlan]:
    """Return runs in their order, each that can be trained with an earlier one beside that, not by itself.

    They must have their base, the samples of each step and the layers that are adapted in common; a rule's
    ``lora_at_once`` is the most that are trained together.

    Args:
        to_train: ids of the trajectories that are to be trained; others stay by themselves.
    """
    groups: list[list[RunPlan]] = []
    open_groups: dict[tuple[object, ...], list[RunPlan]] = {}
    for run in runs:
        most = run.layout.lora_at_once if run.trajectory.id in to_train else 1
        group = open_groups.get(_in_common(run), []) if most > 1 else []
        if not 0 < len(group) < most:
            group = []
            groups.append(group)
        if most > 1:
            open_groups[_in_common(run)] = group
        group.append(run)
    return [replace(first, grouped_with=tuple(others)) for first, *others in groups]


def _in_common(run: RunPlan) -> tuple[object, ...]:
    recipe, setting = run.trajectory.recipe, run.trajectory.recipe.setting
    steps = (token_key(recipe), setting.batch, setting.seed)
    return *steps, recipe.parts["base"], setting.precision, setting.lora.targets, run.layout.model_dump_json()
