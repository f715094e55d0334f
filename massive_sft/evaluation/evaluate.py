"""All three steps for one model's weights: responses to every benchmark, and their scores."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from massive_sft.core.errors import Unsupported
from massive_sft.evaluation import aggregate, responses
from massive_sft.evaluation.build import BenchmarkRequests, PreparedBenchmarks
from massive_sft.evaluation.protocol import ScoreCache, protocol_id, write
from massive_sft.evaluation.requests import Request
from massive_sft.evaluation.responses import Response
from massive_sft.evaluation.scorer import Scorer
from massive_sft.evaluation.task_errors import TaskUnavailable
from massive_sft.ledger.storage import Storage
from massive_sft.sandbox.run import Choice
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
        files: SHA-256 of what was written of scores, by its key below the cell.
    """

    scores: dict[str, dict[str, Any]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    happened: dict[str, dict[str, int]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    load_seconds: float | None = None
    files: dict[str, str] = field(default_factory=dict)


class _LazyScorer:
    """A scorer that is made, its model loaded, when something is left to answer.

    Attributes:
        load_seconds: what that took; None when nothing was loaded.
    """

    def __init__(self, make: Callable[[], Scorer], engine: str):
        self._make, self._engine = make, engine
        self._scorer: Scorer | None = None
        self.load_seconds: float | None = None

    def score(self, requests: Sequence[Request], tokens: Path | None = None) -> tuple[list[Response], dict[str, int]]:
        """As ``Scorer.score``. Raises Unsupported where the scorer has another engine than the protocol."""
        if self._scorer is None:
            began = time.perf_counter()
            self._scorer = self._make()
            self.load_seconds = time.perf_counter() - began
        if self._scorer.engine != self._engine:
            raise Unsupported(f"the protocol asks for engine {self._engine}, this is {self._scorer.engine}")
        return self._scorer.score(requests, tokens)


def evaluate(
    prepared: PreparedBenchmarks,
    protocol: schema.Protocol,
    weights: str,
    make_scorer: Callable[[], Scorer],
    place: Storage,
    cache: ScoreCache,
    sandbox: Choice | None = None,
    confirm: Callable[[], None] = lambda: None,
    ends: Collection[int] = (),
) -> EvaluationResult:
    """Score one model's weights on every prepared benchmark.

    Finished shards and cached scores are taken as they are, so a rerun does only what is left. The model is loaded
    (``make_scorer`` is called) only when something is left to answer.

    Args:
        weights: the id of the weights, under which scores are shared.
        place: responses go below ``responses/<protocol>/`` in it, scores and per-sample values below ``scores/``.
        confirm: called before scores are written; raises when they may not count.
        ends: the tokens that the scorer ends an answer at.
    """
    result = EvaluationResult(missing=dict(prepared.missing))
    scorer = _LazyScorer(make_scorer, protocol.engine)
    for benchmark in prepared.benchmarks:
        label, pid = benchmark.requests.label, protocol_id(protocol, benchmark.requests, ends)
        scores = cache.get(weights, pid)
        if scores is None:
            try:
                shards = place.at(f"responses/{pid}")
                table, samples = _make_scores(benchmark, shards, weights, scorer, sandbox, result)
            except (TaskUnavailable, Unsupported) as error:
                result.missing[label] = str(error)
                continue
            scores = {**table, "protocol": pid}, samples
            cache.put(weights, pid, *scores)
        confirm()
        written = write(place.at("scores"), pid, *scores)
        result.files |= {f"scores/{key}": value for key, value in written.items()}
        result.scores[label] = scores[0]
    result.load_seconds = scorer.load_seconds
    return result


def _make_scores(
    benchmark: BenchmarkRequests,
    shards: Storage,
    weights: str,
    scorer: _LazyScorer,
    sandbox: Choice | None,
    result: EvaluationResult,
) -> tuple[dict[str, Any], bytes]:
    """Answer what is left of a benchmark and aggregate it; what happened and what it took is added to ``result``.

    Returns:
        The table, and the per-sample values as Parquet.
    """
    label, began, loaded = benchmark.requests.label, time.perf_counter(), scorer.load_seconds
    result.happened[label] = responses.answer_requests(benchmark.requests, shards, weights, scorer.score)
    scores = aggregate.aggregate(benchmark, shards, weights, sandbox)
    loading = (scorer.load_seconds or 0.0) if loaded is None else 0.0
    result.seconds[label] = time.perf_counter() - began - loading
    return scores.table, aggregate.parquet(scores.samples)
