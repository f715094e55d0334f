"""Intervals of a metric from its per-sample values: closed forms, no resampling."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

Z = 1.959963984540054  # 95 %
LARGEST_EXPONENT = 700.0  # whose exponential is a float, and a standard error of it too


@dataclass(frozen=True)
class Interval:
    """A 95 % interval, its standard error, and the method: ``wilson``, ``normal`` or ``delta``."""

    low: float
    high: float
    stderr: float
    method: str


def of_mean(values: np.ndarray) -> Interval | None:
    """Return the interval of a mean: Wilson's where all values are 0 or 1, else the normal one.

    Args:
        values: float64, shape (samples,). Fewer than two give ``None``.
    """
    n = len(values)
    if n < 2 or not np.isfinite(values).all():
        return None
    mean = float(values.mean())
    stderr = float(values.std(ddof=1)) / math.sqrt(n)
    if np.isin(values, (0.0, 1.0)).all():
        centre = (mean + Z * Z / (2 * n)) / (1 + Z * Z / n)
        half = Z / (1 + Z * Z / n) * math.sqrt(mean * (1 - mean) / n + Z * Z / (4 * n * n))
        low = 0.0 if mean == 0 else centre - half  # exactly: rounding would leave some 1e-17
        high = 1.0 if mean == 1 else centre + half
        return Interval(low, high, stderr, "wilson")
    return Interval(mean - Z * stderr, mean + Z * stderr, stderr, "normal")


def of_ratio(values: np.ndarray, weights: np.ndarray) -> Interval | None:
    """Return the interval of ``sum(values) / sum(weights)`` by the delta method (linearised ratio estimator).

    Args:
        values, weights: float64, shape (samples,).
    """
    n = len(values)
    total = float(weights.sum())
    if n < 2 or total <= 0 or not np.isfinite(values).all():
        return None
    ratio = float(values.sum()) / total
    residuals = values - ratio * weights
    stderr = math.sqrt(n / (n - 1) * float(residuals @ residuals)) / total
    return Interval(ratio - Z * stderr, ratio + Z * stderr, stderr, "delta")


def transformed(interval: Interval | None, scale: float, exponential: bool) -> Interval | None:
    """Return the interval of ``scale * x``, or of ``exp(scale * x)``, from the one of ``x``; None beyond a float."""
    if interval is None:
        return None
    low, high = sorted((scale * interval.low, scale * interval.high))
    stderr = abs(scale) * interval.stderr
    if exponential and high > LARGEST_EXPONENT:
        return None
    if exponential:
        middle = math.exp((low + high) / 2)
        return Interval(math.exp(low), math.exp(high), middle * stderr, "delta")
    return Interval(low, high, stderr, interval.method)
