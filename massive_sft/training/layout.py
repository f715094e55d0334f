"""Which settings can be trained with which layouts."""

from __future__ import annotations

from massive_sft.core.errors import Problem
from massive_sft.sweep.schema import Setting
from massive_sft.sweep.spec import Layout


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
    if layout.kernels == "compiled" and layout.zero == 3:
        rule = "cannot be compiled under zero: 3, which fetches weights within a layer; use auto"
        problems.append(Problem(f"{place}.kernels", rule, layout.kernels))
    return problems
