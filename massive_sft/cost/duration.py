"""Durations of training and of scoring: from measurements of the same kind, else from operations and a speed."""

from __future__ import annotations

from dataclasses import dataclass

from massive_sft.cost.cost_table import CostTable, ScoringCosts, TrainingCosts
from massive_sft.cost.devices import Device
from massive_sft.cost.memory import bytes_per_number, trained_weights
from massive_sft.cost.padding import computed_tokens
from massive_sft.cost.parallel import communication_seconds, slowest_over_mean
from massive_sft.cost.shapes import ModelShape
from massive_sft.cost.workload import ScoringWorkload, TrainingWorkload
from massive_sft.sweep.schema import Setting
from massive_sft.sweep.spec import Layout

# Shares of a device's peak that are taken where nothing was measured. Public figures for 7-8B models: 0.58 of an H200
# for full tuning at length 4096, 0.41 of an H100 for LoRA; short samples and small batches reach less.
TRAINING_SHARE = 0.40
SCORING_SHARE = 0.35
BANDWIDTH_SHARE = 0.6
DECODE_OVERHEAD_S = 0.025  # seconds a generated token takes a model at least, layer by layer from Python
BATCH_TOKENS = 16384  # of a batch of answers on a GPU, with room for what is generated
CPU_BATCH_TOKENS = 2048
GPU_START_S, CPU_START_S = 15.0, 0.5  # to load, tokenise and set up a training, beside reading the weights
READ_BYTES_PER_SECOND = 1e9


@dataclass(frozen=True)
class Quantity:
    """A number, and what it rests on.

    Attributes:
        sure: whether it rests on measurements and counts of this very kind of work alone.
        complete: whether all parts of a sum are in it; else it is less than the whole, by nobody knows how much.
    """

    value: float
    sure: bool
    complete: bool = True

    def __add__(self, other: Quantity) -> Quantity:
        return Quantity(self.value + other.value, self.sure and other.sure, self.complete and other.complete)

    def times(self, factor: float) -> Quantity:
        """Return the figure so many times."""
        return Quantity(self.value * factor, self.sure, self.complete)


ZERO = Quantity(0.0, True)
UNKNOWN = Quantity(0.0, False, complete=False)
"""In a sum: something is missing that could not be estimated."""


def training_operations(
    shape: ModelShape, setting: Setting, layout: Layout, workload: TrainingWorkload, epochs: int
) -> float:
    """Return the operations of a training: 2 a weight and token forward, and twice that backward (Kaplan et al. 2020).

    LoRA needs no gradients of frozen weights, so half the backward pass; checkpointing repeats the forward pass,
    selective only what is hardly work. The LM head counts where there is loss. Attention adds 2 × layers × width ×
    length a token under a causal mask.
    """
    width = shape.heads * shape.head_size
    forward = workload.tokens * (2 * shape.body + 2 * shape.layers * width * workload.length)
    passes = 3 if setting.method == "full" else 2
    head = passes * 2 * shape.head * workload.targets
    again = layout.gradient_checkpointing is True
    return epochs * ((passes + again) * forward + head)


def scoring_operations(shape: ModelShape, load: ScoringWorkload) -> float:
    """Return the operations of reading a benchmark's tokens and writing its answers."""
    return 2 * shape.body * (load.tokens + load.answers * load.answer) + 2 * shape.head * load.answers * load.answer


def perplexity_operations(shape: ModelShape, workload: TrainingWorkload) -> float:
    """Return the operations of a forward pass over an epoch."""
    return 2 * (shape.body + shape.head) * workload.tokens


def training_seconds(
    shape: ModelShape,
    setting: Setting,
    layout: Layout,
    workload: TrainingWorkload,
    epochs: int,
    snapshots: int,
    device: Device,
    measured: TrainingCosts | None,
    table: CostTable,
) -> Quantity:
    """Return the seconds of one training.

    Args:
        measured: the sums of trainings of this kind, where there are any.
        table: all sums, for the speed of the device otherwise.
    """
    steps = -(-workload.samples // setting.batch) * epochs
    if measured is not None and measured.steps:
        tokens = computed_tokens(workload, setting, layout) * epochs
        return Quantity(measured.seconds_of(steps, tokens, snapshots), workload.sure)
    operations = training_operations(shape, setting, layout, workload, epochs)
    speed = table.speed(device.name, "train") or TRAINING_SHARE * device.flops(setting.precision)
    computing = operations / speed
    if device.is_gpu:
        computing *= slowest_over_mean(workload, setting, layout) / layout.workers
        computing += communication_seconds(shape, setting, layout, workload, steps, device)
    number = bytes_per_number(setting.precision)
    start = table.start(device.name)
    if start is None:
        start = GPU_START_S if device.is_gpu else CPU_START_S
        start += number * shape.parameters / READ_BYTES_PER_SECOND
    written = snapshots * number * trained_weights(shape, setting) / READ_BYTES_PER_SECOND
    return Quantity(start + written + computing, False)


def useful_operations(
    shape: ModelShape, setting: Setting, layout: Layout, workload: TrainingWorkload, epochs: int
) -> float:
    """Return the operations that MFU counts (Chowdhery et al. 2022): no padding, nothing that is computed again."""
    plain = layout.model_copy(update={"gradient_checkpointing": False})
    return training_operations(shape, setting, plain, workload, epochs)


def scoring_seconds(
    shape: ModelShape,
    dtype: str,
    load: ScoringWorkload | None,
    device: Device,
    measured: ScoringCosts | None,
    table: CostTable,
) -> Quantity | None:
    """Return the seconds that a model takes for a benchmark on one device; None where its size is not known."""
    if measured is not None:
        return Quantity(measured.mean, True)
    if load is None:
        return None
    speed = table.speed(device.name, "score")
    if speed is not None:
        return Quantity(scoring_operations(shape, load) / speed, False)
    speed = SCORING_SHARE * device.flops(dtype)
    reading = 2 * shape.body * load.tokens / speed
    return Quantity(reading + _answering(shape, dtype, load, device, speed), False)


def _answering(shape: ModelShape, dtype: str, load: ScoringWorkload, device: Device, speed: float) -> float:
    """Return the seconds of writing answers in batches: each token reads all weights, or computes, or waits."""
    if not load.answers:
        return 0.0
    room = BATCH_TOKENS if device.is_gpu else CPU_BATCH_TOKENS
    rows = max(1.0, min(load.answers, room / (load.prompt + 2 * load.answer)))
    reading = bytes_per_number(dtype) * shape.parameters / (BANDWIDTH_SHARE * device.bandwidth)
    computing = 2 * (shape.body + shape.head) * rows / speed
    return load.answers / rows * load.answer * max(reading, computing, DECODE_OVERHEAD_S)
