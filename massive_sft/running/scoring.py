"""The scoring stage: benchmarks' scores for a base model or a snapshot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from massive_sft.core.errors import Interrupted, LeaseLost, Unsupported, describe_error
from massive_sft.core.fingerprint import digest
from massive_sft.evaluation.build import PreparedBenchmarks, prepare
from massive_sft.evaluation.earlier_answers import EarlierAnswers
from massive_sft.evaluation.end_tokens import end_tokens
from massive_sft.evaluation.evaluate import EvaluationResult, LazyScorer, Until, evaluate
from massive_sft.evaluation.protocol import ScoreCache
from massive_sft.evaluation.requests import Request
from massive_sft.evaluation.responses import Response
from massive_sft.evaluation.scorer import PlainScorer, Scorer
from massive_sft.evaluation.so_far import ScoresSoFar
from massive_sft.evaluation.tree import TreeScorer
from massive_sft.evaluation.vllm import VllmScorer, vllm_scorer
from massive_sft.evaluation.wrapping import Wrapping, choose_wrapping
from massive_sft.ledger.asked import full_id
from massive_sft.ledger.record import AWAITED, BenchmarkScores, Score
from massive_sft.ledger.scores_so_far import PartScores
from massive_sft.ledger.store import Ledger
from massive_sft.models.configuration import load_config
from massive_sft.models.device import device_of
from massive_sft.models.tokenizer import load_tokenizer
from massive_sft.models.warm_model import WarmModel
from massive_sft.planning.lock import DataCommits
from massive_sft.planning.requirements import Requirement, cell_protocol
from massive_sft.running.failures import leave_traceback, missing_on_failure
from massive_sft.running.judged import JudgedScoring
from massive_sft.suites.declared import label
from massive_sft.sweep.cell import Cell
from massive_sft.sweep.schema import Evaluation

_ENGINES = {engine.engine: engine for engine in (PlainScorer, TreeScorer)}


@dataclass(frozen=True)
class Weights:
    """Weights that are scored.

    Attributes:
        id: of their content, under which scores are shared.
        snapshot: their verified folder; None for a base model's, and where no model is loaded.
    """

    id: str
    snapshot: Path | None = None


class _GuardedScorer:
    """Takes up no further shard once the run should end, and gives none away that may not count."""

    def __init__(self, scorer: Scorer, stop: Callable[[], bool], confirm: Callable[[], None]):
        self.engine = scorer.engine
        self._scorer, self._stop, self._confirm = scorer, stop, confirm

    def score(self, requests: Sequence[Request], tokens: Path | None = None) -> tuple[list[Response], dict[str, int]]:
        """As ``Scorer.score``. Raises Interrupted, and what ``confirm`` raises."""
        if self._stop():
            raise Interrupted("the run ends")
        answered = self._scorer.score(requests, tokens)
        self._confirm()  # the weights may be read from their files as late as this
        return answered


@dataclass
class CellScores:
    """What scoring gave.

    Attributes:
        scores: by protocol id.
        missing: why a benchmark is missing, by its label.
        seconds: what answering took, by ``Requirement.id``, and ``load``; nothing for scores that were there.
        resumed: those of which answers were there already, so that ``seconds`` are of the rest alone.
        attention: the implementation that computed them; None where nothing was computed.
        plainly: why the plain engine answered where the tree engine is asked for; None where it did not.
        files: SHA-256 of the files of scores, by key below the cell.
    """

    scores: dict[str, BenchmarkScores] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    resumed: list[str] = field(default_factory=list)
    attention: str | None = None
    plainly: str | None = None
    files: dict[str, str] = field(default_factory=dict)

    @property
    def awaits_verdicts(self) -> bool:
        """Whether answers are written of which another process asks the judges."""
        return AWAITED in self.missing.values()

    def add(self, item: Requirement, result: EvaluationResult) -> list[BenchmarkScores]:
        """Add what one benchmark came to; return its scores."""
        self.missing.update(result.missing)
        self.files |= result.files
        if result.seconds:
            self.seconds[item.id] = sum(result.seconds.values())
            self.resumed += [item.id] if result.resumed else []
        if result.load_seconds is not None:
            self.seconds["load"] = self.seconds.get("load", 0.0) + result.load_seconds
        added = {table["protocol"]: _recorded(item, table) for table in result.scores.values()}
        self.scores |= added
        return list(added.values())


@dataclass(frozen=True)
class CellScoring:
    """How a process scores cells.

    Attributes:
        evaluation: what is scored and how.
        ledger: finished shards and scores in it are reused.
        commits: that the hub's data sets of benchmarks stay at.
        stop: asked before each shard, and each call of a judge.
        gpu: whether models are on a GPU.
        warm: loads the model, or takes it from the cell before; None where none may be loaded.
        asks_judges: whether verdicts are asked here; else answers are written for another process to ask of.
    """

    evaluation: Evaluation
    ledger: Ledger
    commits: DataCommits
    stop: Callable[[], bool]
    gpu: bool
    warm: WarmModel | None
    asks_judges: bool

    def score(
        self,
        cell: Cell,
        weights: Weights,
        requirements: Sequence[Requirement],
        confirm: Callable[[], None],
        tell: Callable[[BenchmarkScores, bool], None],
        tell_part: Callable[[PartScores], None],
    ) -> CellScores:
        """Score one model on the benchmarks in ``requirements``.

        A benchmark that fails, for whatever reason, is missing; the others are scored.

        Args:
            confirm: called before a model is loaded or anything is written; raises when it may not count.
            tell: called with each benchmark's scores, and whether answers of it were there already.
            tell_part: called now and then with what they are so far.

        Raises Interrupted when ``stop`` said so, LeaseLost when ``confirm`` did, OSError when the disk takes no more.
        """
        result, place = CellScores(), self.ledger.cell(cell.id)
        model = _CellModel(cell, weights, self, confirm)
        for item in requirements:
            if item.template is not None:
                with missing_on_failure(result.missing, item.label, place):
                    wrapping = choose_wrapping(model.evaluation.protocol, item.template, model.tokenizer())
                    if item.judged is not None:
                        scored = model.judge(item, wrapping)
                    else:
                        benchmark = prepare_benchmark(item, model.evaluation, wrapping, self.ledger, self.commits)
                        scored = model.evaluate(benchmark, item.until, partial(_tell_part, item, tell_part))
                    for error in scored.errors:
                        leave_traceback(place, error)
                    for scores in result.add(item, scored):
                        tell(scores, item.id in result.resumed or item.id not in result.seconds)
        result.attention, result.plainly = model.attention, model.plainly
        return result


class _CellModel:
    """A cell's tokenizer and scorer, each loaded when it is first needed; what failed once is not tried again."""

    def __init__(self, cell: Cell, weights: Weights, scoring: CellScoring, confirm: Callable[[], None]):
        protocol = cell_protocol(scoring.evaluation.protocol, cell)
        self.evaluation = scoring.evaluation.model_copy(update={"protocol": protocol})
        self._cell, self._weights, self._scoring, self._confirm = cell, weights, scoring, confirm
        self._answering: PlainScorer | VllmScorer | None = None
        self._made: dict[str, Any] = {}
        self._failed: dict[str, str] = {}

    @property
    def attention(self) -> str | None:
        """How attention is computed, with the reason where the tree engine answers plainly; None before loading."""
        return None if self._answering is None else self._answering.attention

    @property
    def plainly(self) -> str | None:
        """Why the tree engine answers plainly; None where it does not."""
        return self._answering.fallback if isinstance(self._answering, TreeScorer) else None

    def tokenizer(self) -> Any:
        """Return the tokenizer. Raises Unsupported where it cannot be loaded."""
        return self._once("tokenizer", lambda: load_tokenizer(self._cell.model))

    def evaluate(
        self, prepared: PreparedBenchmarks, points: float | None, told: Callable[[ScoresSoFar], None]
    ) -> EvaluationResult:
        """Score what was prepared; the model is loaded only when something is left to answer.

        Args:
            points: half-width at which an early answer is enough; None for all questions.
            told: as of ``evaluate``.

        Raises:
            Unsupported: the tokenizer cannot be loaded.
            LeaseLost, Interrupted: as of ``CellScoring.score``.
        """
        ledger = self._scoring.ledger
        return evaluate(
            prepared,
            self.evaluation.protocol,
            self._weights.id,
            self._scorer,
            ledger.cell(self._cell.id),
            ScoreCache(ledger.storage.at("cache/scores")),
            self.evaluation.code_sandbox,
            self._confirm,
            self._ends(),
            None if points is None else Until(points, digest(self._cell.base)),
            told,
            self._scoring.gpu,
        )

    def judge(self, item: Requirement, wrapping: Wrapping) -> EvaluationResult:
        """Score a benchmark that is judged; the model is loaded only when an answer is left to write.

        Raises:
            Unsupported: the tokenizer cannot be loaded.
            MassiveSFTError: as ``JudgedScoring.score``.
        """
        return JudgedScoring(
            self.evaluation,
            wrapping,
            f"{self.tokenizer().eos_token or ''}\n",
            self._ends(),
            self._weights.id,
            LazyScorer(self._scorer, self.evaluation.protocol.engine),
            self._scoring.ledger,
            self._cell.id,
            self._scoring.asks_judges,
            self._scoring.stop,
            self._confirm,
        ).score(item)

    def _ends(self) -> frozenset[int]:
        found: frozenset[int] = self._once("end tokens", lambda: end_tokens(self._cell.model, self.tokenizer()))
        return found

    def _scorer(self) -> Scorer:
        scorer: Scorer = self._once("model", self._load)
        return scorer

    def _load(self) -> Scorer:
        if self._scoring.warm is None:
            raise Unsupported("an answer that was written is not there, and none is written where judges are asked")
        cell, snapshot, protocol = self._cell, self._weights.snapshot, self.evaluation.protocol
        tokenizer, ends = self.tokenizer(), self._ends()
        self._confirm()
        if self.evaluation.vllm is not None:
            config = load_config(cell.model)
            self._answering = vllm_scorer(self.evaluation.vllm, cell.model, config, tokenizer, ends, snapshot)
        else:
            device = device_of(self._scoring.gpu)
            model = self._scoring.warm.load(cell.model, snapshot, protocol.dtype, protocol.adapters, device)
            earlier = EarlierAnswers([self._scoring.ledger.cell(before).at("responses") for before in cell.before])
            self._answering = _ENGINES[protocol.engine](model, tokenizer, ends=ends, earlier=earlier)
        return _GuardedScorer(self._answering, self._scoring.stop, self._confirm)

    def _once(self, what: str, load: Callable[[], Any]) -> Any:
        if what not in self._made and what not in self._failed:
            try:
                self._made[what] = load()
            except LeaseLost:
                raise
            except Exception as error:  # noqa: BLE001 - of transformers, of a model's own code, of the device
                # Kept as text: the exception would hold the tensors that did not fit.
                self._failed[what] = f"the {what} cannot be loaded: {describe_error(error)}"
        if what in self._failed:
            raise Unsupported(self._failed[what])
        return self._made[what]


def prepare_benchmark(
    item: Requirement, evaluation: Evaluation, wrapping: Wrapping, ledger: Ledger, commits: DataCommits
) -> PreparedBenchmarks:
    """Build one benchmark's requests in the ledger's cache, once in a process; ``item`` is no measure."""
    shots = None if item.shots is None else (item.shots,)
    return prepare(
        () if item.task is None else (item.task.model_copy(update={"shots": shots}),),
        evaluation.protocol.fewshot,
        wrapping,
        ledger.cache_dir("requests"),
        evaluation.code_sandbox,
        commits,
    )


def _tell_part(asked: Requirement, tell: Callable[[PartScores], None], found: ScoresSoFar) -> None:
    scores = BenchmarkScores(
        benchmark=found.benchmark,
        asked=asked.id,
        shots=found.shots,
        tasks={found.name: {key: Score(**entry) for key, entry in found.scores.items()}},
    )
    tell(PartScores(scores, found.answered, found.of, found.found))


def _recorded(asked: Requirement, table: dict[str, Any]) -> BenchmarkScores:
    """Return scores under the sweep's own name: another sweep may have cached them under another."""
    return BenchmarkScores(
        benchmark=asked.label if asked.task is None else label(asked.task, table["shots"]),
        asked=asked.id if "early" in table else full_id(asked.id),
        shots=table["shots"],
        tasks=table["tasks"],
        groups=table["groups"],
        early=table.get("early"),
    )
