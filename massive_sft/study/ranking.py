"""Which cells of a model score best on a benchmark, and which of the others cannot be told apart from the best.

Cells that differ in their seed alone are one candidate. A candidate's difference from the best one has a 95 % interval:
of the questions that both answered, in pairs (``paired_gains``), seed by seed, where both have the same seeds or one is
the base model; else of both candidates' own intervals (Zou and Donner 2008), which is wider. Whose interval holds 0
cannot be told apart.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import pandas as pd

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.ledger.record import Record
from massive_sft.ledger.store import Ledger
from massive_sft.study.frames import BASE, CONDITION, grouped, tidy, to_rows
from massive_sft.study.paired_gains import SampleReader, paired_interval
from massive_sft.study.tables import mean_interval
from massive_sft.suites.metrics import possible_difference, possible_score

COLUMNS: dict[str, str] = (
    dict.fromkeys(("model", "column", "metric"), "string")
    | {"higher_is_better": "boolean", "rank": "Int64"}
    | {name: "Int64" if name in ("size", "horizon", "epoch") else "string" for name in CONDITION if name != "model"}
    | {"cell": "string", "seeds": "Int64"}
    | dict.fromkeys(("value", "low", "high", "difference", "difference_low", "difference_high"), "float64")
    | {"tied": "boolean", "early": "boolean"}
)
"""Columns of ``rank_cells``."""
MIN_SEEDS = 2


@dataclass(frozen=True)
class Interval:
    """A number with its 95 % interval; NaN where it has none."""

    value: float
    low: float = math.nan
    high: float = math.nan

    def minus(self, other: Interval) -> Interval:
        """Return the difference, as of independent numbers."""
        value = self.value - other.value
        low = value - math.hypot(self.value - self.low, other.high - other.value)
        return Interval(value, low, value + math.hypot(self.high - self.value, other.value - other.low))


def rank_cells(
    ledger: Ledger,
    records: Mapping[str, Record],
    metric: str | None = None,
    asked: Collection[str] = (),
    templates: Mapping[str, str] = MappingProxyType({}),
) -> pd.DataFrame:
    """Rank each model's candidates, its base model among them, on a metric or on every benchmark's own.

    Args:
        records: by cell id.
        metric: a benchmark's column, its name with or without shots, or ``TASK/METRIC[,FILTER]``; None for all columns.
        asked: labels of the benchmarks, in the order of the rows; those that have no score yet give none.
        templates: as of ``frames.tidy``.

    Returns:
        One row a candidate, best first: ``COLUMNS``. ``cell`` is that of its first seed; ``value`` is the mean over its
        seeds in the metric's own unit, ``low`` and ``high`` its 95 % interval (``tables.mean_interval``).
        ``difference`` = its value - the best one's; ``tied``: whether 0 lies in that interval, missing for the best
        one, and where no interval can be had. ``early``: whether any seed's score is an early answer.

    Raises:
        InvalidInput: there is no such metric, or which direction of it is better is not known.
    """
    reader = SampleReader(ledger, records)
    scores = tidy(records.values(), templates)
    awaited = [*asked, *scores.loc[scores["missing"].notna() & scores["primary"].fillna(False), "benchmark"]]
    rows = to_rows(_chosen(scores[scores["value"].notna()], metric, awaited))
    order = {label: number for number, label in enumerate(asked)}
    rows.sort(key=lambda row: order.get(row["benchmark"], len(order)))
    ranked = [row for part in grouped(rows, "column", "model").values() for row in _ranked(part, reader)]
    return pd.DataFrame(ranked, columns=list(COLUMNS)).astype(COLUMNS)


def _chosen(scores: pd.DataFrame, metric: str | None, asked: Collection[str]) -> pd.DataFrame:
    """Return the rows with a value that a metric names, its direction known, with the ``column`` that they are of."""
    primary = scores[scores["primary"].fillna(False)]
    directed = scores["higher_is_better"].notna()
    if metric is None:
        return primary[directed.reindex(primary.index)]
    name, _, key = metric.partition("/")
    titles = scores["benchmark"].map(_title)
    named = (scores["column"] == metric) | (scores["benchmark"] == metric) | (titles == metric)
    found = primary[named.fillna(False).reindex(primary.index)]
    if found.empty and key:
        keys = scores["metric"] + "," + scores["filter"]
        named = (scores["task"] == name) & ((scores["metric"] == key) | (keys == key))
        found = scores[named.fillna(False)]
        filters = found["filter"].where(found["filter"] != "none", "").radd(",").replace(",", "")
        column = found["benchmark"] + " " + found["task"] + "/" + found["metric"] + filters
        marks = _marks(primary)
        asked_by = [marks.get(of, "") for of in zip(found["cell"], found["protocol"], strict=True)]
        found = found.assign(column=column + pd.Series(asked_by, found.index, dtype="string"))
    if found.empty:
        if _awaited(metric, scores, asked):
            return found
        names = tuple(dict.fromkeys([*_names(scores), *asked]))
        raise InvalidInput(Problem("metric", "no score of the sweep has this name", metric, names))
    if not directed.reindex(found.index).all():
        raise InvalidInput(Problem("metric", "its task does not say whether higher or lower is better", metric))
    return found


def _marks(primary: pd.DataFrame) -> dict[tuple[str, str], str]:
    """Return what names of columns end with where a benchmark has several protocols, by cell and protocol."""
    return {
        (row["cell"], row["protocol"]): row["column"].removeprefix(row["benchmark"]).removeprefix(f":{row['task']}")
        for row in to_rows(primary)
    }


def _title(label: str) -> str:
    """Return a benchmark's name without its shots."""
    return re.sub(r"-(\d+|own)shot$", "", label)


def _awaited(metric: str, scores: pd.DataFrame, asked: Collection[str]) -> bool:
    """Return whether a score of this name may still come: a benchmark's own, or a task's while it has no score."""
    labels = {label for label in asked if label not in set(scores["benchmark"])}
    return metric in labels | set(map(_title, labels)) or ("/" in metric and bool(labels))


def _names(scores: pd.DataFrame) -> tuple[str, ...]:
    keyed = scores[scores["metric"].notna() & ~scores["primary"].fillna(False)]
    return tuple(dict.fromkeys([*scores["column"].dropna(), *(keyed["task"] + "/" + keyed["metric"])]))


def _tie_break(row: Mapping[str, Any]) -> tuple[bool, int, str]:
    """Return what orders equal candidates, in whichever order they were read."""
    return row["method"] == BASE, row["epoch"], row["cell"]


def _candidates(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yield the cells of each condition; each for itself where two have one seed.

    Those differ in more than it: a storage root may hold several sweeps, and what one was before it was changed.
    """
    for seeds in grouped(rows, *CONDITION).values():
        yield from [seeds] if len({row["seed"] for row in seeds}) == len(seeds) else [[row] for row in seeds]


def _ranked(rows: Sequence[dict[str, Any]], reader: SampleReader) -> Iterator[dict[str, Any]]:
    """Yield one model's candidates on one column, best first; of equal ones fewer epochs, the base model last."""
    sign = 1.0 if rows[0]["higher_is_better"] else -1.0
    candidates = list(_candidates(rows))
    candidates.sort(key=lambda seeds: (-sign * _over_seeds(seeds).value, *_tie_break(seeds[0])))
    for number, seeds in enumerate(candidates, 1):
        first, own = seeds[0], _over_seeds(seeds)
        row = {name: first[name] for name in (*CONDITION, "column", "metric", "higher_is_better", "cell")}
        row["early"] = any(seed["early"] for seed in seeds)
        row |= {"rank": number, "seeds": len(seeds), **asdict(own)}
        if number > 1:
            apart = _difference(candidates[0], seeds, reader)
            row |= {"difference": apart.value, "difference_low": apart.low, "difference_high": apart.high}
            row["tied"] = None if math.isnan(apart.low) else apart.low <= 0 <= apart.high
        yield row


def _over_seeds(seeds: Sequence[dict[str, Any]]) -> Interval:
    mean = _mean([_score(row) for row in seeds])
    return Interval(mean.value, *possible_score(seeds[0]["metric"], mean.value, mean.low, mean.high))


def _score(row: Mapping[str, Any]) -> Interval:
    return Interval(*(row[name] for name in ("value", "low", "high")))


def _mean(found: Sequence[Interval]) -> Interval:
    """Return what several seeds come to."""
    if len(found) < MIN_SEEDS:
        return found[0]
    mean = mean_interval(*([getattr(one, name) for one in found] for name in ("value", "low", "high")))
    return Interval(mean.mean, mean.low, mean.high)


def _difference(best: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]], reader: SampleReader) -> Interval:
    """Return a candidate's mean score less the best's, seed by seed where both have the same; a base model has none."""
    by_seed, others = ({row["seed"]: row for row in side} for side in (best, other))
    if BASE in (best[0]["method"], other[0]["method"]):
        pairs = [(one, two) for one in best for two in other]
    elif by_seed.keys() == others.keys():
        pairs = [(by_seed[seed], others[seed]) for seed in by_seed]
    else:
        pairs = []
    mean = _mean([_less(*pair, reader) for pair in pairs]) if pairs else _over_seeds(other).minus(_over_seeds(best))
    return Interval(mean.value, *possible_difference(best[0]["metric"], mean.value, mean.low, mean.high))


def _less(one: Mapping[str, Any], two: Mapping[str, Any], reader: SampleReader) -> Interval:
    """Return the second cell's score less the first's, by the questions that both answered where these are there."""
    apart = _score(two).minus(_score(one))
    if one["protocol"] != two["protocol"]:
        return apart
    first, second = (reader.read_row(row) for row in (one, two))
    if first is None or second is None:
        return apart
    bounds = paired_interval(first, second, (one["value"], two["value"]))
    return apart if bounds is None else Interval(apart.value, *bounds)
