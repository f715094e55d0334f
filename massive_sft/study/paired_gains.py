"""Differences of two cells' scores with intervals from the questions that both answered."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from scipy import stats

from massive_sft.core.errors import Corrupt
from massive_sft.ledger.record import Record
from massive_sft.ledger.store import Ledger
from massive_sft.study.paired import samples_file

PAIRED = "paired"
LEVEL = 0.95
_CLOSE = 1e-6  # how far a score may be from what its per-sample values give

Key = tuple[str, str, str, str]
"""Protocol, task (empty for all tasks of the protocol, a group's), metric, filter."""


@dataclass(frozen=True)
class Samples:
    """Per-sample values and what their sum is divided by, float64, shape (documents,): 1 each where it is a mean."""

    documents: tuple[tuple[str, int], ...]
    values: np.ndarray
    weights: np.ndarray

    @property
    def ratio(self) -> float:
        """The sum of the values over that of the weights."""
        whole = float(self.weights.sum())
        return float(self.values.sum()) / whole if whole else math.nan


@dataclass
class SampleReader:
    """Reads cells' per-sample values, those of base models once for all cells that are compared with them.

    An unsound file is reported to the ledger and counts as not there.
    """

    ledger: Ledger
    records: Mapping[str, Record]
    _kept: dict[tuple[str, str], pd.DataFrame] = field(default_factory=dict)
    _last: tuple[tuple[str, str], pd.DataFrame] | None = None

    def read(self, cell: str, key: Key, keep: bool = False) -> Samples | None:
        """Return a cell's values; None where the ledger has none. ``keep`` holds the file for the next call."""
        protocol, task, metric, chosen = key
        frame = self._frame(cell, protocol, keep)
        rows = frame[(frame["metric"] == metric) & (frame["filter"] == chosen) & frame["value"].notna()]
        rows = rows[rows["task"] == task] if task else rows
        if rows.empty or rows["weight"].isna().nunique() > 1:
            return None
        weights = rows["weight"].fillna(1.0).to_numpy(np.float64)
        documents = tuple(zip(rows["task"].astype(str), rows["doc"].astype(int), strict=True))
        return Samples(documents, rows["value"].to_numpy(np.float64), weights)

    def _frame(self, cell: str, protocol: str, keep: bool) -> pd.DataFrame:
        at = (cell, protocol)
        if at in self._kept:
            return self._kept[at]
        if self._last is None or self._last[0] != at:
            self._last = (at, self._read(cell, protocol))
        if keep:
            self._kept[at] = self._last[1]
        return self._last[1]

    def _read(self, cell: str, protocol: str) -> pd.DataFrame:
        columns = ["task", "doc", "metric", "filter", "value", "weight"]
        try:
            path = samples_file(self.ledger, self.records[cell], protocol)
            return pd.DataFrame(columns=columns) if path is None else pq.read_table(path, columns=columns).to_pandas()
        except (Corrupt, OSError, ValueError, KeyError) as error:
            self.ledger.report_corrupt(self.ledger.cell_dir(cell), f"{cell}: per-sample values of {protocol}: {error}")
            return pd.DataFrame(columns=columns)


def paired_interval(first: Samples, second: Samples, scores: tuple[float, float]) -> tuple[float, float] | None:
    """Return the 95 % interval of the second score less the first, from the differences on the same questions.

    Student's t on the differences of a mean; of a ratio of sums (bits per byte) on the linearised differences.
    None where the questions are not the same, where the scores are no fixed multiple of these values' ratio (an F1, a
    perplexity), or where no answer changed, from which no spread can be estimated.
    """
    same = first.documents == second.documents and np.array_equal(first.weights, second.weights)
    if not same or len(first.values) < 2:
        return None
    scale = _scale(first.ratio, scores[0]), _scale(second.ratio, scores[1])
    if not math.isfinite(scale[0]) or not math.isclose(*scale, rel_tol=_CLOSE):
        return None
    n = len(first.values)
    difference = second.ratio - first.ratio
    residuals = second.values - first.values - difference * first.weights
    spread = math.sqrt(n / (n - 1) * float(residuals @ residuals)) / float(first.weights.sum())
    if spread <= 0:
        return None
    half = abs(scale[0]) * float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * spread
    return scores[1] - scores[0] - half, scores[1] - scores[0] + half


def _scale(ratio: float, score: float) -> float:
    """Return what the ratio is multiplied by to give the score; 1 where both are 0."""
    if abs(ratio) < 1e-12:
        return 1.0 if abs(score) < 1e-12 else math.nan
    return score / ratio


def with_paired_intervals(gains: pd.DataFrame, bases: Mapping[str, str], reader: SampleReader) -> pd.DataFrame:
    """Return the rows of ``tables.gains`` with paired intervals where both cells' values of each question are there.

    Only primary rows are; their ``gain_interval`` is ``paired`` then.

    Args:
        gains: of ``tables.gains``.
        bases: the base model's cell by the model's name.
        reader: of the ledger's per-sample values.
    """
    frame = gains.copy()
    wanted = frame[frame["primary"].fillna(False) & frame["gain"].notna()].sort_values("cell", kind="stable")
    names = ["cell", "model", "protocol", "kind", "task", "metric", "filter", "value", "base"]
    found: dict[int, tuple[float, float]] = {}
    columns: Iterable[tuple[int, ...]] = zip(wanted.index, *(wanted[name] for name in names), strict=True)
    for index, cell, model, protocol, kind, task, metric, chosen, value, base in columns:
        if model not in bases:
            continue
        key = (str(protocol), "" if kind == "group" else str(task), str(metric), str(chosen))
        own, before = reader.read(str(cell), key), reader.read(bases[str(model)], key, keep=True)
        bounds = paired_interval(before, own, (float(base), float(value))) if own and before else None
        if bounds is not None:
            found[index] = bounds
    rows = list(found)
    frame.loc[rows, "gain_low"] = [low for low, _ in found.values()]
    frame.loc[rows, "gain_high"] = [high for _, high in found.values()]
    frame.loc[rows, "gain_interval"] = PAIRED
    return frame
