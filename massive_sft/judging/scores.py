"""Verdicts as scores: means with intervals that hold for whatever the answers without a verdict would have got."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from massive_sft.evaluation import intervals

Entries = dict[str, dict[str, Any]]  # by ``metric,filter``, as in the tables of other benchmarks
Verdicts = Mapping[tuple[int, int], float | None]
"""By question and part (the turn, or the order of a pair, from 0); None where an answer held no verdict."""
BOUNDED = " of the worst and the best that answers without a verdict can be"


@dataclass
class Tables:
    """Scores of a judged benchmark: tables as ``aggregate`` has them, and rows of per-sample values."""

    tasks: dict[str, Entries] = field(default_factory=dict)
    groups: dict[str, Entries] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add_rows(self, task: str, metric: str, judge: str, values: Mapping[int, float | None]) -> None:
        """Add the values of a metric by question; a question without one is there all the same."""
        empty = {"weight": None, "extracted": None, "detail": None}
        for number, value in values.items():
            self.rows.append({"task": task, "doc": number, "metric": metric, "filter": judge, "value": value, **empty})


@dataclass(frozen=True)
class Scale:
    """The worst and the best that a verdict can be."""

    worst: float
    best: float

    def mean(self, verdicts: Sequence[Sequence[float | None]]) -> dict[str, Any]:
        """Return the score of questions: the mean over them of the mean over each one's parts.

        The value is that of the verdicts there are. Where some are not there, the interval reaches from the lower end
        of the one with the worst in their place to the upper end of the one with the best.

        Args:
            verdicts: by question, those of its parts.
        """
        known = [value for value in map(_mean, verdicts) if value is not None]
        value = float(np.mean(known)) if known else None
        ends = [intervals.of_mean(self._filled(verdicts, worst)) for worst in (self.worst, self.best)]
        own = intervals.of_mean(np.array(known, dtype=np.float64))
        entry: dict[str, Any] = {"value": value, "interval": None, "method": None}
        entry["stderr"] = own.stderr if own else None
        low, high = ends
        if own is not None and low is not None and high is not None:
            gaps = any(item is None for parts in verdicts for item in parts)
            reach = [max(self.worst, low.low), min(self.best, high.high)]
            entry |= {"interval": reach, "method": own.method + (BOUNDED if gaps else "")}
        return {**entry, "n": len(known), "higher_is_better": True}

    def _filled(self, verdicts: Sequence[Sequence[float | None]], missing: float) -> np.ndarray:
        filled = [[missing if item is None else item for item in parts] for parts in verdicts]
        return np.array([np.mean(parts) for parts in filled], dtype=np.float64)


def plain(value: float | None, n: int, higher_is_better: bool | None = None) -> dict[str, Any]:
    """Return a score that has no interval."""
    return {
        "value": value,
        "stderr": None,
        "interval": None,
        "method": None,
        "n": n,
        "higher_is_better": higher_is_better,
    }


def agreement(first: Verdicts, second: Verdicts, within: float) -> Entries:
    """Return how far two judges agree on what both have a verdict on.

    Args:
        within: verdicts that differ by no more than this agree.

    Returns:
        ``agreement`` (the share of verdicts that agree), ``mean_difference`` (the second less the first) and
        ``correlation`` (Pearson's; None where one of them always says the same), by metric.
    """
    pairs = [(a, b) for key, a in first.items() if a is not None and (b := second.get(key)) is not None]
    if not pairs:
        return {name: plain(None, 0) for name in ("agreement", "mean_difference", "correlation")}
    a, b = np.array(pairs, dtype=np.float64).T
    varies = len(pairs) > 1 and float(a.std()) > 0 and float(b.std()) > 0
    return {
        "agreement": plain(float(np.mean(np.abs(a - b) <= within)), len(pairs)),
        "mean_difference": plain(float(np.mean(b - a)), len(pairs)),
        "correlation": plain(float(np.corrcoef(a, b)[0, 1]) if varies else None, len(pairs)),
    }


def failures(verdicts: Verdicts) -> int:
    """Return how many answers held no verdict."""
    return sum(value is None for value in verdicts.values())


def _mean(parts: Sequence[float | None]) -> float | None:
    known = [value for value in parts if value is not None]
    return float(np.mean(known)) if known else None


def filter_of(number: int, judge: str) -> str:
    """Return what stands in the place of lm-eval's filter: nothing for the first judge, else the judge's name."""
    return "none" if number == 0 else judge
