"""Numbers as text. What is missing is a dash, never 0."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from massive_sft.suites import metrics

MISSING = "—"
_MINUS = "\N{MINUS SIGN}"


def is_missing(value: Any) -> bool:
    """Return whether there is no number: None, NaN or pandas' NA."""
    return value is None or bool(pd.isna(value))


def format_number(value: Any, digits: int | None = None, signed: bool = False) -> str:
    """Return a number with so many decimals, or with about four significant digits; a dash where there is none."""
    if is_missing(value):
        return MISSING
    value = float(value)
    if not math.isfinite(value):
        return MISSING
    text = f"{value:+.{_digits(value) if digits is None else digits}f}"
    if not float(text):
        text = text.lstrip("+-")  # no negative zero
    elif not signed:
        text = text.removeprefix("+")
    return text.replace("-", _MINUS)


def _digits(value: float) -> int:
    size = abs(value)
    if size >= 100 or not size:
        return 0 if size >= 1000 else 1
    return max(1, min(5, 2 - math.floor(math.log10(size))))


def format_count(value: Any) -> str:
    """Return a whole number with separators; a dash where there is none."""
    return MISSING if is_missing(value) else f"{int(value):,}"


def format_large(value: Any) -> str:
    """Return a count in thousands, millions or billions: ``3.15 M``."""
    if is_missing(value):
        return MISSING
    for size, name in ((1e9, "B"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            return f"{format_number(value / (size if name != 'k' else 1e3))} {name}"
    return format_count(value)


def format_duration(seconds: float) -> str:
    """Return a time such as ``2 h 05 min`` or ``48 s``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60:,} h {minutes % 60:02d} min"


def format_score(value: Any, metric: Any, signed: bool = False) -> str:
    """Return a score, or with ``signed`` a gain, in the unit that people read (``metrics.scale``).

    A gain has more digits where it would be shown as 0, as the ends of its interval have.
    """
    if is_missing(value) or is_missing(metric):
        return MISSING
    number, digits = float(value) * metrics.scale(metric), _score_digits(metric)
    return format_number(number, metrics.visible_digits(number, digits) if signed else digits, signed)


def _score_digits(metric: str) -> int:
    return 1 if metrics.unit(metric) == "%" else 3


def format_interval(low: Any, high: Any, metric: Any = None, signed: bool = False, short: bool = False) -> str:
    """Return ``low to high``: of scores where a metric is given, with a digit less if ``short``; a dash for none.

    Both ends have as many digits as the one beside 0 needs, for it tells whether 0 lies within.
    """
    if is_missing(low) or is_missing(high):
        return MISSING
    if metric is None:
        return f"{format_number(low, 2)} to {format_number(high, 2)}"
    factor = metrics.scale(metric)
    ends = [float(low) * factor, float(high) * factor]
    digits = _score_digits(metric) - (short and factor > 1)
    digits = max(metrics.visible_digits(end, digits) for end in ends)
    return " to ".join(format_number(end, digits, signed) for end in ends)


def early_mark(row: Mapping[str, Any]) -> str:
    """Return what stands behind a score or gain: the mark of an early answer, else nothing."""
    return f" {metrics.EARLY}" if not is_missing(row["early"]) and row["early"] else ""


def early_notes(frame: pd.DataFrame) -> list[str]:
    """Return the sentence on the mark of early answers; none where no row has it."""
    if not frame["early"].fillna(False).astype(bool).any():
        return []
    return [
        f"{metrics.EARLY_NOTE}, at 95 %. Its score is the base model's on all questions plus the mean difference on "
        "those that were asked, which is its gain; its own interval, as every other's, is that of the score on "
        "questions of this kind."
    ]
