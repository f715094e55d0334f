"""What several ranks cost beside one: shares that are not equal, gradients summed and weights gathered between GPUs.

By data sheets; several GPUs in one training were not measured (docs/guides/gpu-node.md).
"""

from __future__ import annotations

import math

from massive_sft.cost.devices import Device
from massive_sft.cost.memory import TYPICAL_GPU_TOKENS, bytes_per_number, trained_weights, zero_stage
from massive_sft.cost.padding import dealt_tokens, typical_widths
from massive_sft.cost.shapes import ModelShape
from massive_sft.cost.workload import TrainingWorkload
from massive_sft.sweep.schema import Setting
from massive_sft.sweep.spec import Layout

LINK_SHARE = 0.7  # of a link's peak that NCCL's ring reaches with large messages


def slowest_over_mean(workload: TrainingWorkload, setting: Setting, layout: Layout) -> float:
    """Return by how much the slowest rank of a step has more to compute than the mean one.

    Where lengths were not counted, what is said is that of samples of one length.
    """
    batch = min(setting.batch, workload.samples)
    if not workload.widths:
        return math.ceil(batch / layout.workers) * layout.workers / batch
    loads = [sum(tokens) for tokens in dealt_tokens(tuple(typical_widths(workload.widths, batch)), layout)]
    return max(loads) * layout.workers / sum(loads)


def communication_seconds(
    shape: ModelShape, setting: Setting, layout: Layout, workload: TrainingWorkload, steps: int, device: Device
) -> float:
    """Return the seconds that ranks talk to each other in so many steps, as if nothing was computed meanwhile.

    Gradients are summed in float32: at stages 0 and 1 once a step on all ranks, at 2 and 3 once a micro-batch on the
    rank that keeps them. Updated weights come back once a step, at stage 3 in each pass over the layers.
    """
    ranks = layout.workers
    if ranks == 1 or not device.is_gpu:
        return 0.0
    stage, number = zero_stage(setting, layout), bytes_per_number(setting.precision)
    gradients = 4 * trained_weights(shape, setting)
    weights = number * trained_weights(shape, setting)
    passes = micro_batches(workload, setting, layout)
    moved = 2.0 * gradients if stage < 2 else passes * gradients
    if stage == 3:
        moved += passes * (2 + bool(layout.gradient_checkpointing)) * number * shape.parameters
    elif stage:
        moved += weights
    return steps * moved * (ranks - 1) / ranks / (LINK_SHARE * device.link)


def micro_batches(workload: TrainingWorkload, setting: Setting, layout: Layout) -> int:
    """Return how many micro-batches a rank has in a step, roughly."""
    share = math.ceil(min(setting.batch, workload.samples) / layout.workers)
    if layout.micro_batch != "auto":
        return math.ceil(share / layout.micro_batch)
    return math.ceil(share * workload.length / TYPICAL_GPU_TOKENS)
