"""A cell's scores and gains under the names that the tracker shows. Pure; no tracker here."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from massive_sft.core.fingerprint import digest
from massive_sft.ledger.asked import full_id
from massive_sft.ledger.record import BenchmarkScores, Record, Score
from massive_sft.suites.metrics import bare_name, headline, primary_metric

MetricPath = tuple[str, ...]
"""A metric's name before it is cleaned and joined: ``("gain", "gsm8k", "exact_match.strict-match")``."""

GAIN = "gain"
GAIN_DECIMALS = 12  # what lies beyond them is the error of the subtraction, -0.050000000000000044 for -0.05
PARTS = "parts"


def score_values(record: Record, templates: Mapping[str, str]) -> dict[MetricPath, float]:
    """Return a record's scores: ``gsm8k/exact_match`` where a benchmark is one task or group, and
    ``mmlu/parts/mmlu_anatomy.acc`` for what it consists of. One that could not be had is left out.

    Args:
        templates: names of the templates by what is asked in full, of benchmarks that the sweep asks under several:
            they stand beside the benchmark's name, so that a base model shares a column with those that were tuned.
    """
    titles = _titles(record, templates)
    return {
        _path(titles[protocol], scores, part, metric): score.value
        for protocol, scores in record.scores.items()
        for _, part, metrics in _parts(scores)
        for metric, score in metrics.items()
        if score.value is not None
    }


def gain_values(record: Record, base: Record | None, templates: Mapping[str, str]) -> dict[MetricPath, float]:
    """Return what a benchmark's own scores gained over those of the base model under the same protocol."""
    if base is None or base.cell == record.cell:
        return {}
    titles = _titles(record, templates)
    return {
        (GAIN, *_path(titles[protocol], scores, part, metric)): round(score.value - before, GAIN_DECIMALS)
        for protocol, scores in record.scores.items()
        if (full := scores.full_protocol(protocol)) in base.scores
        for kind, part, metrics in _parts(scores)
        if (kind, part) in headline(scores)
        for metric, score in metrics.items()
        if score.value is not None and (before := _value(base.scores[full], kind, part, metric)) is not None
    }


def main_paths(record: Record, templates: Mapping[str, str]) -> Iterator[MetricPath]:
    """Yield the one metric of each benchmark that people look at first (``suites.metrics``), then its gain."""
    titles = _titles(record, templates)
    for protocol, scores in sorted(record.scores.items(), key=lambda item: item[1].benchmark):
        for kind, part, metrics in _parts(scores):
            metric = primary_metric(metrics)
            if (kind, part) in headline(scores) and metric is not None:
                path = _path(titles[protocol], scores, part, metric)
                yield path
                yield GAIN, *path


def metric_names(paths: Iterable[MetricPath]) -> dict[MetricPath, str]:
    """Return names that MLflow takes, each by its path alone: the same in every run, whatever else one has."""
    return {path: "/".join(map(_distinct_name, path)) for path in paths}


def _distinct_name(name: str) -> str:
    """Return one part of a metric's name as MLflow takes it, with a hash of it where that is another."""
    kept = clean_name(name)
    return kept if kept == name else f"{kept}-{digest(name)[:6]}"


def clean_name(name: str) -> str:
    """Return one part of a metric's or parameter's name with only what MLflow allows on any system: letters and digits
    of any script, spaces and ``_.-``.
    """
    kept = re.sub(r"[^\w.\- ]", "_", name)
    return re.sub(r"^\.{1,2}$|^$", "_", kept)


def finite_numbers(value: Mapping[str, object], path: MetricPath = ()) -> dict[MetricPath, float]:
    """Return the numbers among nested values by path; lists, texts and schema numbers are in record.json."""
    numbers: dict[MetricPath, float] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            numbers |= finite_numbers(item, (*path, key))
        elif isinstance(item, int | float) and not isinstance(item, bool) and key != "schema" and math.isfinite(item):
            numbers[*path, key] = float(item)
    return numbers


def template_titles(record: Record, templates: Mapping[str, str]) -> list[str]:
    """Return the names of the record's benchmarks that have their template's beside them."""
    named = (protocol for protocol, scores in record.scores.items() if full_id(scores.asked) in templates)
    titles = _titles(record, templates)
    return sorted(titles[protocol] for protocol in named)


def _titles(record: Record, templates: Mapping[str, str]) -> dict[str, str]:
    """Return each protocol's benchmark as it is shown: with its shots where it has any, with its template's name where
    the sweep asks for it under several, and with the protocol's id where several have one name all the same."""
    names = {p: scores.benchmark if scores.shots else bare_name(scores) for p, scores in record.scores.items()}
    for protocol, scores in record.scores.items():
        if template := templates.get(full_id(scores.asked)):
            names[protocol] += f" {template}"
    several = Counter(names.values())
    return {p: name if several[name] == 1 else f"{name} {p[:8]}" for p, name in names.items()}


def _parts(scores: BenchmarkScores) -> Iterator[tuple[str, str, Mapping[str, Score]]]:
    for kind, parts in (("group", scores.groups), ("task", scores.tasks)):
        for part, metrics in parts.items():
            yield kind, part, metrics


def _path(title: str, scores: BenchmarkScores, part: str, metric: str) -> MetricPath:
    # ``none`` is the name of lm-eval's filter that filters nothing.
    name = metric.removesuffix(",none").replace(",", ".")
    alone = len(scores.groups) + len(scores.tasks) == 1
    return (title, name) if alone or part == bare_name(scores) else (title, PARTS, f"{part}.{name}")


def _value(scores: BenchmarkScores, kind: str, part: str, metric: str) -> float | None:
    found = (scores.groups if kind == "group" else scores.tasks).get(part, {}).get(metric)
    return found.value if found else None
