"""Which settings can be trained with which layouts."""

from __future__ import annotations

from collections.abc import Iterator

from massive_sft.core.errors import Problem
from massive_sft.planning.plan import Plan
from massive_sft.sweep.schema import Setting
from massive_sft.sweep.spec import Layout

_WITHIN_LAYERS = {
    "zero": "zero: 3, which fetches weights within a layer",
    "gradient_checkpointing": "gradient_checkpointing: selective, which looks into a layer",
}


def refused_layouts(plan: Plan) -> list[Problem]:
    """Return why training runs of a plan cannot be trained with the layouts that ``resources`` give them, each once."""
    found: dict[Problem, None] = {}
    for run in plan.runs:
        recipe = run.trajectory.recipe
        found.update(dict.fromkeys(layout_problems(recipe.setting, run.layout, plan.rules.place(recipe))))
    return list(found)


def layout_problems(setting: Setting, layout: Layout, place: str = "resources") -> list[Problem]:
    """Return why a setting cannot be trained with a layout, each with its remedy."""
    problems = []
    if layout.zero == 0 and setting.precision == "bf16":
        problems.append(
            Problem(
                f"{place}.zero",
                "must be 1 or more with precision bf16: DeepSpeed cannot sum gradients in float32 at stage 0; "
                "set zero: 1 or precision: fp32",
                layout.zero,
            )
        )
    if layout.zero == 0 and layout.offload == "optimizer":
        problems.append(Problem(f"{place}.zero", "must be 1 or more to offload the optimizer", layout.zero))
    if layout.gpus and layout.gpus != layout.workers:
        problems.append(Problem(f"{place}.workers", f"must equal gpus ({layout.gpus}): one each", layout.workers))
    if layout.attention in ("flash_attention_2", "flex_attention") and not layout.gpus:
        problems.append(Problem(f"{place}.attention", "needs a GPU; use auto", layout.attention))
    if layout.attention == "flash_attention_2" and setting.precision == "fp32":
        problems.append(Problem(f"{place}.attention", "cannot compute in fp32; use auto", layout.attention))
    for field in layout.within_layers[1:]:
        value, instead = getattr(layout, field), {"gradient_checkpointing": "true", "kernels": "auto"}[field]
        rule = f"cannot be {value} under {_WITHIN_LAYERS[layout.within_layers[0]]}; use {instead}"
        problems.append(Problem(f"{place}.{field}", rule, value))
    if layout.lora_at_once > 1:
        place = f"{place}.lora_at_once"
        problems += [Problem(place, rule, layout.lora_at_once) for rule in _why_not_at_once(setting, layout)]
    return problems


def _why_not_at_once(setting: Setting, layout: Layout) -> Iterator[str]:
    """Yield why trainings of a setting cannot take their steps in one pass."""
    if setting.method != "lora":
        yield "is for adapters, not for full tuning; give the rule when: {method: lora}"
        return
    if layout.workers > 1:
        yield f"is for one worker, not for {layout.workers}"
    elif layout.stage is not None:
        yield "is for training without DeepSpeed; use zero: auto without offload"
    if setting.lora.dropout:
        yield "is for lora.dropout 0: adapters together would drop out others than each alone"
    if layout.gradient_checkpointing == "auto":
        yield "cannot have gradient_checkpointing chosen; use false, selective or true"
    if layout.kernels == "compiled":
        yield "cannot have compiled kernels; use kernels: auto"
    if layout.packing and layout.attention == "flash_attention_2":
        yield "cannot pack with flash_attention_2, which takes one row; use attention: auto"
