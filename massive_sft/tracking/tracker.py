"""One sweep's runs on an MLflow store: found again or made, written in batches."""

from __future__ import annotations

import logging
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag

from massive_sft.ledger.provenance import redact
from massive_sft.search.tags import SEARCH_TAGS
from massive_sft.tracking.address import database_path
from massive_sft.tracking.client import TRACKER_ERRORS, is_outage, make_client
from massive_sft.tracking.curve import RunCurve
from massive_sft.tracking.run_fields import (
    CELL,
    CURVE,
    GAINS,
    RECORD,
    CellRun,
    MixtureInput,
    Point,
    stale_metrics,
)
from massive_sft.tracking.shown import Shown, ShownCell
from massive_sft.tracking.source import readable
from massive_sft.tracking.sweep_run import (
    NESTED,
    PARENT,
    Origin,
    find_experiment,
    find_parent,
    remove_second,
    run_id,
    search,
)
from massive_sft.tracking.view import KEY, TAG, make_view, view_columns

log = logging.getLogger(__name__)

# MLflow takes 1,000 entities a call, of which 100 parameters and 100 tags, in one megabyte.
MAX_METRICS, MAX_NAMES = 800, 100
CURVE_WHOLE = f"{CURVE}_whole"
"""Of a cell's run: the curve that it has to the last point. Earlier versions did not say so, and may have lost some."""
ARTIFACTS = "massive_sft.artifacts"
"""Of a cell's run: which of its files are missing, and why; not there when all are."""
TOKEN = "massive_sft.reading"
"""Of the sweep's run: names the reading after which whoever writes has noted down what is shown (``Shown.token``)."""
UPLOAD = ".mirror-upload-"  # begins the names of folders for what is being uploaded

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

    Every method raises ``TRACKER_ERRORS``, and ``Unreadable`` where the files to upload cannot be written.

    Attributes:
        shown: what each cell's run shows; empty until ``recall`` or ``refresh``.
        elsewhere: the storage roots of other ledgers that have runs of this sweep's name here; empty where none has.
    """

    def __init__(self, uri: str, origin: Origin, began: Callable[[], int], shown: Shown, folder: Path):
        """Find or make the experiment and the parent run, and mark it running.

        Args:
            uri: the resolved address.
            origin: the sweep.
            began: when the sweep began, in milliseconds since 1970; asked only for a new parent.
            shown: what was noted down before.
            folder: where files lie while they are uploaded; what a killed process left of them there is removed. One
                mirrors the sweep at a time.

        Raises:
            InvalidInput: the experiment was deleted on the tracker, or its artifacts cannot be written from here.
        """
        self.shown = shown
        self._client = make_client(uri)
        experiment = find_experiment(self._client, uri, origin)
        self._experiment = str(experiment.experiment_id)
        view = experiment.tags.get(TAG)
        self._columns: list[str] | None = []  # None where somebody has made the view their own
        self._tags: list[str] = []
        if view is not None:
            self._columns, self._tags = view_columns(view) or (None, [])
        self._parent, self.elsewhere = find_parent(self._client, uri, self._experiment, origin, began)
        self._told: set[str] = set()
        self._folder = folder
        for left in folder.glob(f"{UPLOAD}*"):
            shutil.rmtree(left, ignore_errors=True)

    def recall(self) -> None:
        """Learn what each cell's run shows: as noted down where the tracker bears that out, else from all its runs.

        A run that somebody removed on the tracker by hand is missed by the latter alone.
        """
        self.shown.load()
        if not self._bears_out():
            self.refresh()

    def write(self, run: CellRun, curve: RunCurve | None, attach: WriteArtifacts) -> None:
        """Bring a cell's run to what ``run`` says; what it shows already is not written again.

        A file that is refused (too large for a proxy, no permission) is missing there, and the run says so.
        """
        child = self._child(run, curve)
        tags, shown = child.data.tags, child.data.metrics
        # MLflow tells a metric's value at its last step.
        last = {point.key: point.value for point in run.points}
        # Of two values at one step it shows the one with the later time, so a correction needs a later one: also of
        # the first in a second, and of one that was made while the clock was ahead.
        times = {metric.key: metric.timestamp for metric in child.data.to_proto().metrics}
        points = [
            _metric(point, max(point.timestamp, times.get(point.key, 0) + 1))
            for point in run.points
            if shown.get(point.key) != last[point.key]
        ]
        new_tags, whole = dict(run.tags), {}
        if curve is not None and tags.get(CURVE_WHOLE) != curve.id:
            points += [_metric(point, point.timestamp) for point in curve.points]
            whole = {CURVE: curve.note, CURVE_WHOLE: curve.id}  # only once all calls have been answered
        # A parameter cannot change; what can are names, when the sweep file renames a model.
        known = child.data.params
        new_tags |= {
            f"massive_sft.now.{key}": value for key, value in run.params.items() if known.get(key, value) != value
        }
        params = {key: value for key, value in run.params.items() if key not in known}
        identity = run_id(child)
        for batch in _batches(points, params, new_tags):
            self._client.log_batch(identity, *batch)
        if child.info.run_name != run.name:
            self._client.update_run(identity, name=run.name)
        if run.mixture is not None and not (child.inputs and child.inputs.dataset_inputs):
            self._client.log_inputs(identity, datasets=[_dataset(run.mixture)])
        # A run's start cannot change: of a cell that was scored again the duration is its own, not the time between.
        self._client.set_terminated(identity, run.status, child.info.start_time + run.end - run.start)
        self._show(run.main, [tag for tag in SEARCH_TAGS if tag in run.tags])
        self._upload_what_is_taken(child, attach)  # after the numbers, which need no place for files
        # Last: it says that all of the above is there.
        done = whole | {RECORD: run.version[0], GAINS: run.version[1]}
        self._client.log_batch(identity, tags=[RunTag(key, value) for key, value in done.items()])
        self.shown.wrote(run.cell, ShownCell(identity, run.version, run.end))

    def attach(self, attach: WriteArtifacts) -> None:
        """Upload files to the parent run."""
        with self._written(attach) as folder:
            self._client.log_artifacts(run_id(self._parent), str(folder))

    def finish(self) -> None:
        """Mark the parent run finished: it ended when the last of its cells did, whenever that is mirrored."""
        ended = max((cell.end for cell in self.shown.cells.values()), default=None)
        self._client.set_terminated(run_id(self._parent), "FINISHED", ended)

    def refresh(self) -> None:
        """Learn what each cell's run shows from all its runs, and remove second ones."""
        self._remove_nested()
        by_cell: dict[str, Run] = {}
        for run in self._search({PARENT: run_id(self._parent)}):
            cell = run.data.tags.get(CELL)
            if cell is None:  # somebody removed the tag, and nothing tells whose run it is
                continue
            by_cell[cell] = self._only([by_cell[cell], run] if cell in by_cell else [run])
        token = secrets.token_hex(8)
        self._client.set_tag(run_id(self._parent), TOKEN, token)
        whole = {cell: _shown(run) for cell, run in by_cell.items() if _is_whole(run)}
        self.shown.reset(run_id(self._parent), token, whole)

    def look_again(self, cell: str) -> None:
        """Remove a cell's second run, if there is one: of a call that was repeated, and then served twice after all."""
        self._run_of(cell)

    def _bears_out(self) -> bool:
        """Whether the tracker shows what was noted down last, and so all that was noted down before."""
        if self.shown.parent != run_id(self._parent) or self.shown.token != self._parent.data.tags.get(TOKEN):
            return False
        last = self.shown.last
        if last is None:
            return True
        known = self.shown.cells[last]
        found = self._search({CELL: last, PARENT: run_id(self._parent)})
        return any(run_id(run) == known.run and _version(run) == known.version for run in found)

    def _show(self, metrics: Sequence[str], tags: Sequence[str]) -> None:
        """Add columns to the sweep's view."""
        shown = [tag for tag in SEARCH_TAGS if tag in self._tags or tag in tags]
        self._set_columns(list(dict.fromkeys([*(self._columns or ()), *metrics])), shown)

    def _set_columns(self, metrics: list[str], tags: list[str]) -> None:
        """Let the sweep's view have these columns, unless somebody has made it their own."""
        if self._columns is None or (metrics, tags) == (self._columns, self._tags):
            return
        view = make_view(metrics, round(time.time() * 1000), tags)
        self._client.set_experiment_tag(self._experiment, TAG, view)
        self._columns, self._tags = metrics, tags

    def _remove_nested(self) -> None:
        """Remove the runs that earlier versions wrote: in MLflow neither a metric nor a parameter can be renamed."""
        earlier = [run for run in self._search({NESTED: run_id(self._parent)}) if CELL in run.data.tags]
        for run in earlier:
            self._client.delete_run(run_id(run))
        if earlier:
            log.warning("%d runs of an earlier version are in the tracker's trash; they are written anew", len(earlier))

    def _child(self, run: CellRun, curve: RunCurve | None) -> Run:
        """Find or make the run of a cell. One with numbers that no longer hold is made anew, or with another curve, and
        a failed one where the cell was made again: MLflow can remove a run, but no metric of it and no point of a
        curve, and cannot change when it began.
        """
        existing = self._run_of(run.cell)
        if existing is not None:
            stale = stale_metrics(existing.data.metrics, run)
            is_made_again = existing.info.status == "FAILED" and existing.info.start_time != run.start
            is_redrawn = curve is not None and existing.data.tags.get(CURVE_WHOLE, curve.id) != curve.id
            if not (stale or is_made_again or is_redrawn):
                return existing
            why = "was made again since it failed" if is_made_again else "has another loss curve"
            why = f"has no {', '.join(stale)} any more" if stale else why
            log.info("%s %s: its run is in the trash, and written anew", run.name, why)
            self._set_columns([name for name in self._columns or () if name not in stale], self._tags)
            self._client.delete_run(run_id(existing))
        # With the tags that find it again in the very call that makes it: a crash right after loses nothing.
        tags = {PARENT: run_id(self._parent), CELL: run.cell}
        return self._client.create_run(self._experiment, start_time=run.start, tags=tags, run_name=run.name)

    def _run_of(self, cell: str) -> Run | None:
        """Return the one run of a cell, or None."""
        runs = list(self._search({CELL: cell, PARENT: run_id(self._parent)}))
        return self._only(runs) if runs else None

    def _only(self, runs: Sequence[Run]) -> Run:
        """Return the run of a cell, and remove second ones.

        There is one when a call that makes a run was given up and repeated, and then served after all. Of two the one
        that shows a record stays, else the one with the lower id.
        """
        kept, *others = sorted(runs, key=lambda run: (RECORD not in run.data.tags, run_id(run)))
        for run in others:
            remove_second(self._client, run)
        return kept

    def _search(self, tags: Mapping[str, str]) -> Iterator[Run]:
        return search(self._client, self._experiment, tags)

    def _upload_what_is_taken(self, run: Run, attach: WriteArtifacts) -> None:
        """Upload a cell's files, each by itself; tag the run with those that are refused, and why."""
        refused = []
        with self._written(attach) as folder:
            for path in sorted(folder.iterdir()):
                try:
                    self._client.log_artifact(run_id(run), str(path))
                except Exception as error:  # a bucket's client raises what it likes
                    if is_outage(error):
                        raise
                    refused.append(f"{path.name} ({shorten(error)})")
                    self._tell(path.name, error)
        if refused:
            self._client.set_tag(run_id(run), ARTIFACTS, f"missing: {', '.join(refused)}"[:1000])
        elif ARTIFACTS in run.data.tags:
            self._client.delete_tag(run_id(run), ARTIFACTS)

    @contextmanager
    def _written(self, attach: WriteArtifacts) -> Iterator[Path]:
        """Write the files to upload into a folder that is gone afterwards. Raises ``Unreadable``."""
        with ExitStack() as held:
            with readable("what is uploaded of it"):
                self._folder.mkdir(parents=True, exist_ok=True)
                folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix=UPLOAD, dir=self._folder)))
                attach(folder)
            yield folder

    def _tell(self, name: str, error: Exception) -> None:
        """Warn of a file that is refused: once for all cells."""
        if name not in self._told:
            log.warning("%s cannot be uploaded (%s); runs without it say so: %s", name, shorten(error), ARTIFACTS)
        self._told.add(name)


def shorten(error: Exception) -> str:
    """Return an error's first line without secrets; of a long one both ends, for what it comes from stands last."""
    line = redact(str(error) or type(error).__name__).partition("\n")[0]
    return line if len(line) <= 300 else f"{line[:140]} ... {line[-155:]}"


def _is_whole(run: Run) -> bool:
    """Whether a cell's run has its numbers, all of its files and its whole curve; else it is written again."""
    tags = run.data.tags
    return RECORD in tags and ARTIFACTS not in tags and (CURVE not in tags or CURVE_WHOLE in tags)


def _version(run: Run) -> tuple[str, str]:
    return run.data.tags.get(RECORD, ""), run.data.tags.get(GAINS, "")


def _shown(run: Run) -> ShownCell:
    return ShownCell(run_id(run), _version(run), run.info.end_time or 0)


def _dataset(mixture: MixtureInput) -> DatasetInput:
    made = Dataset(mixture.name, mixture.digest, "massive-sft mixture", mixture.parts or mixture.name)
    return DatasetInput(made, tags=[InputTag("mlflow.data.context", "training")])


def _metric(point: Point, time: int) -> Metric:
    return Metric(point.key, point.value, time, point.step)


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
