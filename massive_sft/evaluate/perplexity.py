"""Perplexity and token lengths of a training set under a model."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from massive_sft import files
from massive_sft.errors import Corrupt
from massive_sft.evaluate import batching, intervals
from massive_sft.evaluate.logits import chosen_logits, dense_budget, target_logprobs
from massive_sft.ledger.record import seal, unseal
from massive_sft.samples import Samples

log = logging.getLogger(__name__)
SCHEMA = 1


@dataclass(frozen=True)
class Likelihoods:
    """Negative log-likelihoods of one kind of token, per sample.

    Attributes:
        nll: float64, shape (samples,), nats, summed over the sample's tokens.
        tokens: int64, shape (samples,).
        text_bytes: int64, shape (samples,), UTF-8 bytes of the text that the tokens cover (EOS and BOS none).
    """

    nll: np.ndarray
    tokens: np.ndarray
    text_bytes: np.ndarray

    def summary(self) -> dict[str, Any]:
        """Return perplexity and bits per byte, micro (over tokens or bytes) and macro (mean over samples).

        Macro perplexity is the exponential of the mean over samples of the mean NLL per token. Samples without such a
        token, or without a byte, count in no mean; ``samples`` and ``samples_with_text`` say how many do.
        """
        some, text = self.tokens > 0, self.text_bytes > 0
        per_token = intervals.of_ratio(self.nll[some], self.tokens[some].astype(np.float64))
        interval = intervals.transformed(per_token, 1.0, exponential=True)
        bits = self.nll[text] / math.log(2)
        return {
            "samples": int(some.sum()),
            "samples_with_text": int(text.sum()),
            "tokens": int(self.tokens.sum()),
            "bytes": int(self.text_bytes.sum()),
            "perplexity_micro": _exp_mean(self.nll[some].sum(), self.tokens[some].sum()),
            "perplexity_micro_interval": [interval.low, interval.high] if interval else None,
            "perplexity_macro": _exp_mean((self.nll[some] / self.tokens[some]).sum(), int(some.sum())),
            "bits_per_byte_micro": _ratio(bits.sum(), self.text_bytes[text].sum()),
            "bits_per_byte_macro": _ratio((bits / self.text_bytes[text]).sum(), int(text.sum())),
        }


@dataclass(frozen=True)
class Perplexity:
    """What ``perplexity`` measured: over response (trainable) tokens, and over all tokens but each sample's first."""

    response: Likelihoods
    all: Likelihoods
    memory_splits: int

    def summary(self) -> dict[str, Any]:
        """Return both summaries as JSON."""
        return {
            "schema": SCHEMA,
            "response": self.response.summary(),
            "all": self.all.summary(),
            "memory_splits": self.memory_splits,
        }

    def save(self, folder: Path) -> None:
        """Write ``perplexity.parquet`` (one row per sample, in order), then ``perplexity.json``, sealed."""
        columns = {
            f"{name}_{what}": getattr(part, what)
            for name, part in (("response", self.response), ("all", self.all))
            for what in ("nll", "tokens", "text_bytes")
        }
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(columns), sink)
        files.write_bytes(folder / "perplexity.parquet", sink.getvalue().to_pybytes())
        files.write_bytes(folder / "perplexity.json", seal(self.summary()))


def load_summary(folder: Path) -> dict[str, Any] | None:
    """Return the summary that ``Perplexity.save`` wrote; None when there is none, or none that is sound."""
    path = folder / "perplexity.json"
    try:
        summary: dict[str, Any] = json.loads(unseal(path.read_bytes(), str(path)))
    except FileNotFoundError:
        return None
    except Corrupt as error:
        log.warning("%s; it is measured again", error)
        return None
    return summary


def _ratio(total: float, count: float) -> float | None:
    return float(total / count) if count else None


def _exp_mean(total: float, count: float) -> float | None:
    """Return exp(total / count), ``None`` when nothing was counted or it exceeds a float."""
    mean = _ratio(total, count)
    return None if mean is None or mean > 700 else math.exp(mean)


def perplexity(model: Any, samples: Samples, token_budget: int | None = None) -> Perplexity:
    """Measure a training set's samples under a causal model in eval mode.

    Batches are a pure function of the lengths. Every token but a sample's first is predicted, from the sample alone.

    Args:
        model: in eval mode, on its device.
        samples: with ``tokens`` within the model's context.
        token_budget: tokens of a batch with padding; by the kind of device when ``None``.

    Raises:
        Unsupported: a single sample does not fit into memory.
    """
    count = len(samples)
    nll = np.zeros((count, 2))  # response, all
    splits = 0
    budget = dense_budget(model, token_budget or batching.default_budget(model.device))
    for batch in batching.plan(samples.lengths.tolist(), budget):
        results, made = batching.run_split(batch, lambda part: _batch(model, samples, part))
        nll[batch] = results
        splits += made
    predicted = np.maximum(samples.lengths - 1, 0)
    return Perplexity(
        response=Likelihoods(nll[:, 0], _trainable(samples), samples.text_bytes[:, 1]),
        all=Likelihoods(nll[:, 1], predicted, samples.text_bytes[:, 0]),
        memory_splits=splits,
    )


def _trainable(samples: Samples) -> np.ndarray:
    """Return the trainable tokens of each sample, int64."""
    running = np.concatenate([[0], np.cumsum(samples.trainable, dtype=np.int64)])
    return np.diff(running[samples.offsets])


def _batch(model: Any, samples: Samples, indices: list[int]) -> list[tuple[float, float]]:
    """Return (NLL of the response tokens, NLL of all tokens) of some samples."""
    device = model.device
    taken = [samples[index] for index in indices]
    row_of = [row for row, (tokens, _) in enumerate(taken) for _ in range(len(tokens) - 1)]
    column_of = [column for tokens, _ in taken for column in range(len(tokens) - 1)]
    if not row_of:
        return [(0.0, 0.0)] * len(indices)
    logits = chosen_logits(
        model,
        batching.right_padded([tokens.tolist() for tokens, _ in taken], device),
        torch.tensor(row_of, device=device),
        torch.tensor(column_of, device=device),
    )
    targets = np.concatenate([tokens[1:] for tokens, _ in taken]).astype(np.int64)
    every = torch.arange(len(targets), device=device)
    logprobs, _ = target_logprobs(logits, every, torch.from_numpy(targets).to(device))
    nll = -logprobs.double().numpy()
    bounds = np.cumsum([0, *(len(tokens) - 1 for tokens, _ in taken)])
    return [
        (float(nll[start:end][trainable[1:]].sum()), float(nll[start:end].sum()))
        for start, end, (_, trainable) in zip(bounds[:-1], bounds[1:], taken, strict=True)
    ]


def token_length(samples: Samples) -> dict[str, Any]:
    """Return mean, median, 95th percentile, maximum and total of tokens per sample: all, and trainable ones."""
    return {
        "schema": SCHEMA,
        "samples": len(samples),
        "all": _spread(samples.lengths),
        "response": _spread(_trainable(samples)),
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
