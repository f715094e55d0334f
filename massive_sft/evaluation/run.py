"""All three steps for one model's weights: responses to every benchmark, and their scores."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from massive_sft.core.errors import Unsupported
from massive_sft.evaluation import aggregate, responses
from massive_sft.evaluation.build import PreparedBenchmarks
from massive_sft.evaluation.protocol import ScoreCache, protocol_id, write
from massive_sft.evaluation.scorer import Scorer
from massive_sft.evaluation.task_errors import TaskUnavailable
from massive_sft.sweep import schema


@dataclass
class EvaluationResult:
    """The scores of one model.

    Attributes:
        scores: by benchmark label, the table that ``aggregate`` returns, with its ``protocol``.
        missing: by benchmark label, why there is no score. Not empty: the cell is PARTIAL.
        happened: by benchmark label, counts of shards and memory splits; empty for a score from the cache.
        seconds: by benchmark label, what it took; nothing for a score from the cache.
        load_seconds: what loading the model took; None when it was not loaded.
    """

    scores: dict[str, dict[str, Any]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    happened: dict[str, dict[str, int]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    load_seconds: float | None = None


def evaluate(
    prepared: PreparedBenchmarks,
    protocol: schema.Protocol,
    weights: str,
    make_scorer: Callable[[], Scorer],
    folder: Path,
    cache: ScoreCache,
    allow_code_execution: bool = False,
    confirm: Callable[[], None] = lambda: None,
    ends: Collection[int] = (),
) -> EvaluationResult:
    """Score one model's weights on every prepared benchmark.

    Finished shards and cached scores are taken as they are, so a rerun does only what is left. The model is loaded
    (``make_scorer`` is called) only when something is left to answer.

    Args:
        weights: the id of the weights, under which scores are shared.
        folder: responses go to ``folder/responses/<protocol>/``, scores and per-sample values to ``folder/scores/``.
        confirm: called before scores are written; raises when they may not count.
        ends: the tokens that the scorer ends an answer at.
    """
    result = EvaluationResult(missing=dict(prepared.missing))
    scorers: list[Scorer] = []

    def answer(requests: Any) -> Any:
        if not scorers:
            began = time.perf_counter()
            scorers.append(make_scorer())
            result.load_seconds = time.perf_counter() - began
            if scorers[0].engine != protocol.engine:
                raise Unsupported(f"the protocol asks for engine {protocol.engine}, this is {scorers[0].engine}")
        return scorers[0].score(requests)

    for benchmark in prepared.benchmarks:
        label, pid = benchmark.requests.label, protocol_id(protocol, benchmark.requests, ends)
        cached = cache.get(weights, pid)
        if cached is None:
            shards = folder / "responses" / pid
            began, loaded = time.perf_counter(), result.load_seconds
            try:
                result.happened[label] = responses.answer_requests(benchmark.requests, shards, weights, answer)
                scores = aggregate.aggregate(benchmark, shards, weights, allow_code_execution)
            except (TaskUnavailable, Unsupported) as error:
                result.missing[label] = str(error)
                continue
            loading = (result.load_seconds or 0.0) if loaded is None else 0.0
            result.seconds[label] = time.perf_counter() - began - loading
            cached = {**scores.table, "protocol": pid}, aggregate.parquet(scores.samples)
            cache.put(weights, pid, *cached)
        confirm()
        write(folder / "scores", pid, *cached)
        result.scores[label] = cached[0]
    return result
