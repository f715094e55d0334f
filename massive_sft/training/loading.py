"""What a training loads before its first step, checked against what it will see."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from massive_sft.core import files
from massive_sft.core.errors import InvalidInput, Problem, Unsupported
from massive_sft.cost.memory import CPU_TOKENS, GPU_TOKENS
from massive_sft.data.samples import Samples
from massive_sft.models import pretrained
from massive_sft.sweep.spec import TrainingSpec
from massive_sft.training import lora, packing
from massive_sft.training.engine import Engine
from massive_sft.training.loss import packs_cleanly

MICRO_BATCH = "micro_batch.json"


def refuse(problems: list[Problem]) -> None:
    """Raise InvalidInput when there are problems."""
    if problems:
        raise InvalidInput(problems)


def sample_problems(samples: Samples) -> list[Problem]:
    """Return why samples cannot be trained on at all."""
    if len(samples) == 0:
        return [Problem("samples", "must not be empty")]
    trained = np.add.reduceat(samples.trainable, samples.offsets[:-1])
    if samples.lengths.min() < 2 or trained.min() == 0:
        return [Problem("samples", "must each have a trainable token", int(np.sum(trained == 0)))]
    if samples.trainable[samples.offsets[:-1]].any():
        return [Problem("samples", "must not train on their first token, which nothing predicts")]
    return []


def load_trained(spec: TrainingSpec, samples: Samples) -> Any:
    """Load the base in the training dtype, checked against the samples, with adapters for LoRA.

    Raises:
        InvalidInput: when the samples do not fit the model.
        Unsupported: when its kind cannot be packed.
    """
    layout = spec.layout
    model: Any = pretrained.load_model(spec.model, spec.setting.precision, layout.attention, layout.gpus > 0)
    place = pretrained.place_of(spec.model)
    rows = model.get_input_embeddings().weight.shape[0]
    problems = pretrained.token_problems(spec.model, rows, int(samples.tokens.max()))
    positions = pretrained.positions_of(model.config)
    if positions and samples.lengths.max() > positions:
        problems.append(
            Problem("max_length", f"must be at most the model's {positions} positions", int(samples.lengths.max()))
        )
    refuse(problems)
    if spec.layout.packing and not packs_cleanly(model, rows):
        raise Unsupported(f"{place}: this kind of model sees across packed samples; set packing: false")
    if spec.layout.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return lora.add_adapter(model, spec.setting) if spec.setting.method == "lora" else model


def first_limit(spec: TrainingSpec, samples: Samples, engine: Engine, model: Any) -> packing.Limit:
    """Return the micro-batch to begin with; running out of memory halves it."""
    if spec.layout.micro_batch != "auto":
        return packing.Limit(samples=spec.layout.micro_batch)
    tokens = CPU_TOKENS
    if engine.device.type == "cuda":
        config = model.config.get_text_config()
        tokens = packing.fitting_tokens(
            engine.free_bytes(),
            config.num_hidden_layers,
            config.hidden_size,
            config.vocab_size,
            2 if spec.setting.precision == "bf16" else 4,
            spec.layout.gradient_checkpointing,
        )
    return packing.Limit(tokens=max(min(tokens, GPU_TOKENS), int(samples.lengths.max())))


def note_limit(directory: Path, limit: packing.Limit) -> None:
    """Leave a micro-batch in an attempt's folder for workers that train again there."""
    files.write_json(directory / MICRO_BATCH, asdict(limit))


def noted_limit(directory: Path) -> packing.Limit | None:
    """Return what ``note_limit`` left; None where there is none."""
    try:
        return packing.Limit(**files.read_json(directory / MICRO_BATCH))
    except FileNotFoundError:
        return None
