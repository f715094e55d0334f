"""Tiny models and samples for the training tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from small_models import small_config
from transformers import (
    AutoModelForCausalLM,
    PreTrainedConfig,
)

from massive_sft.data.samples import Samples
from massive_sft.sweep.schema import Dataset, Model, Schedule, Setting
from massive_sft.sweep.spec import Layout, Mixture, Part, TrainingSpec
from massive_sft.training.events import Event, StepDone
from massive_sft.training.loop import train_trajectory
from massive_sft.training.summary import TrainingSummary

VOCABULARY = 97
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": False},
    "neox": {},
    "qwen2": {"tie_word_embeddings": True},
    "gemma2": {"final_logit_softcapping": 2.0},
    "granite": {},
    "gpt2": {},
}


def tiny_config(family: str, **changes: Any) -> PreTrainedConfig:
    """Return the configuration of a family's model as these tests train it; ``changes`` go over its own values."""
    return small_config(family, VOCABULARY, **{**CONFIGS[family], **changes})


def make_base(folder: Path, family: str = "llama", dtype: torch.dtype = torch.float32, spread: float = 3.0) -> Path:
    """Write a randomly initialised base model; ``spread`` times the usual weights, so that attention matters."""
    torch.manual_seed(0)
    config = tiny_config(family)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(spread)
    model.to(dtype).save_pretrained(folder)
    return folder


def make_samples(count: int = 11, seed: int = 0, longest: int = 20) -> Samples:
    """Samples of random tokens with a strong pattern (the next token is often the last plus one)."""
    rng = np.random.default_rng(seed)
    rows, trainable = [], []
    for _ in range(count):
        length = int(rng.integers(5, longest + 1))
        start = int(rng.integers(1, VOCABULARY))
        rows.append((start + np.arange(length)) % VOCABULARY)
        mask = np.zeros(length, dtype=bool)
        mask[int(rng.integers(1, length - 1)) :] = True
        trainable.append(mask)
    return Samples(
        tokens=np.concatenate(rows).astype(np.int32),
        trainable=np.concatenate(trainable),
        offsets=np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64),
        part=np.zeros(count, dtype=np.int16),
        row=np.arange(count, dtype=np.int64),
        text_bytes=np.ones((count, 2), dtype=np.int64),
    )


def make_spec(
    base: Path,
    snapshots: tuple[int, ...] = (1,),
    schedule: str = "constant",
    horizon: int | None = None,
    layout: dict[str, Any] | None = None,
    **setting: Any,
) -> TrainingSpec:
    """A spec over ``base``; fp32, full, lr 1e-3, batch 4 and ZeRO-0 unless said."""
    values = {"method": "full", "lr": 1e-3, "batch": 4, "precision": "fp32", **setting}
    part = Part(name="made", dataset=Dataset(path="made.jsonl", format="gsm8k"), count=None)
    return TrainingSpec(
        trajectory="0123456789abcdef",
        model=Model(path=str(base)),
        mixture=Mixture(name="made", parts=(part,)),
        setting=Setting(**values),
        schedule=Schedule(name=schedule),
        horizon=horizon or max(snapshots),
        snapshots=snapshots,
        layout=Layout(**{"zero": 0, **(layout or {})}),
    )


def train(spec: TrainingSpec, samples: Samples, folder: Path) -> tuple[TrainingSummary, list[StepDone]]:
    """Train and return the summary and the steps."""
    events: list[Event] = []
    summary = train_trajectory(spec, samples, folder, events.append)
    return summary, [event for event in events if isinstance(event, StepDone)]
