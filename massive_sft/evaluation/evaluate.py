"""All three steps for one model's weights: responses to every benchmark, and their scores."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from massive_sft.core.errors import Corrupt, Unsupported
from massive_sft.evaluation import aggregate
from massive_sft.evaluation.build import BenchmarkRequests, PreparedBenchmarks
from massive_sft.evaluation.early import EarlyScores, FindBase, early_protocol, score_early
from massive_sft.evaluation.generate import CPU_SLOTS, GPU_SLOTS
from massive_sft.evaluation.interim_looks import Looks, looks_key
from massive_sft.evaluation.protocol import ScoreCache, protocol_id, write
from massive_sft.evaluation.requests import Request
from massive_sft.evaluation.responses import CONTEXTS_CUT, Response, answer_requests, read_responses
from massive_sft.evaluation.sample_values import parquet
from massive_sft.evaluation.scorer import Scorer
from massive_sft.evaluation.shards import Cut
from massive_sft.evaluation.so_far import ScoresSoFar, SoFar
from massive_sft.evaluation.task_errors import TaskUnavailable
from massive_sft.ledger.storage import Storage
from massive_sft.sandbox.run import Choice
from massive_sft.sweep import schema

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Until:
    """How narrow an early answer must be.

    Attributes:
        points: its half-width, of a hundred.
        base: the id of the base model's weights.
    """

    points: float
    base: str


@dataclass
class EvaluationResult:
    """The scores of one model.

    Attributes:
        scores: by benchmark label, the table that ``aggregate`` returns, with its ``protocol``.
        missing: by benchmark label, why there is no score. Not empty: the cell is PARTIAL.
        errors: what other code raised of those, a benchmark's or a library's.
        happened: by benchmark label, counts of shards and memory splits; empty for a score from the cache.
        seconds: by benchmark label, what it took; nothing for a score from the cache.
        resumed: labels of benchmarks of which answers were there already, so that ``seconds`` are of the rest alone.
        load_seconds: what loading the model took; None when it was not loaded.
        files: SHA-256 of what was written of scores, by its key below the cell.
    """

    scores: dict[str, dict[str, Any]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    errors: list[Exception] = field(default_factory=list)
    happened: dict[str, dict[str, int]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    resumed: set[str] = field(default_factory=set)
    load_seconds: float | None = None
    files: dict[str, str] = field(default_factory=dict)


class LazyScorer:
    """A scorer that is made, its model loaded, when something is left to answer.

    Attributes:
        cut: how requests are cut into shards.
        load_seconds: what that took; None when nothing was loaded.
    """

    def __init__(self, make: Callable[[], Scorer], engine: str, gpu: bool = False):
        self._make, self._engine = make, engine
        self.cut = Cut(engine == "trie", GPU_SLOTS if gpu or engine == "vllm" else CPU_SLOTS)
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


def _untold(scores: ScoresSoFar) -> None:
    """Tell nobody."""


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
    until: Until | None = None,
    told: Callable[[ScoresSoFar], None] = _untold,
    gpu: bool = False,
) -> EvaluationResult:
    """Score one model's weights on every prepared benchmark.

    Finished shards and cached scores are taken as they are, so a rerun does only what is left. The model is loaded
    (``make_scorer`` is called) only when something is left to answer.

    Args:
        weights: the id of the weights, under which scores are shared.
        place: responses go below ``responses/<protocol>/`` in it, scores and per-sample values below ``scores/``.
        confirm: called before scores are written; raises when they may not count.
        ends: the tokens that the scorer ends an answer at.
        until: when an early answer is enough; None where all questions are asked.
        told: called with the scores of what is answered of a benchmark, now and then.
        gpu: whether the scorer's model is on a GPU.
    """
    result = EvaluationResult(missing=dict(prepared.missing))
    scorer = LazyScorer(make_scorer, protocol.engine, gpu)
    for benchmark in prepared.benchmarks:
        label, pid = benchmark.requests.label, protocol_id(protocol, benchmark.requests, ends)
        scores = cache.get(weights, pid)
        if scores is None:
            work = _Benchmark(benchmark, pid, place.at("responses"), weights, scorer, sandbox, result, told)
            try:
                early = work.answer_early(until, partial(_base_scores, until, protocol, benchmark, ends, cache))
                scores = work.scores() if early is None or until is None else _marked(early, pid, until.points)
            except (TaskUnavailable, Unsupported) as error:
                result.missing[label] = str(error)
                result.errors += [error] if error.__cause__ is not None else []
                continue
            if early is None:
                cache.put(weights, pid, *scores)
        confirm()
        written = write(place.at("scores"), scores[0]["protocol"], *scores)
        result.files |= {f"scores/{key}": value for key, value in written.items()}
        result.scores[label] = scores[0]
    result.load_seconds = scorer.load_seconds
    return result


def _base_scores(
    until: Until | None,
    protocol: schema.Protocol,
    benchmark: BenchmarkRequests,
    ends: Collection[int],
    cache: ScoreCache,
) -> tuple[dict[str, Any], bytes] | None:
    """Return the base model's scores of a benchmark; None while they are not there."""
    if until is None:
        return None
    alike = protocol.model_copy(update={"adapters": "unmerged"})  # a base model has none
    return cache.get(until.base, protocol_id(alike, benchmark.requests, ends))


def _marked(early: EarlyScores, pid: str, points: float) -> tuple[dict[str, Any], bytes]:
    """Return early scores as they are kept: under a protocol of their own, with that of all questions beside."""
    marked = {**early.table["early"], "protocol": pid}
    table = {**early.table, "early": marked, "protocol": early_protocol(pid, points)}
    return table, parquet(early.samples)


@dataclass(frozen=True)
class _Benchmark:
    """One benchmark to be answered by one model; what happens and what it takes is added to ``result``.

    Attributes:
        told: called with the scores of what is answered so far; not where looks are taken.
    """

    benchmark: BenchmarkRequests
    protocol: str
    responses: Storage
    weights: str
    scorer: LazyScorer
    sandbox: Choice | None
    result: EvaluationResult
    told: Callable[[ScoresSoFar], None]

    def answer_early(self, until: Until | None, find_base: FindBase) -> EarlyScores | None:
        """Answer look by look, where an early answer is enough or looks were begun; None once all is answered.

        Where the scoring of all questions was begun it goes on instead.
        """
        begun, whole = (self.responses.list(key) for key in (looks_key(self.protocol), self.protocol))
        self.result.resumed |= {self.benchmark.requests.label} if begun or whole else set()
        if begun and whole and self._is_merged():
            self.responses.delete(looks_key(self.protocol))
            return None
        if not begun and (until is None or whole):
            return None
        looks = Looks(self.benchmark.requests, self.responses.at(looks_key(self.protocol)), self.scorer.cut)
        happened = dict[str, int]()
        points = 0.0 if until is None else until.points
        with self._timed():
            early = score_early(
                self.benchmark,
                looks,
                self.weights,
                self.scorer.score,
                points,
                find_base,
                happened,
                self.sandbox,
            )
            if early is None:
                looks.merge(self.weights, self.responses.at(self.protocol))
                self.responses.delete(looks_key(self.protocol))
        self._warn_of_cuts(happened)
        self.result.happened[self.benchmark.requests.label] = happened
        return early

    def _is_merged(self) -> bool:
        """Return whether all looks were put together, by who died before it had taken them away."""
        requests = self.benchmark.requests
        try:
            for leaf in requests.leaves:
                read_responses(requests, leaf, self.responses.at(self.protocol), self.weights)
        except (FileNotFoundError, Corrupt):
            return False
        return True

    def scores(self) -> tuple[dict[str, Any], bytes]:
        """Answer what is left of all questions; return the table, and the per-sample values as Parquet."""
        requests, place = self.benchmark.requests, self.responses.at(self.protocol)
        with self._timed():
            so_far = SoFar(self.benchmark, self.sandbox, self.told)
            happened = answer_requests(requests, place, self.weights, self.scorer.score, self.scorer.cut, so_far)
            scores = aggregate.aggregate(self.benchmark, place, self.weights, self.sandbox)
        self._warn_of_cuts(happened)
        self.result.happened.setdefault(requests.label, happened)
        return {**scores.table, "protocol": self.protocol}, parquet(scores.samples)

    def _warn_of_cuts(self, happened: dict[str, int]) -> None:
        if happened.get(CONTEXTS_CUT):
            told = "%s: %d contexts are longer than the model's and lost their beginning"
            log.warning(told, self.benchmark.requests.label, happened[CONTEXTS_CUT])

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Add what the block took, but for loading the model."""
        began, loaded = time.perf_counter(), self.scorer.load_seconds
        yield
        loading = (self.scorer.load_seconds or 0.0) if loaded is None else 0.0
        label, seconds = self.benchmark.requests.label, self.result.seconds
        seconds[label] = seconds.get(label, 0.0) + time.perf_counter() - began - loading
