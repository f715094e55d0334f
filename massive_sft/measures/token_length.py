"""Lengths of a training set's samples in tokens."""

from __future__ import annotations

from typing import Any

import numpy as np

from massive_sft.data.samples import Samples
from massive_sft.sweep.semantics import MEASURE_SEMANTICS


def token_length(samples: Samples) -> dict[str, Any]:
    """Return mean, median, 95th percentile, maximum and total of tokens per sample: all, and trainable ones."""
    return {
        "schema": MEASURE_SEMANTICS["token_length"],
        "samples": len(samples),
        "all": _spread(samples.lengths),
        "response": _spread(samples.trainable_lengths),
    }


def _spread(lengths: np.ndarray) -> dict[str, float | int] | None:
    if not len(lengths):
        return None
    return {
        "mean": float(lengths.mean()),
        "median": float(np.median(lengths)),
        "p95": float(np.percentile(lengths, 95)),
        "max": int(lengths.max()),
        "total": int(lengths.sum()),
    }
