"""Learning rates as pure functions of the optimizer step."""

from __future__ import annotations

import math

from massive_sft.sweep.schema import Schedule


def learning_rate(schedule: Schedule, peak: float, step: int, horizon_steps: int, warmup_steps: int) -> float:
    """Return the learning rate of an optimizer step.

    Warm-up rises linearly over ``warmup_steps`` steps, none of which is zero or the peak. A decay starts from the
    peak and reaches ``schedule.final`` × peak at the end of the horizon (just after its last step), as the schedules
    of transformers do; steps beyond the horizon keep that value.

    Args:
        schedule: name, ``final`` and, for wsd, ``decay``.
        peak: the highest learning rate.
        step: optimizer step, counted from 0.
        horizon_steps: optimizer steps within the schedule's horizon, warm-up included.
        warmup_steps: optimizer steps of warm-up.
    """
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    start = warmup_steps
    if schedule.name == "wsd":
        start = max(start, horizon_steps - round(schedule.decay * horizon_steps))
    progress = min(max((step - start) / max(1, horizon_steps - start), 0.0), 1.0)
    return peak * (schedule.final + (1 - schedule.final) * _remaining(schedule.name, progress))


def _remaining(name: str, progress: float) -> float:
    """Return how much of the decay is still to come, from 1 down to 0, at ``progress`` through it."""
    if name == "constant":
        return 1.0
    if name == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    return 1 - progress
