"""Made-up samples and what is trained on them, of the benchmarks in which the words do not matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from massive_sft.data.samples import Samples
from massive_sft.sweep.schema import Dataset, Model, Schedule, Setting
from massive_sft.sweep.spec import Layout, Mixture, Part, TrainingSpec


def make_samples(count: int, length: int, vocabulary: int, prompt: int = 1) -> Samples:
    """Return samples of random tokens, all of one length; the first ``prompt`` of each have no loss, 1 at least."""
    tokens = np.random.default_rng(0).integers(1, vocabulary, count * length).astype(np.int32)
    return Samples(
        tokens=tokens,
        trainable=np.arange(len(tokens)) % length >= prompt,
        offsets=np.arange(0, len(tokens) + 1, length, dtype=np.int64),
        part=np.zeros(count, dtype=np.int16),
        row=np.arange(count, dtype=np.int64),
        text_bytes=np.ones((count, 2), dtype=np.int64),
    )


def make_spec(base: Path, layout: Layout, snapshots: tuple[int, ...] = (1,), **setting: Any) -> TrainingSpec:
    """Return a training of the model in a folder at a constant rate.

    Args:
        snapshots: epochs, ascending; the last is the end.
        setting: fields of ``Setting`` beside ``lr``, which is 1e-5 unless it is among them.
    """
    part = Part(name="made", dataset=Dataset(path="made.jsonl", format="gsm8k"), count=None)
    return TrainingSpec(
        trajectory="0123456789abcdef",
        model=Model(path=str(base)),
        mixture=Mixture(name="made", parts=(part,)),
        setting=Setting.model_validate({"lr": 1e-5} | setting),
        schedule=Schedule(name="constant"),
        horizon=snapshots[-1],
        snapshots=snapshots,
        layout=layout,
    )
