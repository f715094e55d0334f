"""What a training loads before its first step, checked against what it will see."""

from __future__ import annotations

from typing import Any

import numpy as np

from massive_sft.core.errors import InvalidInput, Problem, Unsupported
from massive_sft.data.samples import Samples
from massive_sft.models import pretrained
from massive_sft.models.configuration import positions_of
from massive_sft.models.device import device_of
from massive_sft.models.kept_base import KeptBase
from massive_sft.models.location import place_of
from massive_sft.models.tokenizer import token_problems
from massive_sft.sweep.spec import TrainingSpec
from massive_sft.training import lora
from massive_sft.training.loss import packs_cleanly


def require_no_problems(problems: list[Problem]) -> None:
    """Raise InvalidInput when there are problems."""
    if problems:
        raise InvalidInput(problems)


def sample_problems(samples: Samples) -> list[Problem]:
    """Return why samples cannot be trained on at all."""
    if len(samples) == 0:
        return [Problem("samples", "must not be empty")]
    trainable = samples.trainable_lengths
    if samples.lengths.min() < 2 or trainable.min() == 0:
        return [Problem("samples", "must each have a trainable token", int(np.sum(trainable == 0)))]
    if samples.trainable[samples.offsets[:-1]].any():
        return [Problem("samples", "must not train on their first token, which nothing predicts")]
    return []


def load_for_training(spec: TrainingSpec, samples: Samples, bases: KeptBase | None = None) -> Any:
    """Load the base in the training dtype, checked against the samples, with adapters for LoRA.

    Args:
        bases: gives a copy of the base; without it, it is read from its files.

    Raises:
        InvalidInput: when the samples do not fit the model.
        Unsupported: when its kind cannot be packed.
    """
    layout = spec.layout
    gpu, precision = layout.gpus > 0, spec.setting.precision
    load = pretrained.load_model if bases is None else bases.load
    model: Any = load(spec.model, precision, layout.attention, gpu, layout.packing)
    place = place_of(spec.model)
    rows = model.get_input_embeddings().weight.shape[0]
    problems = token_problems(spec.model, rows, int(samples.tokens.max()))
    positions = positions_of(model.config)
    if positions and samples.lengths.max() > positions:
        problems.append(
            Problem("max_length", f"must be at most the model's {positions} positions", int(samples.lengths.max()))
        )
    require_no_problems(problems)
    # Where it will train: FlashAttention knows no CPU, and for one flex_attention would be compiled apart.
    if layout.packing and not packs_cleanly(model.to(device_of(gpu)), rows):
        raise Unsupported(f"{place}: this kind of model sees across packed samples; set packing: false")
    if layout.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return lora.add_adapter(model, spec.setting) if spec.setting.method == "lora" else model
