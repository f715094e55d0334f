"""Perplexity and bits per byte of a training set under a model.

Special tokens (EOS, a chat template's end of turn and headers) stand for no byte of the text, and a base model gives
EOS after an answer almost no probability: counted with the text they would make short answers look unlikely. They are
told apart; bits per byte are of the text alone, perplexity is told with them and without.
"""

from __future__ import annotations

import json
import logging
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from massive_sft.core.checksummed_json import seal, unseal
from massive_sft.core.errors import Corrupt, Unsupported
from massive_sft.data.samples import Samples
from massive_sft.evaluation import batching, intervals
from massive_sft.evaluation.logits import NO_NUMBERS, chosen_logits, dense_budget, target_logprobs
from massive_sft.ledger.storage import Storage
from massive_sft.models.configuration import length_borders
from massive_sft.sweep.semantics import MEASURE_SEMANTICS

log = logging.getLogger(__name__)

SUMMARY = "perplexity.json"


@dataclass(frozen=True)
class Likelihoods:
    """Negative log-likelihoods of some of the samples' tokens, per sample; special tokens apart.

    Attributes:
        nll: float64, shape (samples,), nats, summed over the sample's tokens of text.
        tokens: int64, shape (samples,), tokens of text.
        special_nll, special_tokens: likewise, of the special tokens.
        text_bytes: int64, shape (samples,), UTF-8 bytes that these tokens of text cover.
    """

    nll: np.ndarray
    tokens: np.ndarray
    special_nll: np.ndarray
    special_tokens: np.ndarray
    text_bytes: np.ndarray

    def summary(self) -> dict[str, Any]:
        """Return perplexity and bits per byte, micro (over tokens or bytes) and macro (mean over samples).

        ``perplexity_*`` are over all tokens, ``perplexity_text_*`` and ``bits_per_byte_*`` over those of text;
        ``special_nll`` is the mean of a special token, in nats. Macro perplexity is the exponential of the mean over
        samples of the mean NLL per token. Samples without such a token, or without a byte, count in no mean;
        ``samples`` and ``samples_with_text`` say how many do. What cannot be had is None.
        """
        text = self.text_bytes > 0
        bits = self.nll[text] / math.log(2)
        every = _perplexities(self.nll + self.special_nll, self.tokens + self.special_tokens)
        return {
            "samples": int((self.tokens + self.special_tokens > 0).sum()),
            "samples_with_text": int(text.sum()),
            "tokens": int((self.tokens + self.special_tokens).sum()),
            "special_tokens": int(self.special_tokens.sum()),
            "bytes": int(self.text_bytes.sum()),
            **{f"perplexity_{name}": value for name, value in every.items()},
            **{f"perplexity_text_{name}": value for name, value in _perplexities(self.nll, self.tokens).items()},
            "special_nll": _ratio(self.special_nll.sum(), self.special_tokens.sum()),
            "bits_per_byte_micro": _ratio(bits.sum(), self.text_bytes[text].sum()),
            "bits_per_byte_macro": _ratio((bits / self.text_bytes[text]).sum(), int(text.sum())),
        }


def _perplexities(nll: np.ndarray, tokens: np.ndarray) -> dict[str, Any]:
    """Return ``micro`` with its 95 % interval, and ``macro``, of summed NLLs and tokens per sample."""
    some = tokens > 0
    nll, tokens = nll[some], tokens[some]
    per_token = intervals.of_ratio(nll, tokens.astype(np.float64))
    interval = intervals.transformed(per_token, 1.0, exponential=True)
    return {
        "micro": _exp_mean(nll.sum(), tokens.sum()),
        "micro_interval": [interval.low, interval.high] if interval else None,
        "macro": _exp_mean((nll / tokens).sum(), len(tokens)),
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
            "schema": MEASURE_SEMANTICS["perplexity"],
            "response": self.response.summary(),
            "all": self.all.summary(),
            "memory_splits": self.memory_splits,
        }

    def save(self, place: Storage) -> None:
        """Write ``perplexity.parquet`` (one row per sample, in order), then ``perplexity.json``, sealed."""
        columns = {
            f"{name}_{what}": getattr(part, what)
            for name, part in (("response", self.response), ("all", self.all))
            for what in ("nll", "tokens", "special_nll", "special_tokens", "text_bytes")
        }
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(columns), sink)
        place.put("perplexity.parquet", sink.getvalue().to_pybytes())
        place.put(SUMMARY, seal(self.summary()))


def load_summary(place: Storage) -> dict[str, Any] | None:
    """Return the summary that ``Perplexity.save`` wrote; None when there is none, or none that is sound."""
    try:
        summary: dict[str, Any] = json.loads(unseal(place.get(SUMMARY).data, f"{place}/{SUMMARY}"))
    except FileNotFoundError:
        return None
    except Corrupt as error:
        log.warning("%s; it is measured again", error)
        return None
    return summary


def _ratio(total: float, count: float) -> float | None:
    """Return total / count; ``None`` when nothing was counted, or a token cannot come (infinite NLL)."""
    return float(total / count) if count and math.isfinite(total) else None


def _exp_mean(total: float, count: float) -> float | None:
    """Return exp(total / count), ``None`` when nothing was counted or it exceeds a float."""
    mean = _ratio(total, count)
    return None if mean is None or mean > intervals.LARGEST_EXPONENT else math.exp(mean)


def perplexity(model: Any, samples: Samples, special: np.ndarray, token_budget: int | None = None) -> Perplexity:
    """Measure a training set's samples under a causal model in eval mode.

    Batches are a pure function of the lengths. Every token but a sample's first is predicted, from the sample alone.

    Args:
        model: in eval mode, on its device.
        samples: with ``tokens`` within the model's context.
        special: bool, shape (largest token id + 1,), the tokens that stand for no text (``encoding.special_tokens``).
        token_budget: tokens of a batch with padding; by the kind of device when ``None``.

    Raises:
        Unsupported: a single sample does not fit into memory, or the model gives NaN for one.
    """
    nll = np.zeros(len(samples.tokens))  # of each token; 0 for a sample's first, which nothing predicts
    splits = 0
    budget = dense_budget(model, token_budget or batching.default_budget(model.device))
    for batch in batching.plan(samples.lengths.tolist(), budget, length_borders(model.config)):
        results, made = batching.run_split(batch, lambda part: _batch(model, samples, part))
        for index, values in zip(batch, results, strict=True):
            nll[samples.offsets[index] + 1 : samples.offsets[index + 1]] = values
        splits += made
    if np.isnan(nll).any():
        raise Unsupported(NO_NUMBERS)
    predicted = np.ones(len(samples.tokens), dtype=bool)
    predicted[samples.offsets[:-1][samples.lengths > 0]] = False
    is_special = special[samples.tokens]
    return Perplexity(
        response=_likelihoods(nll, samples, samples.trainable, is_special, samples.text_bytes[:, 1]),
        all=_likelihoods(nll, samples, predicted, is_special, samples.text_bytes[:, 0]),
        memory_splits=splits,
    )


def _likelihoods(
    nll: np.ndarray, samples: Samples, chosen: np.ndarray, special: np.ndarray, text_bytes: np.ndarray
) -> Likelihoods:
    """Sum over the chosen tokens of each sample. All but ``text_bytes`` are of shape (total tokens,)."""
    of_text, of_special = chosen & ~special, chosen & special
    return Likelihoods(
        nll=_per_sample(samples, np.where(of_text, nll, 0.0)),  # a product would make NaN of infinity
        tokens=_per_sample(samples, of_text.astype(np.int64)),
        special_nll=_per_sample(samples, np.where(of_special, nll, 0.0)),
        special_tokens=_per_sample(samples, of_special.astype(np.int64)),
        text_bytes=text_bytes,
    )


def _per_sample(samples: Samples, values: np.ndarray) -> np.ndarray:
    """Return the sum over each sample of one value a token, in the values' type."""
    sample_of = np.repeat(np.arange(len(samples)), samples.lengths)
    return np.bincount(sample_of, weights=values, minlength=len(samples)).astype(values.dtype)


def _batch(model: Any, samples: Samples, indices: list[int]) -> list[np.ndarray]:
    """Return the NLL of every token but the first of some samples: float64, shape (tokens - 1,) each."""
    device = model.device
    taken = [samples[index][0] for index in indices]
    row_of = [row for row, tokens in enumerate(taken) for _ in range(len(tokens) - 1)]
    column_of = [column for tokens in taken for column in range(len(tokens) - 1)]
    if not row_of:
        return [np.zeros(0)] * len(indices)
    logits = chosen_logits(
        model,
        batching.right_padded([tokens.tolist() for tokens in taken], device),
        torch.tensor(row_of, device=device),
        torch.tensor(column_of, device=device),
    )
    targets = np.concatenate([tokens[1:] for tokens in taken]).astype(np.int64)
    every = torch.arange(len(targets), device=device)
    logprobs, _ = target_logprobs(logits, every, torch.from_numpy(targets).to(device))
    nll = -logprobs.double().numpy()
    return np.split(nll, np.cumsum([max(len(tokens) - 1, 0) for tokens in taken])[:-1])
