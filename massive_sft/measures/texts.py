"""How likely a model holds each text of a fixed set: a vector by which models are compared, and a perplexity.

A text's log-likelihood is that of all of its tokens, the first behind the token that begins a sequence, in windows of
the model's length. It is a number of the text, whatever a model's tokens are.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from massive_sft.core.errors import Interrupted, InvalidInput, Problem, Unsupported
from massive_sft.evaluation import intervals
from massive_sft.evaluation.logits import NO_NUMBERS
from massive_sft.evaluation.requests import Rolling
from massive_sft.evaluation.scorer import PlainScorer
from massive_sft.evaluation.shards import Cut, shards
from massive_sft.sweep.semantics import MEASURE_SEMANTICS

LOGPROB = "logprob"


@dataclass(frozen=True)
class TextLikelihoods:
    """Of each text, in the order of its file.

    Attributes:
        logprob: float64, shape (texts,), nats.
        tokens: int64, shape (texts,).
        text_bytes: int64, shape (texts,), UTF-8.
    """

    logprob: np.ndarray
    tokens: np.ndarray
    text_bytes: np.ndarray

    def summary(self) -> dict[str, Any]:
        """Return perplexity a token and bits per byte, micro averages with 95 % intervals; None where there is none."""
        nats, count = -self.logprob, len(self.logprob)
        per_token = intervals.transformed(intervals.of_ratio(nats, self.tokens.astype(float)), 1.0, exponential=True)
        per_byte = intervals.transformed(
            intervals.of_ratio(nats, self.text_bytes.astype(float)), 1 / math.log(2), exponential=False
        )
        mean = float(nats.sum()) / int(self.tokens.sum())
        bits = float(nats.sum()) / math.log(2) / int(self.text_bytes.sum())
        return {
            "schema": MEASURE_SEMANTICS["texts"],
            "texts": count,
            "tokens": int(self.tokens.sum()),
            "bytes": int(self.text_bytes.sum()),
            "perplexity": math.exp(mean) if mean < intervals.LARGEST_EXPONENT else None,
            "perplexity_interval": [per_token.low, per_token.high] if per_token else None,
            "bits_per_byte": bits if math.isfinite(bits) else None,
            "bits_per_byte_interval": [per_byte.low, per_byte.high] if per_byte else None,
        }

    def to_parquet(self) -> bytes:
        """Return one row a text."""
        buffer = io.BytesIO()
        columns = {LOGPROB: self.logprob, "tokens": self.tokens, "text_bytes": self.text_bytes}
        pq.write_table(pa.table(columns), buffer, compression="zstd")
        return buffer.getvalue()


def read_texts(path: Path, column: str, limit: int | None, place: str) -> list[str]:
    """Return the texts of a file of JSON lines.

    Args:
        column: the key of a line that holds the text.
        limit: of the first so many; all of them for None.
        place: of the sweep file, for messages.

    Raises:
        InvalidInput: the file cannot be read, a line has no such text, or there is none at all.
    """
    texts: list[str] = []
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if len(texts) == limit:
                    break
                if line.strip():
                    texts.append(_text_of(line, column, f"{place}: {path}, line {number}"))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(Problem(place, f"cannot be read ({error})", str(path))) from error
    if not texts:
        raise InvalidInput(Problem(place, "has no text", str(path)))
    return texts


def _text_of(line: str, column: str, place: str) -> str:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InvalidInput(Problem(place, f"must be a JSON object ({error})", line[:40])) from error
    text = row.get(column) if isinstance(row, dict) else None
    if not isinstance(text, str) or not text:
        keys = tuple(row) if isinstance(row, dict) else ()
        raise InvalidInput(Problem(place, "must have a text that is not empty under this key", column, keys))
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(Problem(place, "holds half of a surrogate pair, which is no text", ascii(text))) from error
    return text


def text_likelihoods(scorer: PlainScorer, texts: list[str], stop: Callable[[], bool]) -> TextLikelihoods:
    """Measure texts, at least one, under a scorer's model.

    Args:
        stop: asked now and then; Interrupted is raised once it is true.

    Raises:
        Interrupted: ``stop`` said so.
        Unsupported: as ``PlainScorer.log_likelihoods``, or the model gives NaN for a text.
    """
    found: list[tuple[float, int]] = []
    for shard in shards([Rolling(index, index, 0, "", 1, text) for index, text in enumerate(texts)], Cut()):
        if stop():
            raise Interrupted("the run ends")
        found += scorer.log_likelihoods(texts[len(found) : len(found) + len(shard)])
    if any(math.isnan(logprob) for logprob, _ in found):
        raise Unsupported(NO_NUMBERS)
    return TextLikelihoods(
        np.array([logprob for logprob, _ in found]),
        np.array([count for _, count in found], dtype=np.int64),
        np.array([len(text.encode()) for text in texts], dtype=np.int64),
    )
