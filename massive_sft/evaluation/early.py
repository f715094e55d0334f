"""Early answers: a tuned model's score from some of a benchmark's questions and the base model's answers to all.

The score is the base model's on all questions plus the mean difference to it on those that were asked. After each look
(``looks.SHARES``) the half-width of the mean difference's interval says whether that is enough. Looking several times
errs more often than once, so each look's interval has its share of the 5 % (Bonferroni): 99 % at each of five. What is
estimated is the score that all questions would give, of which those asked are a random part without replacement.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import stats

from massive_sft.core.fingerprint import fingerprint
from massive_sft.evaluation import aggregate
from massive_sft.evaluation.build import BenchmarkRequests
from massive_sft.evaluation.interim_looks import SHARES, Looks
from massive_sft.evaluation.intervals import Z
from massive_sft.evaluation.responses import AnswerShard
from massive_sft.evaluation.sample_values import is_number, values_of
from massive_sft.sandbox.run import Choice
from massive_sft.suites.declared import standing_for, title

ERROR = 0.05
"""How often an early score may lie further from the full one than it says."""
CHANGES = 4
"""Answers that are taken to have changed beside those that did, half of them for the better. Where few answers change,
a sample may hold none of them, and its spread alone would be sure that there are none."""
_CLOSE = 1e-6  # how far a group's score may be from the mean of its questions' values

Values = Mapping[str, Mapping[str, Mapping[int, float]]]
"""By leaf task, then by ``metric,filter``, then by document."""
FindBase = Callable[[], tuple[dict[str, Any], bytes] | None]
"""Returns the base model's table and per-sample values as Parquet; None while they are not there."""


@dataclass(frozen=True)
class Estimate:
    """A score of all questions, from some of them.

    Attributes:
        value: the estimate.
        half_width: of the interval at one look's level, around it, of the score that all questions would give.
        stderr, low, high: of the score as one of questions of this kind, as other scores have them: what the choice of
            the benchmark's questions adds is in it.
        n: questions that were asked.
    """

    value: float
    half_width: float
    stderr: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class EarlyScores:
    """Scores that are narrow enough: ``table`` and ``samples`` of ``aggregate.BenchmarkResult``, of what was asked.

    The table has ``early`` beside the scores (``ledger.record.Early``). A part of the benchmark that is wider than what
    was asked for has no score in it.
    """

    table: dict[str, Any]
    samples: pa.Table


def half_width(differences: np.ndarray, of: int) -> float:
    """Return half of the interval of the mean of ``of`` differences, at the level of one look, from some of them.

    Args:
        differences: float64, shape (questions asked,), each from -1 to 1. Fewer than two give infinity.
        of: how many there are in all.
    """
    n = len(differences)
    if n < 2:
        return math.inf
    if n >= of:
        return 0.0
    quantile = float(stats.t.ppf(1 - ERROR / len(SHARES) / 2, n - 1))
    return quantile * math.sqrt(_variance(differences) / n * (1 - n / of))


def _variance(differences: np.ndarray) -> float:
    residuals = differences - differences.mean()
    return (float(residuals @ residuals) + CHANGES) / (len(differences) - 1)


def estimate(base: Mapping[Any, float], tuned: Mapping[Any, float]) -> Estimate | None:
    """Return a tuned model's score on the base model's questions, from its values on some of them.

    Args:
        base, tuned: values by question.

    Returns:
        None for fewer than two questions, for values outside [0, 1], where nothing is known of what a sample leaves
        out, and where the estimate is no score because it is outside.
    """
    whole = np.array(list(base.values()), dtype=np.float64)
    own = np.array(list(tuned.values()), dtype=np.float64)
    n, of = len(own), len(whole)
    known = np.concatenate([whole, own])
    if n < 2 or not (np.isfinite(known).all() and known.min() >= 0.0 and known.max() <= 1.0):
        return None
    differences = own - np.array([base[question] for question in tuned], dtype=np.float64)
    value = float(whole.mean() + differences.mean())
    if not 0.0 <= value <= 1.0:
        return None
    stderr = math.sqrt(float(own.var(ddof=1)) / of + _variance(differences) * (1 / n - 1 / of))
    low, high = max(0.0, value - Z * stderr), min(1.0, value + Z * stderr)
    return Estimate(value, half_width(differences, of), stderr, low, high, n)


def score_early(
    benchmark: BenchmarkRequests,
    looks: Looks,
    weights: str,
    answer: AnswerShard,
    points: float,
    find_base: FindBase,
    happened: dict[str, int],
    sandbox: Choice | None = None,
) -> EarlyScores | None:
    """Answer a benchmark look by look until its scores are narrow enough; None once all questions are answered.

    While the base model's scores are not there, and where they cannot be compared, there is nothing to judge by, and
    the next look follows.

    Args:
        weights: the id of the weights that answer.
        answer: as of ``responses.answer_requests``.
        points: the half-width that is enough, of a hundred.
        find_base: returns the base model's scores under the same protocol.
        happened: counts, to which those of this are added.

    Raises:
        TaskUnavailable: as ``aggregate.aggregate``.
    """
    for look in range(1, len(SHARES) + 1):
        for name, count in looks.answer(look, weights, answer).items():
            happened[name] = happened.get(name, 0) + count
        base = find_base() if look < len(SHARES) else None
        if base is not None:
            found = values_of(benchmark, looks.read(look, weights), sandbox)
            members = aggregate.members_of(benchmark, sandbox)
            odd = aggregate.parts_without_mean(benchmark, sandbox)
            judged = _judged(title(benchmark.task), *base, found.values, members, odd, points / 100)
            if judged is not None:
                parts, widest = judged
                counts = {"questions": looks.sizes[look - 1], "of": looks.total, "look": look, "until": points}
                table = aggregate.table_of(benchmark, **parts, sandbox=sandbox)
                return EarlyScores(table | {"early": counts | {"half_width": 100 * widest}}, found.samples)
    return None


def early_protocol(protocol: str, points: float) -> str:
    """Return the id of how early scores are made.

    Args:
        protocol: by which all questions are asked.
        points: the half-width that is enough.
    """
    return fingerprint({"protocol": protocol, "until": points, "looks": list(SHARES), "error": ERROR})


def _judged(
    benchmark: str,
    base_table: dict[str, Any],
    base_samples: bytes,
    values: Values,
    members: Mapping[str, tuple[str, ...]],
    odd: Collection[tuple[str, str, str]],
    enough: float,
) -> tuple[dict[str, dict[str, Any]], float] | None:
    """Return ``tasks`` and ``groups`` of a table of early scores, and the largest half-width that counts.

    None where one of the scores that stand for the benchmark is not narrow enough.

    Args:
        benchmark: its name without shots.
        values: of the tuned model.
        members: the leaf tasks of each group.
        odd: as of ``aggregate.parts_without_mean``: of these there are no estimates.
        enough: the half-width that is.
    """
    base = _values_in(base_samples)
    parts: dict[tuple[str, str], tuple[str, ...]] = {("task", name): (name,) for name in base_table["tasks"]}
    parts |= {("group", name): members[name] for name in base_table["groups"]}
    estimates: dict[tuple[str, str], dict[str, Estimate | None]] = {
        (kind, name): {
            key: None
            if (kind, name, key.rpartition(",")[0]) in odd
            else _estimate_part(base, values, leaves, key, entry)
            for key, entry in base_table[f"{kind}s"][name].items()
        }
        for (kind, name), leaves in parts.items()
    }
    headline = standing_for(benchmark, base_table["groups"], base_table["tasks"])
    widths = [item.half_width if item else math.inf for part in headline for item in estimates[part].values()]
    if max(widths, default=math.inf) > enough:
        return None
    shown: dict[str, dict[str, Any]] = {"tasks": {}, "groups": {}}
    for (kind, name), by_key in estimates.items():
        entries = base_table[f"{kind}s"][name]
        shown[f"{kind}s"][name] = {key: _entry(entries[key], found, enough) for key, found in by_key.items()}
    return shown, max(widths)


def _values_in(samples: bytes) -> Values:
    columns = ["task", "metric", "filter", "doc", "value", "weight"]
    found: dict[str, dict[str, dict[int, float]]] = {}
    rows = pq.read_table(pa.BufferReader(samples), columns=columns).to_pydict()
    for task, metric, chosen, doc, value, weight in zip(*(rows[name] for name in columns), strict=True):
        number = math.nan if value is None or weight is not None else value
        found.setdefault(task, {}).setdefault(f"{metric},{chosen}", {})[doc] = number
    return found


def _estimate_part(
    base: Values, tuned: Values, leaves: tuple[str, ...], key: str, entry: Mapping[str, Any]
) -> Estimate | None:
    """Return a task's or group's score; None where it is no mean of its questions' values, as a group's need not be."""
    whole = {(leaf, doc): value for leaf in leaves for doc, value in base.get(leaf, {}).get(key, {}).items()}
    own = {(leaf, doc): value for leaf in leaves for doc, value in tuned.get(leaf, {}).get(key, {}).items()}
    if not whole or entry["value"] is None or not own.keys() <= whole.keys():
        return None
    if not all(map(is_number, own.values())):
        return None
    if not math.isclose(math.fsum(whole.values()) / len(whole), entry["value"], rel_tol=_CLOSE, abs_tol=_CLOSE):
        return None
    return estimate(whole, own)


def _entry(base: Mapping[str, Any], found: Estimate | None, enough: float) -> dict[str, Any]:
    """Return an entry of a table as ``aggregate`` has them; without a value where that is wider than is enough."""
    kept = found if found is not None and found.half_width <= enough else None
    return {
        "value": kept.value if kept else None,
        "stderr": kept.stderr if kept else None,
        "interval": [kept.low, kept.high] if kept else None,
        "method": "difference" if kept else None,
        "n": found.n if found else 0,
        "higher_is_better": base["higher_is_better"],
    }
