"""One sweep's runs on an MLflow store: found again or made, written in batches."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow.entities import Dataset, DatasetInput, Experiment, InputTag, Metric, Param, Run, RunTag

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.ledger.provenance import redact
from massive_sft.tracking.address import PLACE, artifact_location, database_path
from massive_sft.tracking.client import TRACKER_ERRORS, make_client
from massive_sft.tracking.curve import RunCurve
from massive_sft.tracking.run_fields import (
    CELL,
    CURVE,
    GAINS,
    RECORD,
    SWEEP,
    WRITTEN,
    CellRun,
    MixtureInput,
    Point,
    stale_metrics,
)
from massive_sft.tracking.view import KEY, TAG, make_view, view_metrics

log = logging.getLogger(__name__)

# MLflow takes 1,000 entities a call, of which 100 parameters and 100 tags, in one megabyte.
MAX_METRICS, MAX_NAMES = 800, 100
PARENT = "massive_sft.parent"
NESTED = "mlflow.parentRunId"
"""How earlier versions tied cells to the sweep's run: MLflow's list hides them then until somebody expands it."""
CURVE_ID = f"{CURVE}_id"
NOTE = "mlflow.note.content"
KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Versions of MLflow that read it open the experiment on its runs, and not on the traces of an agent."""

WriteArtifacts = Callable[[Path], None]
"""Writes the files to upload into an empty folder."""


def runs_page(uri: str, sweep: str) -> str:
    """Return where a sweep's runs are below a tracker's address, in the sweep's own view.

    MLflow's first page shows none of them, and its default columns none of their numbers. Empty where the tracker
    does not answer, or knows no such sweep; a local store that is not there is not made.
    """
    path = database_path(uri)
    if path is not None and not path.exists():
        return ""
    try:
        experiment = make_client(uri).get_experiment_by_name(sweep)
    except TRACKER_ERRORS:
        return ""
    if experiment is None:
        return ""
    view = f"&viewStateShareKey={KEY}" if TAG in experiment.tags else ""
    return f"/#/experiments/{experiment.experiment_id}/runs?workflowType=machine_learning{view}"


class Tracker:
    """A sweep's runs: one of its own, and one for each cell beside it, whose tag ``PARENT`` names the former.

    Every method raises ``TRACKER_ERRORS``.

    Attributes:
        known: the version that each cell's run shows (``run_fields.version``).
    """

    def __init__(self, uri: str, sweep: str, ledger: Path, began: Callable[[], int]):
        """Find or make the experiment and the parent run, and mark it running.

        Args:
            uri: the resolved address.
            sweep: name of the sweep, the experiment and the parent run.
            ledger: the storage root.
            began: when the sweep began, in milliseconds since 1970; asked only for a new parent.

        Raises:
            InvalidInput: the experiment was deleted on the tracker.
        """
        self._client = make_client(uri)
        self._uri = uri
        experiment = self._find_experiment(sweep, ledger)
        self._experiment = str(experiment.experiment_id)
        view = experiment.tags.get(TAG)
        self._columns = [] if view is None else view_metrics(view)
        self._parent = self._find_parent(sweep, ledger, began)
        self._remove_nested()
        self.known: dict[str, tuple[str, str]] = {}
        self._ended: int | None = None
        self.refresh()

    def write(self, run: CellRun, curve: RunCurve | None, attach: WriteArtifacts) -> None:
        """Bring a cell's run to what ``run`` says; what it shows already is not written again."""
        child = self._child(run)
        tags, shown = child.data.tags, child.data.metrics
        written = int(tags.get(WRITTEN, 0))
        # MLflow tells a metric's value at its last step.
        last = {point.key: point.value for point in run.points}
        # Of two values at one step it shows the one with the later time, so a correction needs a later one.
        points = [
            Metric(point.key, point.value, point.timestamp + written, point.step)
            for point in run.points
            if shown.get(point.key) != last[point.key]
        ]
        new_tags = dict(run.tags)
        if curve is not None and tags.get(CURVE_ID) != curve.id:
            points += [_metric(point) for point in curve.points]
            new_tags |= {CURVE: curve.note, CURVE_ID: curve.id}
        # A parameter cannot change; what can are names, when the sweep file renames a model.
        known = child.data.params
        new_tags |= {
            f"massive_sft.now.{key}": value for key, value in run.params.items() if known.get(key, value) != value
        }
        params = {key: value for key, value in run.params.items() if key not in known}
        identity = child.info.run_id
        for batch in _batches(points, params, new_tags):
            self._client.log_batch(identity, *batch)
        if child.info.run_name != run.name:
            self._client.update_run(identity, name=run.name)
        if run.mixture is not None and not (child.inputs and child.inputs.dataset_inputs):
            self._client.log_inputs(identity, datasets=[_dataset(run.mixture)])
        self._upload(identity, attach)
        self._client.set_terminated(identity, run.status, run.end)
        self._show(run.main)
        # Last: it says that all of the above is there.
        done = {RECORD: run.version[0], GAINS: run.version[1], WRITTEN: str(written + 1)}
        self._client.log_batch(identity, tags=[RunTag(key, value) for key, value in done.items()])
        self.known[run.cell] = run.version
        self._ended = max(self._ended or run.end, run.end)

    def attach(self, attach: WriteArtifacts) -> None:
        """Upload files to the parent run."""
        self._upload(self._parent, attach)

    def finish(self) -> None:
        """Mark the parent run finished: it ended when the last of its cells did, whenever that is mirrored."""
        self._client.set_terminated(self._parent, "FINISHED", self._ended)

    def refresh(self) -> None:
        """Learn what each cell's run shows, and remove second runs.

        There is one when a call that makes a run was given up and repeated, and then served after all. Of two the one
        that shows a record stays, else the one with the lower id.
        """
        by_cell: dict[str, Run] = {}
        for run in self._search({PARENT: self._parent}):
            cell = run.data.tags[CELL]
            kept, duplicate = sorted(
                (by_cell.get(cell, run), run), key=lambda run: (RECORD not in run.data.tags, _id(run))
            )
            by_cell[cell] = kept
            if _id(duplicate) != _id(kept):
                self._remove(duplicate)
        self.known = {
            cell: (run.data.tags.get(RECORD, ""), run.data.tags.get(GAINS, "")) for cell, run in by_cell.items()
        }
        self._ended = max((run.info.end_time for run in by_cell.values() if run.info.end_time), default=None)

    def _find_experiment(self, name: str, ledger: Path) -> Experiment:
        existing = self._client.get_experiment_by_name(name)
        if existing is None:
            path = database_path(self._uri)
            made = self._client.create_experiment(name, artifact_location=artifact_location(self._uri))
            log.info("made the experiment %s in %s", name, path or redact(self._uri))
            existing = self._client.get_experiment(made)
        if existing.lifecycle_stage != "active":
            remedy = f"`mlflow experiments restore -x {existing.experiment_id}`, or rename the sweep"
            rule = f"has this experiment in its trash: {remedy}"
            raise InvalidInput(Problem(PLACE, rule, name))
        note = f"A mirror of the ledger in `{ledger}`; its columns and charts are the view `{KEY}`."
        for key, value in (KIND | {NOTE: note}).items():
            if key not in existing.tags:
                self._client.set_experiment_tag(existing.experiment_id, key, value)
        return existing

    def _show(self, metrics: Sequence[str]) -> None:
        """Add columns to the sweep's view."""
        self._set_columns(list(dict.fromkeys([*(self._columns or ()), *metrics])))

    def _set_columns(self, columns: list[str]) -> None:
        """Let the sweep's view have these columns, unless somebody has made it their own."""
        if self._columns is None or columns == self._columns:
            return
        view = make_view(columns, round(time.time() * 1000))
        self._client.set_experiment_tag(self._experiment, TAG, view)
        self._columns = columns

    def _remove_nested(self) -> None:
        """Remove the runs that earlier versions wrote: in MLflow neither a metric nor a parameter can be renamed."""
        earlier = [run for run in self._search({NESTED: self._parent}) if CELL in run.data.tags]
        for run in earlier:
            self._client.delete_run(_id(run))
        if earlier:
            log.warning("%d runs of an earlier version are in the tracker's trash; they are written anew", len(earlier))

    def _remove(self, run: Run) -> None:
        log.warning("the tracker had a second run of %s; it is in its trash: %s", run.info.run_name, _id(run))
        self._client.delete_run(_id(run))

    def _find_parent(self, sweep: str, ledger: Path, began: Callable[[], int]) -> str:
        where = str(ledger)
        for run in self._parents(sweep):
            identity = _id(run)
            if run.data.tags.get("massive_sft.ledger") != where:
                log.warning(
                    "the tracker's runs of %s were written from another ledger, %s",
                    sweep,
                    run.data.tags.get("massive_sft.ledger"),
                )
                self._client.set_tag(identity, "massive_sft.ledger", where)
            self._client.update_run(identity, status="RUNNING")
            return identity
        tags = {
            SWEEP: sweep,
            "massive_sft.ledger": where,
            "mlflow.source.name": "massive-sft",
            NOTE: f"The sweep `{sweep}`: a mirror of the ledger in `{where}`.",
        }
        parent = self._client.create_run(self._experiment, start_time=began(), tags=tags, run_name=sweep)
        created: str = parent.info.run_id
        return created

    def _parents(self, sweep: str) -> list[Run]:
        """Return the parent run, if there is one; the second of two that were made by a repeated call is removed."""
        parents = sorted(self._search({SWEEP: sweep}), key=_id)
        if len(parents) < 2:
            return parents
        childless = [run for run in parents if not any(self._search({tag: _id(run)}) for tag in (PARENT, NESTED))]
        kept = next((run for run in parents if run not in childless), parents[0])
        for run in childless:
            if run is not kept:
                self._remove(run)
        return [kept]

    def _child(self, run: CellRun) -> Run:
        """Find or make the run of a cell. One with numbers that no longer hold is made anew: MLflow can remove a run,
        but no metric of it.
        """
        for existing in self._search({CELL: run.cell, PARENT: self._parent}):
            stale = stale_metrics(existing.data.metrics, run)
            if not stale:
                return existing
            log.info("%s has no %s any more: its run is in the trash, and written anew", run.name, ", ".join(stale))
            self._set_columns([name for name in self._columns or () if name not in stale])
            self._client.delete_run(_id(existing))
        # With the tags that find it again in the very call that makes it: a crash right after loses nothing.
        tags = {PARENT: self._parent, CELL: run.cell}
        return self._client.create_run(self._experiment, start_time=run.start, tags=tags, run_name=run.name)

    def _search(self, tags: Mapping[str, str]) -> Iterator[Run]:
        """Yield the runs with all of these tags, the oldest first."""
        query = " and ".join(f"tags.`{key}` = '{text}'" for key, text in tags.items())
        token = None
        while True:
            page: Any = self._client.search_runs(
                [self._experiment], query, max_results=1000, order_by=["attributes.start_time ASC"], page_token=token
            )
            yield from page
            token = page.token
            if not token:
                return

    def _upload(self, run: str, attach: WriteArtifacts) -> None:
        with tempfile.TemporaryDirectory(prefix="massive-sft-") as folder:
            attach(Path(folder))
            self._client.log_artifacts(run, folder)


def _id(run: Run) -> str:
    return str(run.info.run_id)


def _dataset(mixture: MixtureInput) -> DatasetInput:
    made = Dataset(mixture.name, mixture.digest, "massive-sft mixture", mixture.parts or mixture.name)
    return DatasetInput(made, tags=[InputTag("mlflow.data.context", "training")])


def _metric(point: Point) -> Metric:
    return Metric(point.key, point.value, point.timestamp, point.step)


def _batches(
    metrics: Sequence[Metric], params: Mapping[str, str], tags: Mapping[str, str]
) -> Iterator[tuple[list[Metric], list[Param], list[RunTag]]]:
    """Yield what fits into one call each."""
    all_params = [Param(key, value) for key, value in params.items()]
    all_tags = [RunTag(key, value) for key, value in tags.items()]
    calls = max(-(-len(metrics) // MAX_METRICS), -(-len(all_params) // MAX_NAMES), -(-len(all_tags) // MAX_NAMES))
    for call in range(calls):
        metric, name = call * MAX_METRICS, call * MAX_NAMES
        yield (
            list(metrics[metric : metric + MAX_METRICS]),
            all_params[name : name + MAX_NAMES],
            all_tags[name : name + MAX_NAMES],
        )
