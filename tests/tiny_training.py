"""Tiny models and samples for the training tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    Qwen2Config,
)

from massive_sft.data.samples import Samples
from massive_sft.sweep.schema import Dataset, Model, Schedule, Setting
from massive_sft.sweep.spec import Layout, Mixture, Part, TrainingSpec
from massive_sft.training.events import Event, StepDone
from massive_sft.training.loop import train_trajectory
from massive_sft.training.summary import TrainingSummary

VOCABULARY = 97
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
CONFIGS = {
    "llama": lambda: LlamaConfig(**_SIZES, num_key_value_heads=1, tie_word_embeddings=False),
    "neox": lambda: GPTNeoXConfig(**_SIZES),
    "qwen2": lambda: Qwen2Config(**_SIZES, num_key_value_heads=1, tie_word_embeddings=True),
    "gemma2": lambda: Gemma2Config(
        **_SIZES, num_key_value_heads=1, head_dim=16, final_logit_softcapping=2.0, sliding_window=8
    ),
    "granite": lambda: GraniteConfig(**_SIZES, num_key_value_heads=1, logits_scaling=3.0),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_positions=64,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    ),
}


def make_base(folder: Path, family: str = "llama", dtype: torch.dtype = torch.float32, spread: float = 3.0) -> Path:
    """Write a randomly initialised base model; ``spread`` times the usual weights, so that attention matters."""
    torch.manual_seed(0)
    config = CONFIGS[family]()
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
