"""How large a micro-batch may be: the first guess, what fits on every rank, and what is left when memory runs out."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from massive_sft.core import files
from massive_sft.core.errors import MassiveSFTError
from massive_sft.cost.memory import CPU_TOKENS, MOST_GPU_TOKENS
from massive_sft.data.samples import Samples
from massive_sft.models.out_of_memory import is_out_of_memory
from massive_sft.sweep.spec import TrainingSpec
from massive_sft.training.engine import Engine
from massive_sft.training.memory_probe import MemoryProbe
from massive_sft.training.packing import Limit, collate, fitting_tokens, fullest

_NAME = "micro_batch.json"
_REMEDIES = (
    "one sample does not fit: lower max_length, or use gradient_checkpointing, offload or more GPUs with zero: 3"
)


class OutOfMemory(MassiveSFTError):
    """Not even the smallest possible micro-batch fits."""


def first_limit(spec: TrainingSpec, samples: Samples, engine: Engine, model: Any) -> Limit:
    """Return the micro-batch to begin with; running out of memory halves it."""
    if spec.layout.micro_batch != "auto":
        return Limit(samples=spec.layout.micro_batch)
    tokens = CPU_TOKENS
    if engine.device.type == "cuda":
        config = model.config.get_text_config()
        tokens = fitting_tokens(
            engine.free_bytes(),
            config.num_hidden_layers,
            config.hidden_size,
            config.vocab_size,
            spec.setting,
            spec.layout,
        )
    return Limit(tokens=max(min(tokens, MOST_GPU_TOKENS), int(samples.lengths.max())))


def agreed_limit(probe: MemoryProbe, engine: Engine, limit: Limit) -> Limit:
    """Return the micro-batch that fits on every rank. Raises OutOfMemory on all of them when none does."""
    fits = probe.agree(engine, limit)
    if fits is None:
        raise OutOfMemory(f"out of memory before the first step: {_REMEDIES}")
    return fits


def tried_limit(spec: TrainingSpec, samples: Samples, engine: Engine, limit: Limit) -> Limit:
    """Return the largest of ``limit``, its half and so on with which a single rank has room for a pass.

    Tried is the pass that takes most, beside what the first step adds (in fp32 it counts the gradients twice). Random
    states and the engine are as before afterwards.

    Raises OutOfMemory when not even one sample fits.
    """
    while not _fits(spec, samples, engine, limit):
        what = f"out of memory before the first step with a micro-batch of {as_dict(limit)}"
        limit = halved_limit(limit, samples, what)
    return limit


def _fits(spec: TrainingSpec, samples: Samples, engine: Engine, limit: Limit) -> bool:
    packed = spec.layout.packing
    batch = collate(samples, fullest(spec.setting.batch, samples.lengths, limit, packed), packed)
    try:
        with torch.random.fork_rng([engine.device] if engine.device.type == "cuda" else []):
            beside = torch.empty(engine.first_step_bytes(), dtype=torch.uint8, device=engine.device)
            engine.accumulate([batch], 1)
            del beside
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        engine.discard_gradients()
    return True


def halved_limit(limit: Limit, samples: Samples, what: str) -> Limit:
    """Return half of a limit that did not fit. Raises OutOfMemory, which begins with ``what``, at a single sample."""
    smaller = limit.halved(int(samples.lengths.max()))
    if smaller is None:
        raise OutOfMemory(f"{what}; {_REMEDIES}")
    return smaller


def as_dict(limit: Limit) -> dict[str, int]:
    """Return a limit for people and records, such as ``{"samples": 4}``."""
    return {name: value for name, value in asdict(limit).items() if value is not None}


def write_limit(directory: Path, limit: Limit) -> None:
    """Leave a micro-batch in an attempt's folder for workers that train again there."""
    files.write_json(directory / _NAME, asdict(limit))


def read_limit(directory: Path) -> Limit | None:
    """Return what ``write_limit`` left; None where there is none."""
    try:
        return Limit(**files.read_json(directory / _NAME))
    except FileNotFoundError:
        return None
