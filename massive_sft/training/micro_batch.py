"""How large a micro-batch may be, and what it computes again: a guess, what fits on every rank, what is left later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from massive_sft.core import files
from massive_sft.core.errors import MassiveSFTError
from massive_sft.cost.memory import CPU_TOKENS, ENOUGH_GPU_TOKENS, MOST_GPU_TOKENS, checkpointing_choices
from massive_sft.data.samples import Samples
from massive_sft.models.out_of_memory import is_out_of_memory
from massive_sft.sweep.spec import Layout, TrainingSpec
from massive_sft.training.engine import Engine
from massive_sft.training.memory_probe import MemoryProbe, Trial
from massive_sft.training.packing import Limit, collate, fitting_tokens, fullest
from massive_sft.training.recomputing import recompute_activations

_NAME = "micro_batch.json"
_REMEDIES = (
    "one sample does not fit: lower max_length, or use gradient_checkpointing, offload or more GPUs with zero: 3"
)


class OutOfMemory(MassiveSFTError):
    """Not even the smallest possible micro-batch fits."""


def first_trials(spec: TrainingSpec, samples: Samples, engine: Engine, model: Any, compiled: bool) -> list[Trial]:
    """Return what is tried before the first step, in this order: what should fit, then what needs less and less.

    A micro-batch is halved while it stays large enough, else more is computed again first where that is ``auto``.
    Large enough is what was asked for; of ``auto`` what keeps a GPU busy.

    Args:
        engine: before its first step; all of its ranks call this.
        compiled: whether the layers' kernels are, which leaves selective checkpointing out.
    """
    longest, asked = int(samples.lengths.max()), spec.layout.micro_batch
    enough = max(longest, ENOUGH_GPU_TOKENS) if asked == "auto" else longest * min(asked, spec.setting.batch)
    choices, room = checkpointing_choices(spec.layout, compiled), CPU_TOKENS
    if engine.device.type == "cuda":
        free, config = engine.free_bytes(), model.config.get_text_config()
        sizes = config.num_hidden_layers, config.hidden_size, config.vocab_size
        rooms = [fitting_tokens(free, *sizes, spec.setting, choice) for choice in choices]
        first = next((number for number, tokens in enumerate(rooms) if tokens >= enough), len(choices) - 1)
        choices, room = choices[first:], rooms[first]
    limit = Limit(tokens=max(min(room, MOST_GPU_TOKENS), longest)) if asked == "auto" else Limit(samples=asked)
    return less_and_less(choices, limit, longest, enough)


def less_and_less(choices: Sequence[Layout], limit: Limit, longest: int, enough: int) -> list[Trial]:
    """Return trials from the first of ``choices`` with ``limit`` to the last with a single sample.

    Args:
        choices: layouts that need less and less.
        limit: the first micro-batch.
        longest: tokens of the longest sample.
        enough: tokens below which a limit is not halved before the last choice; one of samples is not at all.
    """
    limits = [limit]
    while (smaller := limits[-1].halved(longest)) is not None:
        limits.append(smaller)
    large = max(1, sum((each.tokens or 0) >= enough for each in limits))
    begun = [Trial(choices[0], each) for each in limits[:large]]
    more = [Trial(choice, limits[large - 1]) for choice in choices[1:]]
    return [*begun, *more, *(Trial(choices[-1], each) for each in limits[large:])]


def agreed(probe: MemoryProbe, engine: Engine, trials: Sequence[Trial]) -> Trial:
    """Return the first trial that fits on every rank. Raises OutOfMemory on all of them when none does."""
    return _found(probe.agree(engine, trials))


def tried(spec: TrainingSpec, samples: Samples, engine: Engine, model: Any, trials: Sequence[Trial]) -> Trial:
    """Return the first trial with which a single rank has room for a pass.

    Tried is the pass that takes most, beside what the first step adds (in fp32 it counts the gradients twice). Random
    states and the engine are as before afterwards; ``model``, which it trains, recomputes what the trial says.

    Raises OutOfMemory when not even one sample fits.
    """
    return _found(next((trial for trial in trials if _fits(spec, samples, engine, model, trial)), None))


def _found(trial: Trial | None) -> Trial:
    if trial is None:
        raise OutOfMemory(f"out of memory before the first step: {_REMEDIES}")
    return trial


def _fits(spec: TrainingSpec, samples: Samples, engine: Engine, model: Any, trial: Trial) -> bool:
    packed = spec.layout.packing
    recompute_activations(model, trial.layout)
    batch = collate(samples, fullest(spec.setting.batch, samples.lengths, trial.limit, packed), packed)
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
    """Leave a micro-batch that was halved in an attempt's folder, for who trains again there or goes on after it."""
    files.write_json(directory / _NAME, asdict(limit))


def read_limit(directory: Path) -> Limit | None:
    """Return what ``write_limit`` left; None where there is none."""
    try:
        return Limit(**files.read_json(directory / _NAME))
    except FileNotFoundError:
        return None
