"""Step 3: responses become scores, by lm-eval's filters, metrics and group weights, without a model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from lm_eval.api import metrics as lm_metrics
from lm_eval.api.group import Group
from lm_eval.api.task import Task

from massive_sft.evaluation import intervals, metrics
from massive_sft.evaluation.build import BenchmarkRequests
from massive_sft.evaluation.gold import question_of
from massive_sft.evaluation.intervals import Interval
from massive_sft.evaluation.opencompass import METRIC as OPENCOMPASS
from massive_sft.evaluation.opencompass import runs_programs, runs_without_walls
from massive_sft.evaluation.requests import Generation, read_requests
from massive_sft.evaluation.responses import GenerationResponse, LikelihoodResponse, Response, read_responses
from massive_sft.evaluation.sample_values import SAMPLES, is_number, leaf_values, sample_rows
from massive_sft.evaluation.task_errors import as_task_unavailable
from massive_sft.evaluation.tasks import load, seeded
from massive_sft.ledger.storage import Storage
from massive_sft.sandbox.run import Choice, choose
from massive_sft.suites.declared import standing_for, title

SCHEMA = 1
_TIED = {"bits_per_byte": (-1 / math.log(2), False), "weighted_perplexity": (-1.0, True)}


@dataclass(frozen=True)
class BenchmarkResult:
    """A benchmark's scores.

    Attributes:
        table: JSON: ``tasks`` and ``groups``, each ``{name: {"metric,filter": {value, stderr, interval, method, n,
            higher_is_better}}}``; what cannot be had (no closed form, one sample) is ``None``.
        samples: one row per task, document, metric and filter: ``value`` and ``weight`` (for sums of log-probabilities
            over bytes or words), or ``detail`` (JSON) for metrics whose per-sample value is no number; ``extracted``:
            what the filter took of a generated answer, where that is not the answer as it was written.
    """

    table: dict[str, Any]
    samples: pa.Table


def aggregate(
    benchmark: BenchmarkRequests, place: Storage, weights: str, sandbox: Choice | None = None
) -> BenchmarkResult:
    """Score the responses of one model's weights to one benchmark, which lie in ``place``.

    Raises:
        TaskUnavailable: the benchmark's data changed since its requests were built, or its metric fails.
        Corrupt, FileNotFoundError: responses are missing or damaged.
    """
    loaded = load(benchmark.task, sandbox, benchmark.commits)
    tasks: dict[str, Any] = {}
    for_groups: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for leaf in benchmark.requests.leaves:
        requests, responses = read_responses(benchmark.requests, leaf, place, weights)
        with seeded(), as_task_unavailable(f"{leaf.name} cannot be scored"):
            values = leaf_values(loaded.tasks[leaf.name], leaf, requests, responses, benchmark.requests.limit)
            tasks[leaf.name] = {
                key: entry_of(loaded.tasks[leaf.name], key, by_doc)
                for key, by_doc in ((",".join(names), by_doc) for names, by_doc in values.items())
            }
            for_groups[leaf.name] = _for_group(tasks[leaf.name])
            rows += sample_rows(leaf.name, loaded.tasks[leaf.name], values)
    with as_task_unavailable(f"{benchmark.requests.label}: its groups cannot be scored"):
        groups = {name: _group_entries(group, for_groups, tasks) for name, group in loaded.groups.items()}
    shown = {name: entries for name, entries in groups.items() if entries}
    return BenchmarkResult(table_of(benchmark, tasks, shown, sandbox), pa.Table.from_pylist(rows, schema=SAMPLES))


def table_of(
    benchmark: BenchmarkRequests, tasks: dict[str, Any], groups: dict[str, Any], sandbox: Choice | None
) -> dict[str, Any]:
    """Return the table of a benchmark's scores by task and by group: see ``BenchmarkResult``."""
    loaded = load(benchmark.task, sandbox, benchmark.commits)
    return {
        "schema": SCHEMA,
        "benchmark": benchmark.requests.label,
        "requests": benchmark.requests.id,
        "shots": benchmark.requests.shots,
        "provenance": benchmark.requests.provenance | _walls(loaded.tasks.values()),
        "tasks": tasks,
        "groups": groups,
    }


def members_of(benchmark: BenchmarkRequests, sandbox: Choice | None = None) -> dict[str, tuple[str, ...]]:
    """Return the leaf tasks of each group of a benchmark. Raises TaskUnavailable."""
    groups = load(benchmark.task, sandbox, benchmark.commits).groups
    return {name: tuple(str(task.task_name) for task in group.get_all_tasks()) for name, group in groups.items()}


def metrics_without_mean(benchmark: BenchmarkRequests, sandbox: Choice | None = None) -> tuple[str, ...]:
    """Return the metrics that stand for a benchmark and are no means of its questions' values, as ``task/metric``.

    Raises:
        TaskUnavailable: the benchmark cannot be loaded.
    """
    loaded = load(benchmark.task, sandbox, benchmark.commits)
    groups = {name: group for name, group in loaded.groups.items() if group.has_aggregation}
    headline = standing_for(title(benchmark.task), groups, loaded.tasks)
    odd = parts_without_mean(benchmark, sandbox)
    return tuple(f"{name}/{metric}" for kind, name, metric in odd if (kind, name) in headline)


def parts_without_mean(benchmark: BenchmarkRequests, sandbox: Choice | None = None) -> list[tuple[str, str, str]]:
    """Return the metrics of all tasks and groups that are no means of questions' values: kind, name, metric.

    Raises:
        TaskUnavailable: the benchmark cannot be loaded.
    """
    loaded = load(benchmark.task, sandbox, benchmark.commits)
    found = []
    for name, group in sorted(loaded.groups.items()):
        combined = (group.aggregate_metric_list or ()) if group.has_aggregation else ()
        found += [("group", name, metric.metric) for metric in combined if not metric.weight_by_size]
    for name, task in sorted(loaded.tasks.items()):
        combined_by = task.aggregation()
        found += [("task", name, metric) for metric in combined_by if combined_by[metric] is not lm_metrics.mean]
    return found


def dry_run(benchmark: BenchmarkRequests, sandbox: Choice | None = None) -> None:
    """Score made-up answers to some of each leaf task's documents: what cannot be scored shows before a model answers.

    They are the first, and all of which no choice is right.

    Raises:
        TaskUnavailable: as ``aggregate``.
        Corrupt, FileNotFoundError: the requests are missing or damaged.
    """
    loaded = load(benchmark.task, sandbox, benchmark.commits)
    odd = frozenset(benchmark.requests.provenance.get("no_right_choice", ()))
    for leaf in benchmark.requests.leaves:
        asked = read_requests(benchmark.requests, leaf)
        tried = [one for one in asked if one.doc == asked[0].doc or question_of(leaf.name, one.doc) in odd]
        answers: list[Response] = [
            GenerationResponse(request.index, "a", 1, "stop")
            if isinstance(request, Generation)
            else LikelihoodResponse(request.index, -1.0, False, 1)
            for request in tried
        ]
        with seeded(), as_task_unavailable(f"{leaf.name} cannot be scored"):
            values = leaf_values(loaded.tasks[leaf.name], leaf, tried, answers, benchmark.requests.limit)
        for (metric, _), by_doc in values.items():
            combine = loaded.tasks[leaf.name].aggregation().get(metric, lm_metrics.mean)
            if not metrics.is_own(combine):  # which may ask for more than one document
                with as_task_unavailable(f"{leaf.name}: metric {metric} cannot be combined by {combine.__name__}"):
                    combine(list(by_doc.values()))


def _walls(tasks: Iterable[Task]) -> dict[str, str]:
    """Return behind which walls generated code ran, where some did."""
    running = [task for task in tasks if runs_programs(task)]
    if any(map(runs_without_walls, running)):
        return {"sandbox": "none"}
    return {"sandbox": choose("rlimits")} if running else {}


def entry_of(task: Task, key: str, by_doc: Mapping[Any, Any]) -> dict[str, Any]:
    """Return one metric's value with its interval from per-sample values.

    Args:
        key: ``metric,filter``.
        by_doc: values by question.
    """
    metric = key.rpartition(",")[0]
    combine = task.aggregation().get(metric, lm_metrics.mean)
    values = list(by_doc.values())
    interval = _interval(combine, values)
    higher_is_better = True if metric == OPENCOMPASS else task.higher_is_better().get(metric)
    return {
        "value": _combined(combine, values),
        "stderr": interval.stderr if interval else None,
        "interval": [interval.low, interval.high] if interval else None,
        "method": interval.method if interval else None,
        "n": len(values),
        "higher_is_better": None if higher_is_better is None else bool(higher_is_better),
    }


def _combined(combine: Any, values: list[Any]) -> float | None:
    try:
        return _number(combine(values))
    except OverflowError:  # a perplexity that is no float, as of words in a text without spaces
        return None


def _interval(combine: Any, values: list[Any]) -> Interval | None:
    if combine is lm_metrics.mean and all(map(is_number, values)):
        return intervals.of_mean(np.array(values, dtype=np.float64))
    if combine is lm_metrics.perplexity and all(map(is_number, values)):
        logprobs = np.array(values, dtype=np.float64)
        return intervals.transformed(intervals.of_ratio(logprobs, np.ones(len(values))), -1.0, exponential=True)
    for name, (scale, exponential) in _TIED.items():
        if combine is getattr(lm_metrics, name):
            pairs = np.array(values, dtype=np.float64)
            return intervals.transformed(intervals.of_ratio(pairs[:, 0], pairs[:, 1]), scale, exponential)
    return None


def _number(value: Any) -> float | None:
    """Return a float that JSON can hold; NaN and infinities, which are no scores, become ``None``."""
    return float(value) if is_number(value) and math.isfinite(float(value)) else None


def _for_group(entries: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return one task's scores in the form that lm-eval's groups read; NaN is a value that cannot be had."""
    flat: dict[str, Any] = {"sample_len": max((entry["n"] for entry in entries.values()), default=0)}
    for key, entry in entries.items():
        metric, filter_name = key.rsplit(",", 1)
        flat[key] = math.nan if entry["value"] is None else entry["value"]
        flat[f"{metric}_stderr,{filter_name}"] = "N/A" if entry["stderr"] is None else entry["stderr"]
    return flat


def _group_entries(group: Group, for_groups: dict[str, Any], tasks: dict[str, Any]) -> dict[str, Any]:
    """Return a group's scores, weighted as lm-eval weights them; none for a group that declares no aggregation.

    There is no value where one of its tasks has none.
    """
    combined: Any = group.aggregate(for_groups)
    entries = {}
    for key, n in combined.get("sample_count", {}).items():
        metric, filter_name = key.rsplit(",", 1)
        stderr = _number(combined.get(f"{metric}_stderr,{filter_name}"))
        directions = {
            tasks[t.task_name][key]["higher_is_better"] for t in group.get_all_tasks() if key in tasks[t.task_name]
        }
        entries[key] = _entry_of_group(_number(combined[key]), stderr, int(n)) | {
            "higher_is_better": directions.pop() if len(directions) == 1 else None
        }
    return entries | _opencompass_entry(group, tasks) if entries else entries


def _opencompass_entry(group: Group, tasks: dict[str, Any]) -> dict[str, Any]:
    """Return a group's score by OpenCompass's rules, all questions alike; none where a task of it has none."""
    key = f"{OPENCOMPASS},none"
    parts = [tasks[task.task_name].get(key) for task in group.get_all_tasks()]
    if not parts or any(part is None for part in parts):
        return {}
    n = sum(part["n"] for part in parts)
    value = sum(part["n"] * part["value"] for part in parts) / n
    stderr = None
    if all(part["stderr"] is not None for part in parts):  # else a task of one question
        stderr = math.sqrt(sum((part["n"] * part["stderr"]) ** 2 for part in parts)) / n
    return {key: _entry_of_group(value, stderr, n) | {"higher_is_better": True}}


def _entry_of_group(value: float | None, stderr: float | None, n: int) -> dict[str, Any]:
    """Return an entry but for its direction; without an interval where value or standard error cannot be had."""
    if value is None or stderr is None:
        return {"value": value, "stderr": None, "interval": None, "method": None, "n": n}
    interval = [value - intervals.Z * stderr, value + intervals.Z * stderr]
    return {"value": value, "stderr": stderr, "interval": interval, "method": "normal", "n": n}
