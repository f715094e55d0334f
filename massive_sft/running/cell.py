"""One cell to its record, whatever happens; what inline runs and scorers both do: scores, measures, record."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from massive_sft.core.errors import Interrupted, LeaseLost
from massive_sft.core.fingerprint import digest, fingerprint
from massive_sft.core.stop import never_stop
from massive_sft.ledger import scores_so_far
from massive_sft.ledger.asked import full_id
from massive_sft.ledger.lease import Claim
from massive_sft.ledger.paths import cell_key
from massive_sft.ledger.record import BenchmarkScores, Record, Status
from massive_sft.ledger.scores_so_far import PartScores
from massive_sft.ledger.store import Ledger
from massive_sft.models.device import device_name
from massive_sft.models.warm_model import WarmModel
from massive_sft.planning.outcome import GONE, as_asked
from massive_sft.planning.plan import CellPlan, RunPlan
from massive_sft.planning.requirements import Requirement, cell_protocol
from massive_sft.running.events import (
    AnswersWritten,
    BenchmarkProgressed,
    BenchmarkScored,
    CellRecorded,
    Listen,
    ScoringStarted,
    ignore,
    skipped,
)
from massive_sft.running.failures import error_text, is_no_room, leave_traceback, missing_on_failure
from massive_sft.running.measuring import measure_data, measure_layers, measure_texts
from massive_sft.running.outcome import Trained, find_trained, find_trainings, open_snapshot, snapshot_folder
from massive_sft.running.recorder import RecordWriter, now
from massive_sft.running.scoring import CellScoring, Weights
from massive_sft.sweep.cell import Cell
from massive_sft.sweep.unchanged_files import require_same_model

DAMAGED = "its snapshot does not match its checksums; run with --retrain to train it again"


Fields = dict[str, Any]  # of a record
OpensSnapshot = AbstractContextManager[tuple[Path, dict[str, str]] | None]


def _require_unchanged(cell: Cell, claim: Claim) -> None:
    """Refuse to go on with a cell that somebody took over (LeaseLost), or whose base model changed (InvalidInput)."""
    claim.verify()
    require_same_model(cell.model, cell.base)


def evaluate_cell(cell: CellPlan, run: RunPlan | None, evaluator: CellEvaluator, listen: Listen) -> None:
    """Take a cell whose training came to its epoch, or a base model's (``run`` is None), to its record.

    What goes wrong becomes a FAILED record, the traceback a file beside it. Where the run should end there is none yet.
    Where another process asks judges, a cell with answers for them is told of as ``AnswersWritten``.

    Raises OSError where a disk takes no more: that is no fault of the cell.
    """
    _to_record(cell, partial(_evaluate, cell, run), evaluator, listen)


def judge_cell(cell: CellPlan, weights: str, evaluator: CellEvaluator, listen: Listen) -> None:
    """Take a cell to its record that is complete but for verdicts on its answers, as ``evaluate_cell``; loads no model.

    Args:
        weights: the id of those that wrote the answers.
    """
    _to_record(cell, lambda judging: judging.judge(cell, weights), evaluator, listen)


def _to_record(
    cell: CellPlan, make: Callable[[CellEvaluator], Record | None], evaluator: CellEvaluator, listen: Listen
) -> None:
    evaluator.progress(ScoringStarted(cell.cell))
    try:
        record = make(evaluator)
    except Interrupted:
        return
    except LeaseLost as error:
        listen(skipped(str(error), [cell]))
        return
    except Exception as error:  # whatever else it is, it must not end the other cells
        if is_no_room(error):
            raise
        leave_traceback(evaluator.ledger.cell(cell.cell.id), error)
        record = evaluator.recorder.failed(cell, 1, error_text(error))
    weights = evaluator.unjudged.pop(cell.cell.id, None) if evaluator.unjudged is not None else None
    if weights is not None and record is not None and record.status is Status.PARTIAL:
        listen(AnswersWritten(cell, weights))
        return
    listen(CellRecorded(cell.cell, record) if record else skipped(str(cell.cell.coordinates), [cell]))


def _evaluate(cell: CellPlan, run: RunPlan | None, evaluator: CellEvaluator) -> Record | None:
    if run is None:
        return evaluator.evaluate_base(cell)
    trained = find_trained(evaluator.ledger, run.trajectory.id, cell.cell.epoch)
    if trained is None:
        raise RuntimeError("the training came to its epoch, but what it published cannot be read")
    return evaluator.evaluate_trained(cell, run, trained)


@dataclass(frozen=True)
class CellEvaluator:
    """Takes trained cells to their records: scores, measures, record, in this order.

    Attributes:
        stop: asked before each shard; once it is true Interrupted is raised, and what is scored stays.
        gpu: whether models are scored on a GPU, as ``resources`` say of the runs.
        progress: told of cells and benchmarks on the way.
        warm: the model of the cell before, for the next one of its base.
        open_snapshot: as ``outcome.open_snapshot``.
        unjudged: gets the id of a cell's weights, by the cell's, where verdicts on its answers are left to be asked by
            another process; None where this one asks the judges.
    """

    recorder: RecordWriter
    stop: Callable[[], bool] = never_stop
    gpu: bool = False
    progress: Listen = ignore
    warm: WarmModel = field(default_factory=WarmModel)
    open_snapshot: Callable[[Ledger, str, int], OpensSnapshot] = open_snapshot
    unjudged: MutableMapping[str, str] | None = None

    @property
    def ledger(self) -> Ledger:
        return self.recorder.ledger

    def evaluate_base(self, plan: CellPlan) -> Record | None:
        """Score a base model and write its record; None while somebody else works on it."""

        def make(fresh: CellPlan, claim: Claim) -> Fields:
            weights = Weights(digest(fresh.cell.base))
            details = self._score(fresh, weights, self._kept_fields(fresh), claim, self._scoring)
            self._measure(fresh, None, None, details)
            return {"attempt": claim.number, **details}

        return self._under_lease(plan, make)

    def evaluate_trained(self, plan: CellPlan, run: RunPlan, trained: Trained) -> Record | None:
        """Score and measure a cell that is trained and write its record; None while somebody else does.

        What needs a snapshot that was removed is missing, and the record says so.

        Args:
            trained: its training, as far as nothing says that its snapshot is of another one.
        """

        def make(fresh: CellPlan, claim: Claim) -> Fields:
            reason = trained.diverged(fresh.cell.epoch)
            if reason:
                return {"status": Status.DIVERGED, "error": reason, "files": trained.files, **_told(trained, fresh)}
            return self._score_and_measure(fresh, run, trained, claim)

        return self._under_lease(plan, make)

    def judge(self, plan: CellPlan, weights: str) -> Record | None:
        """Have judges asked of answers that are written, and write the cell's record; None while somebody else does.

        What else the cell lacks stays as its newest record has it.
        """

        def make(fresh: CellPlan, claim: Claim) -> Fields:
            newest = self.ledger.read_record(plan.cell.id)
            own = replace(fresh, unmet=tuple(item for item in fresh.unmet if item.judged is not None))
            no_model = replace(self._scoring, warm=None)
            details = self._score(own, Weights(weights), self._kept_fields(fresh), claim, no_model)
            if newest is None:
                return {"attempt": claim.number, **details}
            asked = {item.label for item in own.unmet}
            details["missing"] |= {name: why for name, why in newest.missing.items() if name not in asked}
            details["status"] = Status.PARTIAL if details["missing"] else Status.COMPLETE
            return {"attempt": newest.attempt, "training": newest.training, "counts": newest.counts, **details}

        return self._under_lease(plan, make)

    def _under_lease(self, plan: CellPlan, make: Callable[[CellPlan, Claim], Fields]) -> Record | None:
        """Write a cell's record of the fields that ``make`` returns, unless it is done meanwhile."""
        created, began = now(), time.perf_counter()
        lease = self.ledger.lease_cell(plan.cell.id, self.recorder.owner)
        if lease is None:
            return None
        with lease:
            newest = self.ledger.read_record(plan.cell.id)
            fresh = plan.with_record(newest)
            if newest is not None and fresh.is_done:
                return as_asked(newest, fresh, self.ledger)
            self.ledger.write_cell(plan.cell.id, plan.cell.content)
            fields = make(fresh, lease.claim)
            if "cost" in fields:
                seconds = fields["cost"]["seconds"]
                seconds["other"] = time.perf_counter() - began - sum(seconds.values())
            record = self.recorder.record(fresh, created, **fields)
            _require_unchanged(plan.cell, lease.claim)
            self.ledger.write_record(record, lease.claim)
        return record

    def _kept_fields(self, plan: CellPlan) -> Fields:
        """Return what a cell has already, and an empty account of what the rest takes."""
        return self.recorder.earlier(plan) | {"cost": {"device": device_name(self.gpu), "seconds": {}}}

    @property
    def _scoring(self) -> CellScoring:
        recorder, asks = self.recorder, self.unjudged is None
        return CellScoring(recorder.evaluation, recorder.ledger, recorder.commits, self.stop, self.gpu, self.warm, asks)

    def _score(self, plan: CellPlan, weights: Weights, details: Fields, claim: Claim, scoring: CellScoring) -> Fields:
        """Score what is lacking; add scores, their files and what is missing to ``details``."""

        def tell(scores: BenchmarkScores, resumed: bool) -> None:
            self.progress(BenchmarkScored(plan.cell, scores, resumed))

        place, parts = self.ledger.cell(plan.cell.id), 0

        def tell_part(part: PartScores) -> None:
            nonlocal parts
            parts += 1
            scores_so_far.write(place, part)
            self.progress(BenchmarkProgressed(plan.cell, part))

        confirm = partial(_require_unchanged, plan.cell, claim)
        scored = scoring.score(plan.cell, weights, plan.unmet, confirm, tell, tell_part)
        if parts:
            scores_so_far.remove(place)
        if self.unjudged is not None and scored.awaits_verdicts:
            self.unjudged[plan.cell.id] = weights.id
        details["scores"] = superseding(details["scores"], scored.scores)
        details["cost"]["seconds"] |= scored.seconds
        if scored.resumed:
            details["cost"]["resumed"] = scored.resumed
        if scored.attention is not None:
            details["cost"]["attention"] = scored.attention
        if scored.plainly is not None:
            details["cost"]["plainly"] = scored.plainly
        details["missing"] = scored.missing
        details["status"] = Status.PARTIAL if scored.missing else Status.COMPLETE
        details["files"] |= {f"{cell_key(plan.cell.id)}/{key}": scored.files[key] for key in sorted(scored.files)}
        return details

    def _score_and_measure(self, plan: CellPlan, run: RunPlan, trained: Trained, claim: Claim) -> Fields:
        details = self._kept_fields(plan) | {"missing": {}}
        with self.open_snapshot(self.ledger, run.trajectory.id, plan.cell.epoch) as found:
            if found is None:
                why = DAMAGED if snapshot_folder(self.ledger, run.trajectory.id, plan.cell.epoch).is_dir() else GONE
                details["missing"] = {item.label: why for item in plan.unmet if item.needs_weights}
            else:
                snapshot, hashes = found
                content = fingerprint({"base": run.trajectory.recipe.parts["base"], "snapshot": hashes})
                details = self._score(plan, Weights(content, snapshot), details, claim, self._scoring)
            self._measure(plan, run, found[0] if found else None, details)
        trained = self._training_of(plan, run, found[1] if found else None, details["files"]) or trained
        others = f"{trained.folder.parent.relative_to(self.ledger.root)}/"
        kept = {name: checksum for name, checksum in details["files"].items() if not name.startswith(others)}
        return {**details, "files": {**trained.files, **kept}, **_told(trained, plan)}

    def _training_of(
        self, plan: CellPlan, run: RunPlan, snapshot: Mapping[str, str] | None, files: Mapping[str, str]
    ) -> Trained | None:
        """Return the training that gave a snapshot, of several that nothing tells apart none.

        Args:
            snapshot: its hashes by file; None where it is gone: then the training is meant that the cell's record, by
                the ``files`` that it rests on, is of already.
        """
        epoch = plan.cell.epoch
        for trained in find_trainings(self.ledger, run.trajectory.id, epoch):
            if trained.gave(epoch, snapshot) if snapshot else trained.files.keys() & files.keys():
                return trained
        return None

    def _measure(self, plan: CellPlan, run: RunPlan | None, snapshot: Path | None, details: Fields) -> None:
        """Add what is lacking of a cell's measures to ``details``, and what is missing.

        Args:
            run: None for a base model.
            snapshot: None for a base model, and where it is gone.
        """
        for item in plan.unmet:
            if item.measure is None or (item.needs_weights and run is not None and snapshot is None):
                continue
            with missing_on_failure(details["missing"], item.label, self.ledger.cell(plan.cell.id)):
                self._measure_one(item, plan, run, snapshot, details)
        details["status"] = Status.PARTIAL if details["missing"] else Status.COMPLETE

    def _measure_one(
        self, item: Requirement, plan: CellPlan, run: RunPlan | None, snapshot: Path | None, details: Fields
    ) -> None:
        """Add one measure of a cell to ``details``, with the files that it rests on and what it took."""
        seconds, began, files = details["cost"]["seconds"], time.perf_counter(), dict[str, str]()
        if item.texts is not None:
            protocol = cell_protocol(self.recorder.evaluation.protocol, plan.cell)
            measured, files = measure_texts(
                item, plan.cell, snapshot, protocol, self.ledger, self.stop, self.gpu, self.warm
            )
            details["measures"][item.id] = measured
            seconds[item.id] = time.perf_counter() - began
        elif item.measure == "layer_change" and run is not None and snapshot is not None:
            measured, files = measure_layers(plan.cell, run.trajectory.recipe, snapshot, self.ledger, self.gpu)
            details["measures"][item.measure] = measured
            seconds[item.measure] = time.perf_counter() - began
        elif item.measure is not None and run is not None:
            details["measures"][item.measure] = measure_data(
                item.measure, run, self.ledger, seconds, self.gpu, self.warm
            )
        details["files"] |= files


def _told(trained: Trained, plan: CellPlan) -> Fields:
    """Return what a cell's record says of its training."""
    outcome = trained.outcome
    return {"attempt": outcome["attempt"], "counts": outcome["counts"], "training": trained.summary(plan.cell.epoch)}


def superseding(earlier: Mapping[str, BenchmarkScores], new: Mapping[str, BenchmarkScores]) -> Fields:
    """Return a cell's scores by protocol: the new ones, and the earlier but for early answers that these replace."""
    replaced = {full_id(scores.asked) for scores in new.values()}
    kept = {pid: scores for pid, scores in earlier.items() if not (scores.early and full_id(scores.asked) in replaced)}
    return kept | dict(new)
