"""Two cells on the same samples: the mean difference with its interval, and McNemar's exact test."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from massive_sft.ledger.paths import cell_key
from massive_sft.ledger.record import Record
from massive_sft.ledger.store import Ledger

SampleValues = dict[tuple[str, str, str], dict[int, float]]
LEVEL = 0.95
EQUAL = 1e-9
"""Share of the largest value below which a spread is rounding, and the values are equal."""


@dataclass(frozen=True)
class McNemar:
    """Samples that one cell alone gets right, and the two-sided probability of a split so uneven (exact binomial)."""

    only_first: int
    only_second: int
    p: float


@dataclass(frozen=True)
class Paired:
    """The second cell's value less the first's, sample by sample.

    Attributes:
        mean: of the differences.
        interval: the 95 % one of the mean (Student's t); None for fewer than two samples, or differences all equal,
            from which no spread can be estimated.
        n: samples that both cells have.
        unpaired: samples that one cell alone has, left out.
        mcnemar: where every value is 0 or 1.
    """

    mean: float
    interval: tuple[float, float] | None
    n: int
    unpaired: int
    mcnemar: McNemar | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compare(first: dict[int, float], second: dict[int, float]) -> Paired | None:
    """Compare values by sample (lm-eval's document id); None when the cells share no sample."""
    import numpy as np
    from scipy import stats

    common = sorted(first.keys() & second.keys())
    if not common:
        return None
    left, right = (np.array([values[doc] for doc in common], dtype=np.float64) for values in (first, second))
    differences = right - left
    mean, n = float(differences.mean()), len(common)
    spread = float(differences.std(ddof=1)) if n > 1 else 0.0
    interval = None
    if spread > EQUAL * max(np.abs(left).max(), np.abs(right).max()):
        half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * spread / math.sqrt(n)
        interval = (mean - half, mean + half)
    mcnemar = None
    if np.isin(left, (0.0, 1.0)).all() and np.isin(right, (0.0, 1.0)).all():
        only_first, only_second = int((differences < 0).sum()), int((differences > 0).sum())
        changed = only_first + only_second
        p = float(stats.binomtest(only_first, changed, 0.5).pvalue) if changed else 1.0
        mcnemar = McNemar(only_first, only_second, p)
    return Paired(mean, interval, n, len(first.keys() ^ second.keys()), mcnemar)


def samples_file(ledger: Ledger, record: Record, protocol: str) -> Path | None:
    """Return the Parquet file of a cell's per-sample values under a protocol; None when the ledger holds none.

    Raises ``Corrupt`` when the file is not the one that the record rests on.
    """
    name = f"{cell_key(record.cell)}/scores/{protocol}.parquet"
    if name not in record.files:
        path = ledger.storage.fetch_file(name)
        return path if path.is_file() else None
    try:
        return ledger.verified_file(record, name)
    except FileNotFoundError:
        return None


def read_samples(ledger: Ledger, record: Record, protocol: str) -> SampleValues | None:
    """Return a cell's per-sample values by (task, metric, filter), then by document.

    Values that are sums over bytes or words, or no numbers, are left out: their mean is not the score. None when the
    ledger holds no such file. Raises ``Corrupt`` as ``samples_file``.
    """
    import pyarrow.parquet as pq

    path = samples_file(ledger, record, protocol)
    if path is None:
        return None
    samples: SampleValues = {}
    for row in pq.read_table(path).to_pylist():
        if row["value"] is not None and row["weight"] is None:
            samples.setdefault((row["task"], row["metric"], row["filter"]), {})[row["doc"]] = row["value"]
    return samples
