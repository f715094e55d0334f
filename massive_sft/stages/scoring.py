"""The scoring stage: benchmarks' scores for a base model or a snapshot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from massive_sft import modeling
from massive_sft.asked import Asked
from massive_sft.errors import Interrupted
from massive_sft.evaluate.build import Prepared, prepare
from massive_sft.evaluate.protocol import ScoreCache
from massive_sft.evaluate.requests import Request
from massive_sft.evaluate.responses import Response
from massive_sft.evaluate.run import evaluate
from massive_sft.evaluate.scorer import PlainScorer, Scorer
from massive_sft.evaluate.tasks import label
from massive_sft.evaluate.weights import load_scored
from massive_sft.evaluate.wrapping import Wrapping, choose
from massive_sft.ledger.record import BenchmarkScores
from massive_sft.ledger.store import Ledger
from massive_sft.sweep.cell import Cell
from massive_sft.sweep.schema import Evaluation, TemplateText


class _Guarded(PlainScorer):
    """Takes up no further shard once the run should end, and gives none away that may not count."""

    def __init__(self, model: Any, tokenizer: Any, stop: Callable[[], bool], confirm: Callable[[], None]):
        super().__init__(model, tokenizer)
        self._stop, self._confirm = stop, confirm

    def score(self, requests: Sequence[Request]) -> tuple[list[Response], dict[str, int]]:
        """As ``Scorer.score``. Raises Interrupted, and what ``confirm`` raises."""
        if self._stop():
            raise Interrupted("the run ends")
        answered = super().score(requests)
        self._confirm()  # the weights may be read from their files as late as this
        return answered


@dataclass
class Scored:
    """What scoring gave.

    Attributes:
        scores: by protocol id.
        missing: why a benchmark is missing, by its label.
        seconds: what answering took, by ``Asked.id``, and ``load``; nothing for scores that were there.
    """

    scores: dict[str, BenchmarkScores] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


def score(
    cell: Cell,
    snapshot: Path | None,
    weights: str,
    asked: Sequence[Asked],
    evaluation: Evaluation,
    ledger: Ledger,
    stop: Callable[[], bool],
    confirm: Callable[[], None],
) -> Scored:
    """Score one model on the benchmarks in ``asked``. Finished shards and scores in the ledger are reused.

    Args:
        snapshot: its verified folder; None for the base model.
        weights: the id of the weights' content, under which scores are shared.
        stop: asked before each shard.
        confirm: called before the model is loaded and before anything is written; raises when it may not count.

    Raises:
        Interrupted: ``stop`` said so.
    """
    result = Scored()
    for template, group in _by_template(asked).items():
        tokenizer = modeling.load_tokenizer(cell.model)
        wrapping = choose(evaluation.protocol, template, tokenizer)

        def make_scorer(tokenizer: Any = tokenizer) -> Scorer:
            confirm()
            device = modeling.best_device()
            protocol = evaluation.protocol
            model = load_scored(cell.model, snapshot, protocol.dtype, protocol.adapters, device=device)
            return _Guarded(model, tokenizer, stop, confirm)

        done = evaluate(
            _prepared(group, evaluation, wrapping, ledger),
            evaluation.protocol,
            weights,
            make_scorer,
            ledger.cell_dir(cell.id),
            ScoreCache(ledger.cache_dir("scores")),
            evaluation.allow_code_execution,
            confirm,
        )
        by_label = {label(item.task, item.shots): item for item in group if item.task is not None}
        result.missing.update(done.missing)
        result.seconds |= {by_label[name].id: seconds for name, seconds in done.seconds.items()}
        if done.load_seconds is not None:
            result.seconds["load"] = result.seconds.get("load", 0.0) + done.load_seconds
        for name, table in done.scores.items():
            result.scores[table["protocol"]] = _recorded(name, by_label[name], table)
    return result


def _prepared(group: Sequence[Asked], evaluation: Evaluation, wrapping: Wrapping, ledger: Ledger) -> Prepared:
    """Build the requests of benchmarks that share a template, each with its own shots."""
    prepared = [
        prepare(
            (item.task.model_copy(update={"shots": (item.shots,)}),),
            evaluation.protocol.fewshot,
            wrapping,
            ledger.cache_dir("requests"),
            evaluation.allow_code_execution,
        )
        for item in group
        if item.task is not None
    ]
    return Prepared(
        tuple(benchmark for one in prepared for benchmark in one.benchmarks),
        {name: why for one in prepared for name, why in one.missing.items()},
    )


def _by_template(asked: Sequence[Asked]) -> dict[str | TemplateText, list[Asked]]:
    groups: dict[str | TemplateText, list[Asked]] = {}
    for item in asked:
        if item.task is not None and item.template is not None:
            groups.setdefault(item.template, []).append(item)
    return groups


def _recorded(name: str, asked: Asked, table: dict[str, Any]) -> BenchmarkScores:
    """Return scores under the sweep's own name: another sweep may have cached them under another."""
    return BenchmarkScores(
        benchmark=name,
        asked=asked.id,
        shots=table["shots"],
        tasks=table["tasks"],
        groups=table["groups"],
    )
