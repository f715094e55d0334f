"""The scores of what is answered of a benchmark, made anew as its shards come in."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from massive_sft.evaluation import aggregate
from massive_sft.evaluation.build import BenchmarkRequests
from massive_sft.evaluation.opencompass import runs_programs
from massive_sft.evaluation.requests import Request
from massive_sft.evaluation.responses import Response
from massive_sft.evaluation.sample_values import leaf_values
from massive_sft.evaluation.task_errors import TaskUnavailable, as_task_unavailable
from massive_sft.evaluation.tasks import load, seeded
from massive_sft.sandbox.run import Choice
from massive_sft.suites.declared import title

EVERY_S = 2.0  # between two scores of one benchmark: each is made of all answers since the last one


@dataclass(frozen=True)
class ScoresSoFar:
    """Scores of a part of a benchmark's questions, which stand in its own order: they may be no sample of all.

    Attributes:
        benchmark: its label.
        shots: as of ``RequestSet``.
        name: of the task, or of the group whose tasks are taken together.
        scores: by ``metric,filter``, entries as ``aggregate.BenchmarkResult`` has them.
        answered, of: questions.
        found: those whose answers were there already.
    """

    benchmark: str
    shots: int | None
    name: str
    scores: dict[str, dict[str, Any]]
    answered: int
    of: int
    found: int


class SoFar:
    """Tells the scores of what is answered of one benchmark, each shard being told to it (``responses.Tell``).

    Nothing is told of benchmarks that run code, of what is not the mean over a group's questions, and once all
    questions are answered. What fails here fails when all is scored, and is said there.

    Args:
        told: called with the scores, at most every ``EVERY_S``.
    """

    def __init__(self, benchmark: BenchmarkRequests, sandbox: Choice | None, told: Callable[[ScoresSoFar], None]):
        self._benchmark, self._sandbox, self._told = benchmark, sandbox, told
        self._of = sum(leaf.documents for leaf in benchmark.requests.leaves)
        self._waiting: list[tuple[str, Sequence[Request], Sequence[Response]]] = []
        self._values: dict[str, dict[tuple[str, int], Any]] = {}  # by metric and filter, then by task and document
        self._last_s = time.monotonic()
        self._answered = self._found = 0

    def __call__(self, leaf: str, requests: Sequence[Request], responses: Sequence[Response], was_there: bool) -> None:
        """Take note of a shard, and tell the scores where it is time to."""
        self._waiting.append((leaf, requests, responses))
        questions = len({request.doc for request in requests})
        self._answered += questions
        self._found += questions * was_there
        if self._answered == self._of or time.monotonic() - self._last_s < EVERY_S:
            return
        try:
            scores = self._scores()
        except TaskUnavailable:
            return
        finally:
            self._waiting.clear()
            self._last_s = time.monotonic()
        if scores:
            asked, name = self._benchmark.requests, title(self._benchmark.task)
            self._told(ScoresSoFar(asked.label, asked.shots, name, scores, self._answered, self._of, self._found))

    def _scores(self) -> dict[str, dict[str, Any]]:
        benchmark = self._benchmark
        loaded, asked = load(benchmark.task, self._sandbox, benchmark.commits), benchmark.requests
        if any(map(runs_programs, loaded.tasks.values())):
            return {}
        if len(asked.leaves) > 1 and aggregate.metrics_without_mean(benchmark, self._sandbox):
            return {}
        leaves = {leaf.name: leaf for leaf in asked.leaves}
        for name, requests, responses in self._waiting:
            with seeded(), as_task_unavailable(f"{name} cannot be scored"):
                task = loaded.tasks[name]
                values = leaf_values(task, leaves[name], list(requests), list(responses), asked.limit)
            for key, by_doc in values.items():
                found = self._values.setdefault(",".join(key), {})
                found.update({(name, doc): value for doc, value in by_doc.items()})
        with as_task_unavailable(f"{asked.label} cannot be scored"):
            return {
                key: aggregate.entry_of(next(iter(loaded.tasks.values())), key, self._values[key])
                for key in self._values
            }
