"""Differences of two cells' scores with intervals from the questions that both answered."""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from scipy import stats

from massive_sft.core.errors import Corrupt
from massive_sft.ledger.record import Record
from massive_sft.ledger.store import Ledger
from massive_sft.study.frames import to_rows
from massive_sft.study.paired import EQUAL, LEVEL, McNemar, Paired, samples_file
from massive_sft.suites.metrics import possible_difference

PAIRED = "paired"
_CLOSE = 1e-6  # how far a score may be from what its per-sample values give

Key = tuple[str, str, str, str]
"""Protocol, task (empty for all tasks of the protocol, a group's), metric, filter."""
Tables = Mapping[tuple[str, str, str], pd.DataFrame]
"""The per-sample values of a protocol by the rest of the key: ``task``, ``doc``, ``value``, ``weight``."""


def key_of(row: Mapping[str, object]) -> Key:
    """Return the key of a row of ``frames.tidy``."""
    task = "" if row["kind"] == "group" else str(row["task"])
    return str(row["protocol"]), task, str(row["metric"]), str(row["filter"])


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

    def among(self, documents: Set[tuple[str, int]]) -> Samples:
        """Return those of some documents, in the order of the documents."""
        found = (index for index, document in enumerate(self.documents) if document in documents)
        chosen = sorted(found, key=self.documents.__getitem__)
        return Samples(tuple(self.documents[index] for index in chosen), self.values[chosen], self.weights[chosen])


def read_tables(ledger: Ledger, record: Record, protocol: str) -> Tables:
    """Return a cell's per-sample values under a protocol; nothing where the ledger has none.

    Raises ``Corrupt`` when the file is not the one that the record rests on, OSError, and ValueError or KeyError when
    it has other columns.
    """
    path = samples_file(ledger, record, protocol)
    if path is None:
        return {}
    frame = pq.read_table(path, columns=["task", "doc", "metric", "filter", "value", "weight"]).to_pandas()
    frame = frame[frame["value"].notna()]
    whole = frame.assign(task="")
    parts = (part.groupby(["task", "metric", "filter"], sort=False) for part in (frame, whole))
    return {key: frame.loc[index] for part in parts for key, index in part.groups.items()}


def samples_at(tables: Tables, task: str, metric: str, chosen: str) -> Samples | None:
    """Return the values at a key; None where there are none, or some have weights and others not."""
    rows = tables.get((task, metric, chosen))
    if rows is None or rows["weight"].isna().nunique() > 1:
        return None
    weights = rows["weight"].fillna(1.0).to_numpy(np.float64)
    documents = tuple(zip(rows["task"].astype(str), rows["doc"].astype(int), strict=True))
    return Samples(documents, rows["value"].to_numpy(np.float64), weights)


@dataclass
class SampleReader:
    """Reads cells' per-sample values, the files last read kept.

    An unsound file is reported to the ledger and counts as not there.
    """

    ledger: Ledger
    records: Mapping[str, Record]

    def __post_init__(self) -> None:
        # Two cells are compared at a time, and many with one base.
        self._file = lru_cache(maxsize=4)(self._read)

    def read(self, cell: str, key: Key) -> Samples | None:
        """Return a cell's values; None where the ledger has none."""
        protocol, *rest = key
        return samples_at(self._file(cell, protocol), *rest)

    def read_row(self, row: Mapping[str, Any]) -> Samples | None:
        """Return the values that the score of a row of ``frames.tidy`` is made of; None where the ledger has none.

        Nor has a group of some of the protocol's tasks values of its own.
        """
        found = self.read(str(row["cell"]), key_of(row))
        return None if found is None or (row["kind"] == "group" and len(found.values) != row["n"]) else found

    def _read(self, cell: str, protocol: str) -> Tables:
        try:
            return read_tables(self.ledger, self.records[cell], protocol)
        except (Corrupt, OSError, ValueError, KeyError) as error:
            self.ledger.report_corrupt(self.ledger.cell_dir(cell), f"{cell}: per-sample values of {protocol}: {error}")
            return {}


def compare(first: Samples, second: Samples, scores: tuple[float, float]) -> Paired | None:
    """Compare two cells' scores on the questions that both answered; of more than these the whole scores are.

    None where they share none, or where the scores are no fixed multiple of these values' ratio.
    """
    scale = _common_scale(first, second, scores)
    shared = frozenset(first.documents) & frozenset(second.documents)
    if scale is None or not shared:
        return None
    left, right = first.among(shared), second.among(shared)
    of_shared = scale * left.ratio, scale * right.ratio
    unpaired = len(first.documents) + len(second.documents) - 2 * len(shared)
    interval = paired_interval(left, right, of_shared)
    return Paired(of_shared[1] - of_shared[0], interval, len(shared), unpaired, _mcnemar(left, right))


def _mcnemar(first: Samples, second: Samples) -> McNemar | None:
    """Return the exact test of two cells' values of the same questions; None where one is neither 0 nor 1."""
    if not (_is_right_or_wrong(first) and _is_right_or_wrong(second)):
        return None
    lost, learnt = int((first.values > second.values).sum()), int((second.values > first.values).sum())
    changed = lost + learnt
    return McNemar(lost, learnt, float(stats.binomtest(lost, changed, 0.5).pvalue) if changed else 1.0)


def _is_right_or_wrong(samples: Samples) -> bool:
    """Whether every value is 0 or 1, and all count alike."""
    return bool(np.isin(samples.values, (0.0, 1.0)).all() and (samples.weights == 1.0).all())


def paired_interval(first: Samples, second: Samples, scores: tuple[float, float]) -> tuple[float, float] | None:
    """Return the 95 % interval of the second score less the first, from the differences on the same questions.

    Of answers that are right or wrong Bonett and Price's (``_of_changes``). Else Student's t on the differences of a
    mean; of a ratio of sums (bits per byte) on the linearised differences. None where the questions are not the same,
    where the scores are no fixed multiple of these values' ratio (an F1, a perplexity), or where no value that is more
    than right or wrong changed, or all alike, from which no spread can be estimated.
    """
    same = first.documents == second.documents and np.array_equal(first.weights, second.weights)
    if not same or len(first.values) < 2:
        return None
    scale = _common_scale(first, second, scores)
    if scale is None:
        return None
    if _is_right_or_wrong(first) and _is_right_or_wrong(second):
        low, high = sorted(scale * end for end in _of_changes(second.values - first.values))
        return low, high
    n = len(first.values)
    difference = second.ratio - first.ratio
    residuals = second.values - first.values - difference * first.weights
    if np.abs(residuals).max() <= EQUAL * max(np.abs(first.values).max(), np.abs(second.values).max()):
        return None
    spread = math.sqrt(n / (n - 1) * float(residuals @ residuals)) / float(first.weights.sum())
    half = abs(scale) * float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * spread
    return scores[1] - scores[0] - half, scores[1] - scores[0] + half


def _of_changes(changes: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of the mean of changes, -1, 0 or 1 each, also where few answers changed, or none.

    Wald's with one question more that was learnt and one that was lost (Bonett and Price 2012, J. Educ. Behav. Stat.
    37(4)). Student's t holds 95 % of the truth only where many changed: of 10 questions that a tenth change 51 %.

    Args:
        changes: float64, shape (questions,).
    """
    n = len(changes) + 2
    learnt, lost = (int((changes > 0).sum()) + 1) / n, (int((changes < 0).sum()) + 1) / n
    mean = learnt - lost
    half = float(stats.norm.ppf((1 + LEVEL) / 2)) * math.sqrt((learnt + lost - mean * mean) / n)
    return max(-1.0, mean - half), min(1.0, mean + half)


def early_interval(base: Samples, early: Samples, gain: float) -> tuple[float, float] | None:
    """Return the 95 % interval of an early answer's gain, from the questions that were asked.

    Of answers that are right or wrong as of a full score's (``_of_changes``), else Student's t. None where the base
    model's values of them are not there, where the gain is not the mean of the changes (that over a tuned cell is not:
    early scores rest on the base model's), and where no value that is more than right or wrong changed, or all alike.
    """
    before, n = base.among(frozenset(early.documents)), len(early.documents)
    after = early.among(frozenset(before.documents))
    if n < 2 or len(before.documents) < n:
        return None
    differences = after.values - before.values
    if not math.isclose(float(differences.mean()), gain, rel_tol=_CLOSE, abs_tol=_CLOSE):
        return None
    if _is_right_or_wrong(before) and _is_right_or_wrong(after):
        return _of_changes(differences)
    spread = float(differences.std(ddof=1))
    if spread <= EQUAL:
        return None
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * spread / math.sqrt(n)
    return gain - half, gain + half


def _common_scale(first: Samples, second: Samples, scores: tuple[float, float]) -> float | None:
    """Return what both ratios are multiplied by to give the scores; None where there is no such number."""
    scale = _scale(first.ratio, scores[0]), _scale(second.ratio, scores[1])
    return scale[0] if math.isfinite(scale[0]) and math.isclose(*scale, rel_tol=_CLOSE) else None


def _scale(ratio: float, score: float) -> float:
    """Return what the ratio is multiplied by to give the score; 1 where both are 0."""
    if abs(ratio) < 1e-12:
        return 1.0 if abs(score) < 1e-12 else math.nan
    return score / ratio


def with_paired_intervals(gains: pd.DataFrame, reader: SampleReader) -> pd.DataFrame:
    """Return the rows of ``tables.gains`` or ``contrasts.differences`` with paired intervals where both cells' values
    of each question are there: their ``gain_interval`` is ``paired`` then.
    """
    frame = gains.copy()
    wanted = frame[frame["gain"].notna()]
    wanted = wanted.sort_values(["base_cell", "protocol", "cell"], kind="stable")
    names = ["cell", "base_cell", "protocol", "full_protocol", "kind", "task", "metric", "filter", "value", "base", "n"]
    names += ["gain", "early"]
    found: dict[int, tuple[float, float]] = {}
    for index, row in zip(wanted.index, to_rows(wanted[names]), strict=True):
        before = reader.read(str(row["base_cell"]), key_of(row | {"protocol": row["full_protocol"]}))
        own = reader.read_row(row)
        scores = (float(row["base"]), float(row["value"]))
        if own is None or before is None:
            continue
        is_early = not pd.isna(row["early"]) and row["early"]
        bounds = early_interval(before, own, row["gain"]) if is_early else paired_interval(before, own, scores)
        if bounds is not None:
            found[index] = possible_difference(str(row["metric"]), scores[1] - scores[0], *bounds)
    rows = list(found)
    frame.loc[rows, "gain_low"] = [low for low, _ in found.values()]
    frame.loc[rows, "gain_high"] = [high for _, high in found.values()]
    frame.loc[rows, "gain_interval"] = PAIRED
    return frame
