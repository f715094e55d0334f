"""Bytes that a training run holds on one GPU, or in one process on a CPU: addend by addend, and what to do about it.

How an engine holds things follows ``training.plain_engine``, or ``training.deepspeed_engine.config`` and DeepSpeed
0.19: stage 1 in bf16 is its BF16_Optimizer (whole float32 gradients, a partitioned float32 master copy), every other
stage its ZeRO optimizers (Rajbhandari et al. 2020); the sizes of its buckets and of what stage 3 gathers are its
defaults.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from massive_sft.cost.devices import Device
from massive_sft.cost.shapes import ModelShape
from massive_sft.sweep.schema import Setting
from massive_sft.sweep.spec import Layout

# Tokens of a micro-batch of training, padding included, when it is sized automatically. On a CPU larger ones leave the
# caches. On a GPU what is free decides, up to the most; only the run finds that out, so estimates take a typical one.
CPU_TOKENS = 2048
MOST_GPU_TOKENS = 65536
TYPICAL_GPU_TOKENS = 16384
ENOUGH_GPU_TOKENS = 4096  # keep a GPU busy: more is not worth computing activations again for
# Logits that are there at a time: in float32 with their gradients 1.6 GB on a GPU, 200 MB on a CPU.
GPU_LOGITS = 2**27
CPU_LOGITS = 2**24
# DeepSpeed's defaults, in numbers: a bucket of gradients, and the weights that stage 3 keeps gathered.
BUCKET_ELEMENTS = 5 * 10**8
GATHERED_WEIGHTS = 10**9
# The same on a CPU at stage 3, which is there for models that are large for the memory: no network waits for more.
CPU_BUCKET_ELEMENTS = 2**24
CPU_GATHERED_WEIGHTS = 2**26
ROOM = 0.95  # of a GPU's memory that may be needed: the rest is for fragments and for what formulas leave out
CUDA_BYTES = 700 * 10**6  # the driver's context and libraries on a GPU
# A process on a CPU with torch, transformers and DeepSpeed imported, before it loads a model; measured.
PROCESS_BYTES = 750 * 10**6
MIN_LENGTH = 256  # tokens: no remedy asks for a lower max_length
MAX_GPUS = 64

Verdict = Literal["fits", "tight", "does not fit", "unknown"]


@dataclass(frozen=True)
class Memory:
    """Bytes of one GPU or process by what they hold.

    Attributes:
        certain: what is there in any case; their sum is a lower bound.
        estimated: what depends on the batch, the allocator and the libraries.
    """

    certain: Mapping[str, int]
    estimated: Mapping[str, int]

    @property
    def least(self) -> int:
        return sum(self.certain.values())

    @property
    def total(self) -> int:
        return self.least + sum(self.estimated.values())


def bytes_per_number(precision: str) -> int:
    """Return the bytes of one number in ``bf16`` or ``fp32``."""
    return 2 if precision == "bf16" else 4


def activation_bytes(layers: int, hidden: int, number: int, checkpointing: bool | str) -> int:
    """Return the bytes that a token leaves behind for the backward pass.

    Per layer about 34 values of the hidden size (Korthikanti et al. 2022, without their attention matrices), with
    checkpointing the layer's input alone and one layer in full. Their 34 are bytes, at two a value; here they are
    values, which leaves room for wider MLPs and for the gradients on their way back. With selective checkpointing a
    layer keeps its input and what its products gave: 13 values in Llama 3, 15 with an MLP of 4 and whole keys.
    ``auto`` must have been chosen (``checkpointing_choices``).
    """
    kept: dict[bool | str, int] = {False: 34 * layers, True: 2 * layers + 34, "selective": 20 * layers + 34}
    return kept[checkpointing] * hidden * number


def logit_bytes(vocabulary: int, number: int) -> int:
    """Return the bytes of a token with loss: its logits, their gradient, and both once more in float32."""
    return vocabulary * (2 * number + 8)


def chunk_targets(vocabulary: int, layout: Layout) -> int | None:
    """Return the targets that the output layer and the loss are computed for at a time; None for all at once.

    That is at stage 3, where weights come and go by layer.
    """
    return None if layout.stage == 3 else max(4, (GPU_LOGITS if layout.gpus else CPU_LOGITS) // vocabulary)


def head_bytes(targets: int, vocabulary: int, hidden: int, number: int, trains_head: bool, layout: Layout) -> int:
    """Return the bytes of logits and what is made of them: all at once or by chunks, as training does what is less.

    By chunks an output layer that is trained holds its gradient from the forward pass on, summed in float32.
    """
    chunk, whole = chunk_targets(vocabulary, layout), targets * logit_bytes(vocabulary, number)
    own = vocabulary * hidden * (4 + number) if trains_head else 0
    return whole if chunk is None else min(whole, chunk * logit_bytes(vocabulary, number) + own)


def trained_weights(shape: ModelShape, setting: Setting) -> int:
    """Return how many weights a setting trains."""
    return shape.parameters if setting.method == "full" else shape.adapter(setting.lora.rank)


def micro_tokens(layout: Layout, longest: int, smallest: bool) -> int:
    """Return the tokens of a micro-batch: of the smallest that training can shrink to, or of what it begins with."""
    if layout.micro_batch != "auto":
        return longest * (1 if smallest else layout.micro_batch)
    return longest if smallest or layout.gpus else max(CPU_TOKENS, longest)


def training_memory(shape: ModelShape, setting: Setting, layout: Layout, longest: int, smallest: bool = True) -> Memory:
    """Return the memory of training on one GPU, or of one worker's process without GPUs.

    Of adapters that are trained at once it is that of as many as there may be.

    Args:
        shape: of the base model.
        setting: method, precision, LoRA rank.
        layout: workers, ZeRO stage, offload, micro-batch, checkpointing (``planned_layout`` takes its ``auto``).
        longest: tokens of the longest sample.
        smallest: with the smallest micro-batch, which decides whether it fits; else with the one it begins with
            (on a GPU sized automatically that takes what is free, so there it is the smallest as well).
    """
    certain = _states(shape, setting, layout)
    stage = zero_stage(setting, layout)
    number, ranks = bytes_per_number(setting.precision), layout.workers
    trained = layout.lora_at_once * trained_weights(shape, setting)
    tokens = layout.lora_at_once * micro_tokens(layout, longest, smallest)
    activations = tokens * activation_bytes(shape.layers, shape.hidden, number, layout.gradient_checkpointing)
    full = setting.method == "full"
    logits = head_bytes(tokens, shape.vocabulary, shape.hidden, number, full, layout)
    # The update begins when activations are gone: a float32 copy of this rank's gradients.
    update = 4 * trained // ranks if stage > 1 else 0
    estimated = {
        "activations": activations,
        "logits": logits,
        "update": max(0, update - activations - logits),
        "float32 gradients": _wide_gradients(trained, setting, layout),
        "buckets": bucket_bytes(trained, stage, number, most_in_bucket(layout)) if stage > 1 else 0,
        "gathered": number * min(shape.parameters, most_gathered(layout)) if stage == 3 else 0,
        "libraries": CUDA_BYTES if layout.gpus else PROCESS_BYTES,
    }
    if not layout.gpus:  # the process holds what is written of a snapshot while it takes the next steps
        estimated["snapshot"] = number * math.ceil(trained / (ranks if full else 1))
    return Memory(certain, {name: size for name, size in estimated.items() if size})


def zero_stage(setting: Setting, layout: Layout) -> int:
    """Return the stage of ZeRO whose states a layout has; without DeepSpeed that of one worker in this precision."""
    return (0 if setting.precision == "fp32" else 1) if layout.stage is None else layout.stage


def _states(shape: ModelShape, setting: Setting, layout: Layout) -> dict[str, int]:
    """Return weights, gradients and AdamW's state on one rank."""
    number, ranks, stage = bytes_per_number(setting.precision), layout.workers, zero_stage(setting, layout)
    trained = layout.lora_at_once * trained_weights(shape, setting)
    held = shape.parameters + (trained if setting.method == "lora" else 0)
    off = layout.offload == "optimizer" and layout.gpus > 0
    shard = trained if stage == 0 else math.ceil(trained / ranks)
    states = {
        "weights": number * (math.ceil(held / ranks) if stage == 3 else held),
        "gradients": 4 * trained if stage < 2 else 0 if off else number * shard,
        "master copy": 0 if off or stage == 0 else 4 * shard,
        "moments": 0 if off else 8 * shard,
    }
    return {name: size for name, size in states.items() if size}


def most_in_bucket(layout: Layout) -> int:
    """Return the most numbers that ZeRO's bucket of gradients holds."""
    return CPU_BUCKET_ELEMENTS if layout.stage == 3 and not layout.gpus else BUCKET_ELEMENTS


def most_gathered(layout: Layout) -> int:
    """Return the most weights that stage 3 keeps gathered."""
    return GATHERED_WEIGHTS if layout.gpus else CPU_GATHERED_WEIGHTS


def bucket_bytes(trained: int, zero: int, number: int, most: int = BUCKET_ELEMENTS) -> int:
    """Return the bytes of ZeRO's bucket of gradients, which it sums over the ranks in float32.

    At stage 2 it is filled in the training dtype, of ``number`` bytes, and copied for the sum.
    """
    return (4 + number if zero == 2 and number < 4 else 4) * min(trained, most)


def _wide_gradients(trained: int, setting: Setting, layout: Layout) -> int:
    """Return what summing gradients in float32 adds where they are partitioned."""
    if zero_stage(setting, layout) < 2 or (layout.offload == "optimizer" and layout.gpus):
        return 0
    return (4 - bytes_per_number(setting.precision)) * math.ceil(trained / layout.workers)


def scoring_memory(shape: ModelShape, dtype: str, device: Device) -> Memory:
    """Return the memory of scoring a model on one GPU or in one process: its weights, and what libraries take.

    The weights stay from one cell to the next. What a scorer or a lane keeps beside them on the host, at most the
    base's weights once more, it keeps only where that is an eighth of what is free (``models.host_memory``): whether a
    model fits does not depend on it.
    """
    return Memory(
        {"weights": bytes_per_number(dtype) * shape.parameters},
        {"libraries": CUDA_BYTES if device.is_gpu else PROCESS_BYTES},
    )


def capacity(device: Device, layout: Layout) -> int:
    """Return the bytes that one worker may take: a GPU, or its part of the machine's memory."""
    return device.memory if device.is_gpu else device.memory // layout.workers


def checkpointing_choices(layout: Layout, compiled: bool = False) -> tuple[Layout, ...]:
    """Return what ``gradient_checkpointing: auto`` chooses from, what costs least first; else the layout alone.

    Selective is left out where it is refused (``Layout.within_layers``), and with kernels that ``auto`` ``compiled``.
    """
    if layout.gradient_checkpointing != "auto":
        return (layout,)
    ways = (False, True) if compiled or layout.within_layers else (False, "selective", True)
    return tuple(layout.model_copy(update={"gradient_checkpointing": way}) for way in ways)


def planned_layout(shape: ModelShape, setting: Setting, layout: Layout, longest: int, device: Device | None) -> Layout:
    """Return a layout with the least checkpointing that fits by the formulas where it is ``auto``, the most if none.

    That is without any where a kind of GPU is not known, and on a CPU. A run looks at what its GPU really has free.
    """
    choices = checkpointing_choices(layout)
    if device is None or not device.is_gpu:
        return choices[0]
    tokens = max(longest, ENOUGH_GPU_TOKENS) if layout.micro_batch == "auto" else longest
    needed = ((choice, training_memory(shape, setting, choice, tokens, smallest=False).total) for choice in choices)
    return next((choice for choice, size in needed if size <= ROOM * capacity(device, choice)), choices[-1])


def judge(memory: Memory, available: int, certain: bool = True) -> Verdict:
    """Return whether memory fits. That it does not is said only where what is there in any case is too much.

    Args:
        certain: whether the model's shape is known; a guess is never enough to say that it does not fit.
    """
    if memory.total <= available:
        return "fits"
    return "does not fit" if certain and memory.least > available else "tight"


@dataclass(frozen=True)
class Remedy:
    """A change after which a training fits by the formulas: what to set, and what comes of it."""

    changes: tuple[str, ...]
    layout: Layout
    longest: int

    def __str__(self) -> str:
        return f"set {', '.join(self.changes)}"


def find_remedy(shape: ModelShape, setting: Setting, layout: Layout, longest: int, device: Device) -> Remedy | None:
    """Return what to change so that a training fits: one change where that is enough, else several; None for nothing.

    A GPU or process less full costs speed or machines, so what costs least comes first.
    """
    enough = [
        candidate
        for candidate in _changes(layout, longest)
        if training_memory(shape, setting, candidate.layout, candidate.longest).total
        <= capacity(device, candidate.layout)
    ]
    alone = [candidate for candidate in enough if len(candidate.changes) == 1]
    return next(iter(alone or enough), None)


def _changes(layout: Layout, longest: int) -> Iterator[Remedy]:
    """Yield layouts that need less and less, each with what differs from the first; the cheapest change first."""
    steps: list[tuple[str, dict[str, object]]] = []
    if not layout.gradient_checkpointing and not layout.within_layers:
        selective = "gradient_checkpointing: selective"
        yield Remedy((selective,), layout.model_copy(update={"gradient_checkpointing": "selective"}), longest)
    if layout.gradient_checkpointing is not True:
        steps.append(("gradient_checkpointing: true", {"gradient_checkpointing": True}))
    if layout.micro_batch not in ("auto", 1):
        steps.append(("micro_batch: 1", {"micro_batch": 1}))
    stage = layout.stage or 0
    sharing: dict[str, object] = {"zero": 3} | ({"kernels": "auto"} if "kernels" in layout.within_layers else {})
    share = ", ".join(f"{field}: {value}" for field, value in sharing.items())
    if stage < 3 and layout.workers > 1:
        steps.append((share, sharing))
    if layout.offload == "none" and layout.gpus and (stage > 1 or layout.workers > 1):
        steps.append(("offload: optimizer", {"offload": "optimizer"}))
    if layout.offload == "none" and layout.gpus and stage < 2 and layout.workers == 1:
        # Stage 1 would keep the gradients on the GPU.
        steps.append(("zero: 2, offload: optimizer", {"offload": "optimizer", "zero": 2}))
    for text, change in steps:
        too_early = layout.zero == 0 and "offload" in change and "zero" not in change  # offloading begins at stage 1
        alone = layout.model_copy(update=change)
        if not too_early and len(alone.within_layers) < 2:
            yield Remedy((text,), alone, longest)
    words: tuple[str, ...] = ()
    changed = on_gpu = layout  # the latter without offload, which is slow
    for text, change in steps:
        words, changed = (*words, text), changed.model_copy(update=change)
        on_gpu = changed if "offload" not in change else on_gpu
        yield Remedy(words, changed, longest)
    cheap = tuple(text for text in words if not text.startswith(("offload", "zero")))
    gpus = 2 * layout.gpus
    while layout.gpus and gpus <= MAX_GPUS:
        more = on_gpu.model_copy(update={"gpus": gpus, "workers": gpus, **sharing})
        yield Remedy((*cheap, share, f"gpus: {gpus}"), more, longest)
        gpus *= 2
    length = longest // 2
    while length >= MIN_LENGTH:
        yield Remedy((*words, f"max_length: {length} (which makes other cells)"), changed, length)
        length //= 2
