"""Correlations with what they can bear: n, Pearson and Spearman, 95 % intervals, p."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from scipy import stats

from massive_sft.study.frames import COORDINATES, last_epochs
from massive_sft.study.paired import EQUAL
from massive_sft.study.tables import primary_rows

MIN_PAIRS = 4
MAX_EXACT = 7
OVERALL = "overall"
HANGS, TWO, MIXED = "hangs on one point", "only two values", "methods mixed"
LONE = f"{HANGS}: nothing varies without it"
LEVEL = 0.05
_Z = float(stats.norm.ppf(0.975))


@dataclass(frozen=True)
class Correlation:
    """Two correlations of the same ``n`` pairs; NaN with a ``note`` where they cannot be had.

    Intervals are 95 % ones by Fisher's z, for Spearman with the variance of Bonett and Wright (2000), none where all
    ranks agree. p is two-sided, against no correlation; Spearman's is exact up to ``MAX_EXACT`` pairs, which have few
    orders. ``pearson_least`` and ``pearson_most`` bound Pearson's r with any one pair left out.
    """

    n: int
    pearson: float = math.nan
    pearson_low: float = math.nan
    pearson_high: float = math.nan
    pearson_p: float = math.nan
    spearman: float = math.nan
    spearman_low: float = math.nan
    spearman_high: float = math.nan
    spearman_p: float = math.nan
    note: str = ""
    pearson_least: float = math.nan
    pearson_most: float = math.nan


def correlate(x: Sequence[float] | np.ndarray | pd.Series, y: Sequence[float] | np.ndarray | pd.Series) -> Correlation:
    """Correlate the pairs of which both are finite.

    ``note`` is ``too few`` with fewer than four pairs, ``constant`` where one side does not vary, ``LONE``
    where without some pair one side does not vary, ``hangs on one point`` where without some pair a significant r is
    less than half, and ``only two values`` where one side has no more: as many pairs as there are then say one thing.
    """
    first, second = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    both = np.isfinite(first) & np.isfinite(second)
    first, second = first[both], second[both]
    n = len(first)
    if n < MIN_PAIRS:
        return Correlation(n, note="too few")
    shown = _to_rank(first), _to_rank(second)
    if any(np.ptp(values) == 0 for values in shown):
        return Correlation(n, note="constant")
    pearson, spearman = stats.pearsonr(first, second), stats.spearmanr(*shown)
    r, rho = float(pearson.statistic), float(spearman.statistic)
    left_out = _left_out(first, second)
    return Correlation(
        n,
        r,
        *_fisher(r, 1 / math.sqrt(n - 3)),
        float(pearson.pvalue),
        rho,
        *((math.nan, math.nan) if _is_perfect(rho) else _fisher(rho, math.sqrt((1 + rho * rho / 2) / (n - 3)))),
        float(spearman.pvalue) if n > MAX_EXACT else _exact_p(*shown),
        _note(first, second, r, float(pearson.pvalue), left_out),
        float(np.nanmin(left_out)) if np.isfinite(left_out).any() else math.nan,
        float(np.nanmax(left_out)) if np.isfinite(left_out).any() else math.nan,
    )


def _to_rank(values: np.ndarray) -> np.ndarray:
    """Return values over the largest, those equal that differ by rounding alone: gains of 0.3 - 0.2 and 0.2 - 0.1."""
    return np.round(values / (np.abs(values).max() or 1.0), 10)


def _exact_p(x: np.ndarray, y: np.ndarray) -> float:
    """Return the share of all orders of y whose ranks agree or disagree with those of x as much as they do here."""
    first, second = (ranks - ranks.mean() for ranks in (stats.rankdata(x), stats.rankdata(y)))
    products = second[_orders(len(x))] @ first
    return float((np.abs(products) >= abs(second @ first) - 1e-9).mean())


@functools.cache
def _orders(n: int) -> np.ndarray:
    """Return all orders of n things; shape (n!, n)."""
    return np.array(list(itertools.permutations(range(n))))


def _left_out(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return Pearson's r without each pair in turn, NaN where one side does not vary any more; shape (pairs,)."""
    n = len(x) - 1
    x, y = x - x.mean(), y - y.mean()

    def spread(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        # Both sums are 0, so the mean of the others is -value / n.
        return np.asarray(a @ b - a * b - a * b / n)

    variances = np.stack([spread(x, x), spread(y, y)])
    scale = np.array([[x @ x], [y @ y]])
    varies = (variances > 1e-12 * scale).all(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        r = spread(x, y) / np.sqrt(variances.prod(axis=0))
    return np.where(varies, np.clip(r, -1, 1), math.nan)


def _note(x: np.ndarray, y: np.ndarray, r: float, p: float, left_out: np.ndarray) -> str:
    if not np.isfinite(left_out).all():
        return LONE
    weakest = float((left_out * math.copysign(1, r)).min())
    if p < LEVEL and weakest < abs(r) / 2:
        return HANGS
    return TWO if _two(x) or _two(y) else ""


def _two(values: np.ndarray) -> bool:
    """Return whether all values are the least or the most, up to rounding."""
    least, most = values.min(), values.max()
    return all(min(abs(value - least), abs(value - most)) <= 1e-12 * np.abs(values).max() for value in values)


def _is_perfect(r: float) -> bool:
    return abs(r) >= 1 - 1e-12


def _fisher(r: float, stderr: float) -> tuple[float, float]:
    if _is_perfect(r):
        return r, r
    z = math.atanh(r)
    return math.tanh(z - _Z * stderr), math.tanh(z + _Z * stderr)


def points(cells: pd.DataFrame, gains: pd.DataFrame) -> pd.DataFrame:
    """Return one row per training run and benchmark column, at the run's last epoch, with what may explain its gain.

    Columns: ``cell``, ``trajectory``, the coordinates, ``column``, ``improvement`` (in the metric's own unit, better
    is larger), ``perplexity_all``, ``log_perplexity_all``, ``log_perplexity_response`` (of the training data under the
    base, nats per token), ``log_perplexity_text_response`` and ``bits_per_byte_response`` (likewise, without special
    tokens), ``layer_change``. The column ``overall`` is the mean over all benchmarks of the improvement
    in units of its standard deviation over the runs, those apart on which all runs improve alike; only for runs that
    have all of them.
    """
    rows = last_epochs(primary_rows(gains))[["cell", "column", "improvement"]]
    rows = pd.concat([rows, _overall(rows)], ignore_index=True)
    about = cells.assign(
        log_perplexity_all=np.log(cells["perplexity_all"]),
        log_perplexity_response=np.log(cells["perplexity_response"]),
        log_perplexity_text_response=np.log(cells["perplexity_text_response"]),
    )
    measures = ["perplexity_all", "log_perplexity_all", "log_perplexity_response", "log_perplexity_text_response"]
    measures += ["bits_per_byte_response", "layer_change"]
    return rows.merge(about[["cell", "trajectory", *COORDINATES, *measures]], on="cell")


def _overall(rows: pd.DataFrame) -> pd.DataFrame:
    wide = rows.pivot(index="cell", columns="column", values="improvement").dropna(axis="columns", how="all")
    spread = wide.std()
    varies = spread > EQUAL * wide.abs().max()  # what is less is rounding
    used = wide.loc[:, varies] / spread[varies]
    mean = used.mean(axis="columns", skipna=False)
    return pd.DataFrame({"cell": mean.index, "column": OVERALL, "improvement": mean.to_numpy(dtype=np.float64)})


def correlations(frame: pd.DataFrame, measures: Sequence[str], by: Sequence[str] = ("model", "method")) -> pd.DataFrame:
    """Correlate each measure with the improvement, by benchmark: over all runs, and within each value of ``by``.

    Args:
        frame: of ``points``.
        measures: its columns to correlate.

    Returns:
        ``measure``, ``column``, ``group`` (``all``, ``model=...``) and the fields of ``Correlation``; the note says so
        where one of layer change is over several methods, which are on different scales.
    """
    rows = []
    for column, members in frame.groupby("column", sort=False):
        groups: Mapping[str, pd.DataFrame] = {"all": members} | {
            f"{name}={value}": part
            for name in by
            for value, part in members.groupby(name)
            if members[name].nunique() > 1
        }
        for measure in measures:
            for group, part in groups.items():
                result = asdict(correlate(part[measure], part["improvement"]))
                if measure == "layer_change" and _mixes(part) and not math.isnan(result["pearson"]):
                    result["note"] = "; ".join(filter(None, (MIXED, result["note"])))
                rows.append({"measure": measure, "column": column, "group": group, **result})
    names = ["measure", "column", "group", *Correlation.__dataclass_fields__]
    return pd.DataFrame(rows, columns=names)


def _mixes(part: pd.DataFrame) -> bool:
    return bool(part.loc[part["layer_change"].notna(), "method"].nunique() > 1)


def layer_correlations(layers: pd.DataFrame, frame: pd.DataFrame, column: str = OVERALL) -> pd.DataFrame:
    """Correlate each layer's change with the improvement, within each model: layers of two models do not correspond.

    Args:
        layers: of ``frames.layer_changes``.
        frame: of ``points``.
        column: the benchmark column.

    Returns:
        ``model``, ``layer`` and the fields of ``Correlation``.
    """
    joined = frame[frame["column"] == column].merge(layers, on="cell")
    rows = [
        {"model": model, "layer": layer, **asdict(correlate(part["change"], part["improvement"]))}
        for (model, layer), part in joined.groupby(["model", "layer"])
    ]
    return pd.DataFrame(rows, columns=["model", "layer", *Correlation.__dataclass_fields__])
