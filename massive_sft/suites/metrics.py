"""Which metric of a benchmark is its score, and in which unit people read it."""

from __future__ import annotations

from collections.abc import Mapping

from massive_sft.ledger.asked import full_id
from massive_sft.ledger.record import BenchmarkScores, Score
from massive_sft.suites.declared import standing_for

# The first that a task has is its score; a metric without a stated direction comes last, then the alphabet decides.
PREFERENCE = (
    "acc", "exact_match", "em", "exact", "pass@1", "pass_at_1", "acc_norm", "bleu_acc", "mcc", "f1", "win_rate",
    "judge_rating",
    "bits_per_byte", "byte_perplexity", "word_perplexity", "perplexity",
)  # fmt: skip
FILTERS = ("none", "strict-match", "flexible-extract")
# Metrics that lm-eval gives as a fraction and people read in percent, as the released table has them. ``f1`` is not
# here: some tasks give it in percent already. Nor is ``bleu_acc``: the released table has it as a fraction.
FRACTIONS = frozenset(
    {"acc", "exact_match", "em", "pass@1", "pass_at_1", "acc_norm", "win_rate", "lc_win_rate", "agreement"}
    | {"opencompass_acc"}
)

EARLY = "†"
"""Stands behind the score of an early answer, wherever it is shown."""
EARLY_NOTE = f"{EARLY} early answer: not all questions were asked; within evaluation.until of the full score"
LOWER = "↓"
"""Stands behind the name of a metric that is better when low, at the head of a column."""
LOWER_NOTE = f"{LOWER}: lower is better"
NOISE = 1e-12  # what is smaller is left of 0 by rounding: older ledgers have ends of intervals such as 1e-17


def scale(metric: str) -> float:
    """Return the factor from a metric's own unit to the one people read: 100 for fractions, else 1."""
    return 100.0 if metric in FRACTIONS else 1.0


def possible_score(metric: str, score: float, low: float, high: float) -> tuple[float, float]:
    """Return the ends of a score's interval, without what no fraction can be: Student's t knows no bounds."""
    return _cut(metric, score, low, high, 0.0)


def possible_difference(metric: str, difference: float, low: float, high: float) -> tuple[float, float]:
    """Return the ends of the interval of two scores' difference, without what is below -1 or above 1 of a fraction."""
    return _cut(metric, difference, low, high, -1.0)


def _cut(metric: str, value: float, low: float, high: float, least: float) -> tuple[float, float]:
    # A task's own function may give anything under the name of a fraction.
    if metric not in FRACTIONS or not least <= value <= 1.0:
        return low, high
    return max(low, least), min(high, 1.0)  # NaN, where there is no interval, stays as the first argument


def unit(metric: str) -> str:
    """Return the unit of a scaled metric: ``%`` for fractions and for percentages, else nothing."""
    return "%" if metric in FRACTIONS or metric == "percent" or metric.endswith("_percent") else ""


def without_noise(value: float) -> float:
    """Return a number, 0 where it is what rounding left of 0."""
    return 0.0 if abs(value) < NOISE else value


def visible_digits(number: float, digits: int) -> int:
    """Return how many decimals show a number: ``digits``, more where it would be shown as 0 and is not."""
    while without_noise(number) and not round(number, digits):
        digits += 1
    return digits


def split(key: str) -> tuple[str, str]:
    """Split ``metric,filter``."""
    metric, _, filter_name = key.rpartition(",")
    return metric, filter_name


def full_name(metric: str, filter_name: str | None) -> str:
    """Return a metric's name with lm-eval's filter, where one chose the answer: ``exact_match (strict-match)``."""
    return metric if filter_name in (None, "", "none") else f"{metric} ({filter_name})"


def primary_metric(scores: Mapping[str, Score]) -> str | None:
    """Return the ``metric,filter`` that is a task's score; it depends on the names and directions alone."""

    def rank(key: str) -> tuple[bool, int, int, str]:
        metric, filter_name = split(key)
        return (
            scores[key].higher_is_better is None,
            _position(PREFERENCE, metric),
            _position(FILTERS, filter_name),
            key,
        )

    return min(scores, key=rank, default=None)


def _position(order: tuple[str, ...], name: str) -> int:
    return order.index(name) if name in order else len(order)


def bare_name(benchmark: BenchmarkScores) -> str:
    """Return a benchmark's name without its shots: ``mmlu`` of ``mmlu-5shot``."""
    return benchmark.benchmark.removesuffix(f"-{'own' if benchmark.shots is None else benchmark.shots}shot")


def protocol_name(asked: str, templates: Mapping[str, str]) -> str:
    """Return what tells two protocols of one benchmark apart: the template's name, else the beginning of the hash.

    Args:
        asked: what was asked (``BenchmarkScores.asked``).
        templates: as of ``frames.tidy``.
    """
    return templates.get(asked, full_id(asked).rpartition(" ")[2][:6])


def headline(benchmark: BenchmarkScores) -> frozenset[tuple[str, str]]:
    """Return the (kind, name) pairs whose scores stand for a benchmark: its own group, else all groups, else tasks."""
    return standing_for(bare_name(benchmark), benchmark.groups, benchmark.tasks)
