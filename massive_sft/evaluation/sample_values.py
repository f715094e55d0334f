"""What answers are worth, question by question, by lm-eval's filters and metrics."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from lm_eval.api.instance import Instance
from lm_eval.api.task import Task

from massive_sft.core.cores import usable_cores
from massive_sft.evaluation.build import BenchmarkRequests, doc_hash
from massive_sft.evaluation.code_eval import executes_code
from massive_sft.evaluation.opencompass import METRIC, opencompass_values
from massive_sft.evaluation.requests import Generation, Leaf, Likelihood, Request, Rolling
from massive_sft.evaluation.responses import LikelihoodResponse, Response
from massive_sft.evaluation.task_errors import TaskUnavailable, as_task_unavailable
from massive_sft.evaluation.tasks import load, seeded
from massive_sft.sandbox.run import Choice

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


@dataclass(frozen=True)
class SampleValues:
    """What answers to some of a benchmark's questions are worth.

    Attributes:
        values: by leaf task, then by ``metric,filter``, then by document.
        samples: as of ``BenchmarkResult``.
    """

    values: dict[str, dict[str, dict[int, Any]]]
    samples: pa.Table


def values_of(
    benchmark: BenchmarkRequests,
    answered: Mapping[str, tuple[list[Request], list[Response]]],
    sandbox: Choice | None = None,
) -> SampleValues:
    """Return what answers are worth, question by question; not all of the benchmark's need be there.

    Args:
        answered: by leaf task, requests and responses to them.

    Raises:
        TaskUnavailable: as ``aggregate``.
    """
    loaded = load(benchmark.task, sandbox, benchmark.commits)
    found: dict[str, dict[str, dict[int, Any]]] = {}
    rows: list[dict[str, Any]] = []
    for leaf in benchmark.requests.leaves:
        requests, responses = answered[leaf.name]
        if requests:
            task = loaded.tasks[leaf.name]
            with seeded(), as_task_unavailable(f"{leaf.name} cannot be scored"):
                values = leaf_values(task, leaf, requests, responses, benchmark.requests.limit)
                found[leaf.name] = {",".join(key): by_doc for key, by_doc in values.items()}
                rows += sample_rows(leaf.name, task, values)
    return SampleValues(found, pa.Table.from_pylist(rows, schema=SAMPLES))


def leaf_values(
    task: Task, leaf: Leaf, requests: list[Request], responses: list[Response], limit: int | None
) -> dict[tuple[str, str], dict[int, Any]]:
    """Return {(metric, filter): {document: per-sample value}} of answers to a leaf task's requests.

    Raises:
        TaskUnavailable: a document is another than when its request was built, or a log-probability is no number: of
            choices, one of them would win.
    """
    unknown = sum(isinstance(one, LikelihoodResponse) and math.isnan(one.logprob) for one in responses)
    if unknown:
        rule = "the weights hold some, or overflow in their dtype"
        raise TaskUnavailable(
            f"{leaf.name}: {unknown} of {len(responses)} log-probabilities are no numbers (NaN): {rule}"
        )
    docs = dict(task.doc_iterator(limit=limit))
    instances: dict[int, list[Instance]] = defaultdict(list)
    for request, response in zip(requests, responses, strict=True):
        if request.doc not in docs or doc_hash(docs[request.doc]) != request.doc_hash:
            raise TaskUnavailable(f"{leaf.name}: document {request.doc} is not the one its request was built from")
        asked = instances[request.doc]
        if asked and isinstance(request, Generation) and asked[-1].idx == request.choice:  # a further sampled answer
            asked[-1].resps += _answers(request, response)
        else:
            asked.append(_instance(leaf.name, docs[request.doc], request, response))
    task._instances = [instance for doc in instances for instance in instances[doc]]
    task.apply_filters()
    values: dict[tuple[str, str], dict[int, Any]] = defaultdict(dict)
    for filter_name in task.instances[0].filtered_resps:
        answered = {
            doc: [instance.filtered_resps[filter_name] for instance in sorted(asked, key=lambda i: i.idx)]
            for doc, asked in instances.items()
        }
        for doc, found in _processed(leaf.name, task, docs, answered):
            for metric, value in found.items():
                values[metric, filter_name][doc] = value
    written = {doc: str(asked[0].resps[0]) for doc, asked in instances.items()}
    second = opencompass_values(task, docs, written)
    return values if second is None else {**values, (METRIC, "none"): second}


def _processed(
    name: str, task: Task, docs: dict[int, Any], answered: dict[int, list[Any]]
) -> Iterator[tuple[int, Any]]:
    """Yield each document's values: of those that wait for programs, as many at once as there are CPUs."""

    def process(doc: int) -> tuple[int, Any]:
        with as_task_unavailable(f"{name} cannot be scored: document {doc}"):
            return doc, task.process_results(docs[doc], answered[doc])

    if not executes_code(task):
        yield from map(process, answered)
        return
    with ThreadPoolExecutor(usable_cores()) as pool:
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
    return Instance(
        request_type=request.kind,  # type: ignore[arg-type]
        doc=doc,
        arguments=arguments,
        idx=request.choice,
        metadata=(task, request.doc, request.repeats),
        resps=_answers(request, response),
    )


def _answers(request: Request, response: Response) -> list[Any]:
    """Return a response as often as it counts, as lm-eval has it."""
    answer: Any
    if isinstance(response, LikelihoodResponse):
        answer = response.logprob if isinstance(request, Rolling) else (response.logprob, response.greedy)
    else:
        answer = response.text
    return [answer] * request.repeats


def is_number(value: Any) -> bool:
    """Return whether a per-sample value is one number; some metrics have pairs or texts."""
    return isinstance(value, (bool, int, float, np.number, np.bool_))


def sample_rows(name: str, task: Task, values: dict[tuple[str, str], dict[int, Any]]) -> list[dict[str, Any]]:
    """Return the rows of ``SAMPLES`` for the values of ``leaf_values``, called right after it.

    Args:
        name: of the leaf task.
    """
    extracted = _extracted(task)
    return [
        {"task": name, "doc": doc, "metric": metric, "filter": filter_name, **_sample(value)}
        | {"extracted": extracted.get((filter_name, doc))}
        for (metric, filter_name), by_doc in values.items()
        for doc, value in by_doc.items()
    ]


def _sample(value: Any) -> dict[str, Any]:
    if is_number(value):
        return {"value": float(value)}
    if isinstance(value, tuple) and len(value) == 2 and all(map(is_number, value)):
        return {"value": float(value[0]), "weight": float(value[1])}
    return {"detail": json.dumps(value, default=str, ensure_ascii=False)}


def parquet(samples: pa.Table) -> bytes:
    """Return a table as the bytes of a Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(samples, sink)
    return sink.getvalue().to_pybytes()
