"""Step 3: responses become scores, by lm-eval's filters, metrics and group weights, without a model."""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from lm_eval.api import metrics as lm_metrics
from lm_eval.api.group import Group
from lm_eval.api.instance import Instance
from lm_eval.api.task import Task

from massive_sft.evaluation import intervals, metrics
from massive_sft.evaluation.build import BenchmarkRequests, doc_hash
from massive_sft.evaluation.code_eval import executes_code
from massive_sft.evaluation.intervals import Interval
from massive_sft.evaluation.requests import Generation, Leaf, Likelihood, Request, Rolling, read_requests
from massive_sft.evaluation.responses import GenerationResponse, LikelihoodResponse, Response, read_responses
from massive_sft.evaluation.task_errors import TaskUnavailable, as_task_unavailable
from massive_sft.evaluation.tasks import load, seeded
from massive_sft.ledger.storage import Storage
from massive_sft.sandbox.run import Choice, choose

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
    loaded = load(benchmark.task, sandbox)
    tasks: dict[str, Any] = {}
    for_groups: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for leaf in benchmark.requests.leaves:
        requests, responses = read_responses(benchmark.requests, leaf, place, weights)
        with seeded(), as_task_unavailable(f"{leaf.name} cannot be scored"):
            values = _values(loaded.tasks[leaf.name], leaf, requests, responses, benchmark.requests.limit)
            tasks[leaf.name] = {
                f"{metric},{filter_name}": _entry(loaded.tasks[leaf.name], metric, by_doc)
                for (metric, filter_name), by_doc in values.items()
            }
            for_groups[leaf.name] = _for_group(tasks[leaf.name])
            rows += _sample_rows(leaf.name, values, _extracted(loaded.tasks[leaf.name]))
    with as_task_unavailable(f"{benchmark.requests.label}: its groups cannot be scored"):
        groups = {name: _group_entries(group, for_groups, tasks) for name, group in loaded.groups.items()}
    table = {
        "schema": SCHEMA,
        "benchmark": benchmark.requests.label,
        "requests": benchmark.requests.id,
        "shots": benchmark.requests.shots,
        "provenance": benchmark.requests.provenance | _walls(loaded.tasks.values()),
        "tasks": tasks,
        "groups": {name: entries for name, entries in groups.items() if entries},
    }
    return BenchmarkResult(table, pa.Table.from_pylist(rows, schema=SAMPLES))


def dry_run(benchmark: BenchmarkRequests, sandbox: Choice | None = None) -> None:
    """Score a made-up answer to each leaf task's first document: what cannot be scored shows before a model answers.

    Raises:
        TaskUnavailable: as ``aggregate``.
        Corrupt, FileNotFoundError: the requests are missing or damaged.
    """
    loaded = load(benchmark.task, sandbox)
    for leaf in benchmark.requests.leaves:
        asked = read_requests(benchmark.requests, leaf)
        first = [request for request in asked if request.doc == asked[0].doc]
        answers: list[Response] = [
            GenerationResponse(request.index, "a", 1, "stop")
            if isinstance(request, Generation)
            else LikelihoodResponse(request.index, -1.0, False, 1)
            for request in first
        ]
        with seeded(), as_task_unavailable(f"{leaf.name} cannot be scored"):
            values = _values(loaded.tasks[leaf.name], leaf, first, answers, benchmark.requests.limit)
        for (metric, _), by_doc in values.items():
            combine = loaded.tasks[leaf.name].aggregation().get(metric, lm_metrics.mean)
            if not metrics.is_own(combine):  # which may ask for more than one document
                with as_task_unavailable(f"{leaf.name}: metric {metric} cannot be combined by {combine.__name__}"):
                    combine(list(by_doc.values()))


def _walls(tasks: Iterable[Task]) -> dict[str, str]:
    """Return behind which walls generated code ran, where some did."""
    return {"sandbox": choose("rlimits")} if any(map(executes_code, tasks)) else {}


def _values(
    task: Task, leaf: Leaf, requests: list[Request], responses: list[Response], limit: int | None
) -> dict[tuple[str, str], dict[int, Any]]:
    """Return {(metric, filter): {document: per-sample value}}."""
    docs = dict(task.doc_iterator(limit=limit))
    instances: dict[int, list[Instance]] = defaultdict(list)
    for request, response in zip(requests, responses, strict=True):
        if request.doc not in docs or doc_hash(docs[request.doc]) != request.doc_hash:
            raise TaskUnavailable(f"{leaf.name}: document {request.doc} is not the one its request was built from")
        instances[request.doc].append(_instance(leaf.name, docs[request.doc], request, response))
    task._instances = [instance for doc in instances for instance in instances[doc]]
    task.apply_filters()
    values: dict[tuple[str, str], dict[int, Any]] = defaultdict(dict)
    for filter_name in task.instances[0].filtered_resps:
        answered = {
            doc: [instance.filtered_resps[filter_name] for instance in sorted(asked, key=lambda i: i.idx)]
            for doc, asked in instances.items()
        }
        for doc, found in _processed(task, docs, answered):
            for metric, value in found.items():
                values[metric, filter_name][doc] = value
    return values


def _processed(task: Task, docs: dict[int, Any], answered: dict[int, list[Any]]) -> Iterator[tuple[int, Any]]:
    """Yield each document's values: of those that wait for programs, as many at once as there are CPUs."""

    def process(doc: int) -> tuple[int, Any]:
        return doc, task.process_results(docs[doc], answered[doc])

    if not executes_code(task):
        yield from map(process, answered)
        return
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        yield from pool.map(process, answered)


def _extracted(task: Task) -> dict[tuple[str, int], str]:
    """Return what filters made of generated answers, by filter and document, where they did not leave them alone."""
    return {
        (name, instance.doc_id): taken if isinstance(taken, str) else json.dumps(taken, default=str, ensure_ascii=False)
        for instance in task.instances
        if instance.request_type == "generate_until"
        for name, taken in instance.filtered_resps.items()
        if taken != instance.resps[0] and taken != instance.resps
    }


def _instance(task: str, doc: Any, request: Request, response: Response) -> Instance:
    arguments: tuple[Any, ...]
    if isinstance(request, Rolling):
        arguments = (request.text,)
    elif isinstance(request, Generation):
        arguments = (request.context, {"until": list(request.until), "max_gen_toks": request.max_tokens})
    elif isinstance(request, Likelihood):
        arguments = (request.context, request.continuation)
    else:
        raise TypeError(f"no lm-eval instance for {request.kind}")
    answer: Any
    if isinstance(response, LikelihoodResponse):
        answer = response.logprob if isinstance(request, Rolling) else (response.logprob, response.greedy)
    else:
        answer = response.text
    return Instance(
        request_type=request.kind,  # type: ignore[arg-type]
        doc=doc,
        arguments=arguments,
        idx=request.choice,
        metadata=(task, request.doc, request.repeats),
        resps=[answer] * request.repeats,
    )


def _entry(task: Task, metric: str, by_doc: dict[int, Any]) -> dict[str, Any]:
    """Return one metric's value with its interval from per-sample values."""
    combine = task.aggregation().get(metric, lm_metrics.mean)
    values = list(by_doc.values())
    interval = _interval(combine, values)
    higher_is_better = task.higher_is_better().get(metric)
    return {
        "value": _number(combine(values)),
        "stderr": interval.stderr if interval else None,
        "interval": [interval.low, interval.high] if interval else None,
        "method": interval.method if interval else None,
        "n": len(values),
        "higher_is_better": None if higher_is_better is None else bool(higher_is_better),
    }


def _interval(combine: Any, values: list[Any]) -> Interval | None:
    if combine is lm_metrics.mean and all(map(_is_number, values)):
        return intervals.of_mean(np.array(values, dtype=np.float64))
    if combine is lm_metrics.perplexity and all(map(_is_number, values)):
        logprobs = np.array(values, dtype=np.float64)
        return intervals.transformed(intervals.of_ratio(logprobs, np.ones(len(values))), -1.0, exponential=True)
    for name, (scale, exponential) in _TIED.items():
        if combine is getattr(lm_metrics, name):
            pairs = np.array(values, dtype=np.float64)
            return intervals.transformed(intervals.of_ratio(pairs[:, 0], pairs[:, 1]), scale, exponential)
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, (bool, int, float, np.number, np.bool_))


def _number(value: Any) -> float | None:
    """Return a float that JSON can hold; NaN and infinities, which are no scores, become ``None``."""
    return float(value) if _is_number(value) and math.isfinite(float(value)) else None


def _for_group(entries: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return one task's scores in the form that lm-eval's groups read."""
    flat: dict[str, Any] = {"sample_len": max((entry["n"] for entry in entries.values()), default=0)}
    for key, entry in entries.items():
        metric, filter_name = key.rsplit(",", 1)
        if entry["value"] is not None:
            flat[key] = entry["value"]
            flat[f"{metric}_stderr,{filter_name}"] = "N/A" if entry["stderr"] is None else entry["stderr"]
    return flat


def _group_entries(group: Group, for_groups: dict[str, Any], tasks: dict[str, Any]) -> dict[str, Any]:
    """Return a group's scores, weighted as lm-eval weights them; none for a group that declares no aggregation."""
    combined: Any = group.aggregate(for_groups)
    entries = {}
    for key, n in combined.get("sample_count", {}).items():
        metric, filter_name = key.rsplit(",", 1)
        stderr = _number(combined.get(f"{metric}_stderr,{filter_name}"))
        value = float(combined[key])
        directions = {
            tasks[t.task_name][key]["higher_is_better"] for t in group.get_all_tasks() if key in tasks[t.task_name]
        }
        entries[key] = {
            "value": value,
            "stderr": stderr,
            "interval": None if stderr is None else [value - intervals.Z * stderr, value + intervals.Z * stderr],
            "method": None if stderr is None else "normal",
            "n": int(n),
            "higher_is_better": directions.pop() if len(directions) == 1 else None,
        }
    return entries


SAMPLES = pa.schema(
    [
        ("task", pa.string()),
        ("doc", pa.int64()),
        ("metric", pa.string()),
        ("filter", pa.string()),
        ("value", pa.float64()),
        ("weight", pa.float64()),
        ("detail", pa.string()),
        ("extracted", pa.string()),
    ]
)


def _sample_rows(
    task: str, values: dict[tuple[str, str], dict[int, Any]], extracted: dict[tuple[str, int], str]
) -> list[dict[str, Any]]:
    return [
        {"task": task, "doc": doc, "metric": metric, "filter": filter_name, **_sample(value)}
        | {"extracted": extracted.get((filter_name, doc))}
        for (metric, filter_name), by_doc in values.items()
        for doc, value in by_doc.items()
    ]


def _sample(value: Any) -> dict[str, Any]:
    if _is_number(value):
        return {"value": float(value)}
    if isinstance(value, tuple) and len(value) == 2 and all(map(_is_number, value)):
        return {"value": float(value[0]), "weight": float(value[1])}
    return {"detail": json.dumps(value, default=str, ensure_ascii=False)}


def parquet(samples: pa.Table) -> bytes:
    """Return a table as the bytes of a Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(samples, sink)
    return sink.getvalue().to_pybytes()
