"""The data of a report: the records of a sweep's cells as frames, loss curves, and everything unsound."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from massive_sft.core.errors import Corrupt
from massive_sft.core.wording import counted
from massive_sft.ledger.loss_curve import curve_file, read_steps
from massive_sft.ledger.record import Record, Status
from massive_sft.ledger.store import Ledger
from massive_sft.planning.plan import CellPlan, Plan
from massive_sft.planning.requirements import find_unmet
from massive_sft.study import contrasts, correlate, frames, tables
from massive_sft.study.findings import Finding, collect_findings
from massive_sft.study.model_map import ModelMap, model_maps
from massive_sft.study.paired_gains import with_paired_intervals
from massive_sft.study.results import Results
from massive_sft.sweep.cell import mixture_label

CURVE_POINTS = 100  # of a drawn loss curve


@dataclass(frozen=True)
class ThinnedCurve:
    """A loss curve, thinned.

    Attributes:
        points: (epochs, nats per token), each the mean of ``steps`` steps.
        first, last: the loss at its first and last step.
    """

    points: list[tuple[float, float]]
    steps: int
    first: float
    last: float


@dataclass(frozen=True)
class ReportData:
    """Everything that the sections of a report draw from.

    Attributes:
        records: newest sound record by cell id, with only the scores that the sweep asks for.
        statuses: status by cell id, as the ledger has it now (the plan may be older).
        planned: one row per trained cell that the sweep asks for, recorded or not.
        cells, scores, gains: of ``study``, of the gains those of benchmarks; ``mixture_label`` and ``setting_label``
            added.
        lora_less_full, with_less_without: of ``contrasts.differences``, with the ``asked_seeds`` of each: of how many
            seeds the sweep asks for both cells, at whichever epoch.
        points: of ``correlate.points``.
        layers: of ``frames.layer_changes``, with the bf16 ``floor`` of each layer where it is known.
        maps: of ``model_map.model_maps``.
        curves: loss curve by trajectory id.
        began: when the first work on any of the recorded cells began, ISO 8601, UTC; empty without a record.
        findings: what to warn of, the gravest first.
        columns: the benchmarks' columns, in the order in which the sweep asks for them.
    """

    plan: Plan
    records: Mapping[str, Record]
    statuses: Mapping[str, Status]
    planned: pd.DataFrame
    cells: pd.DataFrame
    scores: pd.DataFrame
    gains: pd.DataFrame
    lora_less_full: pd.DataFrame
    with_less_without: pd.DataFrame
    points: pd.DataFrame
    layers: pd.DataFrame
    maps: Sequence[ModelMap]
    curves: Mapping[str, ThinnedCurve]
    began: str
    findings: tuple[Finding, ...]
    columns: tuple[str, ...]

    @property
    def trainings(self) -> pd.DataFrame:
        """The rows of ``cells`` at each run's last epoch whose training is told: not of a failure."""
        return frames.last_epochs(self.cells[self.cells["steps"].notna()])


def read_report_data(plan: Plan, results: Results) -> ReportData:
    """Return what a plan's results come to, with their curves. An unsound file is a finding, never an error."""
    warned: list[Finding] = []
    ledger, records = results.ledger, results.records
    cells, scores = frames.cell_frame(records.values()), tables.with_data(results.recorded_scores)
    gains = tables.with_data(results.recorded_gains)
    curves = _curves(plan, ledger, records.values(), warned)
    layers = _layers(ledger, records.values(), warned)
    maps = model_maps(ledger, records.values())
    began = min((_began(ledger, record) for record in records.values()), default="")
    warned += [Finding("damaged", error, ()) for error in ledger.corrupt.values()]
    warned += [Finding("missing", str(problem), ()) for problem in plan.missing]
    warned += [Finding("provisional", str(problem), ()) for problem in plan.unpinned]
    warned += [Finding("plan", str(problem), ()) for problem in plan.warnings]
    statuses = {
        item.cell.id: records[item.cell.id].status if item.cell.id in records else _unrecorded(item)
        for item in plan.cells
    }
    warned += [*_lacking(plan, records), *_waiting(statuses)]
    planned = _planned(plan, records, statuses)
    left_out = _left_out(plan)
    schedules = len(planned[["schedule", "horizon"]].drop_duplicates()) > 1

    def compared(pair: Callable[[pd.DataFrame], list[contrasts.Pair]]) -> pd.DataFrame:
        found = with_paired_intervals(contrasts.differences(scores, pair(cells)), results.reader)
        return add_labels(_with_asked_seeds(found, planned, pair(planned)), schedules)

    return ReportData(
        plan=plan,
        records=records,
        statuses=statuses,
        planned=add_labels(planned, schedules),
        cells=add_labels(cells, schedules),
        scores=add_labels(scores, schedules),
        gains=add_labels(gains, schedules),
        lora_less_full=compared(contrasts.lora_less_full),
        with_less_without=compared(lambda cells: contrasts.with_less_without(cells, left_out)),
        points=add_labels(correlate.points(cells, gains), schedules),
        layers=layers,
        maps=maps,
        curves=curves,
        began=began,
        findings=(*collect_findings(cells, scores, gains), *warned),
        columns=_columns(plan, scores),
    )


def _with_asked_seeds(found: pd.DataFrame, planned: pd.DataFrame, pairs: list[contrasts.Pair]) -> pd.DataFrame:
    """Add to differences of pairs of recorded cells how many there are to be, by those of ``planned`` cells."""
    names = [name for name in frames.CONDITION if name != "epoch"]
    wanted = pd.DataFrame(pairs, columns=["cell", "base_cell", "about"], dtype="string").merge(planned, on="cell")
    seeds = wanted.groupby([*names, "about"], dropna=False)["seed"].nunique().rename("asked_seeds")
    return found.merge(seeds.reset_index(), on=[*names, "about"], how="left")


def _began(ledger: Ledger, record: Record) -> str:
    """Return when the work on a cell first began: later records of it may have added scores alone."""
    return min((earlier.created for earlier in ledger.history(record.cell)), default=record.created)


def _left_out(plan: Plan) -> list[tuple[contrasts.MixtureKey, contrasts.MixtureKey, str]]:
    """Return the mixtures of which ``leave_one_out`` leaves out a dataset, what then is left, and that dataset.

    What is left may have another name in the sweep, too, and its cells that one: all less a of a and b is b.
    """
    mixtures, entries = plan.sweep.mixtures, plan.sweep.file.mixtures.entries
    named = [mixture for group in mixtures.values() for mixture in group]
    found = (
        (whole.key, alike.key, part.name)
        for name, entry in entries.items()
        for whole in mixtures.get(entry.leave_one_out or "", ())
        for part, lesser in zip(whole.parts, mixtures[name], strict=True)
        for alike in named
        if (alike.parts, alike.sample_seed) == (lesser.parts, lesser.sample_seed)
    )
    return list(dict.fromkeys(found))  # two entries may leave one out of the same mixture


def _columns(plan: Plan, scores: pd.DataFrame) -> tuple[str, ...]:
    asked = dict.fromkeys(asked.id for item in plan.cells for asked in item.requirements)
    order = {name: index for index, name in enumerate(asked)}
    rows = tables.primary_rows(scores)
    rank = rows["asked"].map(order).groupby(rows["column"], sort=False).min().sort_values(kind="stable")
    return tuple(map(str, rank.index))


def _lacking(plan: Plan, records: Mapping[str, Record]) -> list[Finding]:
    """Find what cells do not have yet, because the sweep asks for more than when they were recorded."""
    cells: dict[str, list[str]] = {}
    for item in plan.cells:
        record = records.get(item.cell.id)
        if record is not None and record.status is Status.PARTIAL:
            unmet = find_unmet(item.requirements, record.status, record.answers)
            lacking = [asked.label for asked in unmet if asked.label not in record.missing]
            if lacking:
                cells.setdefault(", ".join(lacking), []).append(item.cell.id)
    tail = "; the next run adds it, and scores made in another way are not shown"
    return [
        Finding("to do", f"{counted(len(ids), 'cell')} without {what} as the sweep asks for it now{tail}", tuple(ids))
        for what, ids in cells.items()
    ]


def _unrecorded(item: CellPlan) -> Status:
    return Status.RUNNING if item.status is Status.RUNNING else Status.WAITING


def _waiting(statuses: Mapping[str, Status]) -> list[Finding]:
    warned = []
    for status in (Status.WAITING, Status.RUNNING):
        ids = tuple(cell for cell, now in statuses.items() if now is status)
        if ids:
            text = f"{len(ids)} of {counted(len(statuses), 'cell')} {status}: not in this report"
            warned.append(Finding("to do", text, ids))
    return warned


def _planned(plan: Plan, records: Mapping[str, Record], statuses: Mapping[str, Status]) -> pd.DataFrame:
    """Return one row per trained cell of the plan, recorded or not."""
    rows = [
        {"cell": item.cell.id, "trajectory": run.trajectory.id, "status": str(statuses[item.cell.id])}
        | {"error": records[item.cell.id].error if item.cell.id in records else None}
        | item.cell.coordinates._asdict()
        for run in plan.runs
        for item in run.cells
    ]
    names = ["cell", "trajectory", "status", "error", *frames.COORDINATES]
    return pd.DataFrame(rows, columns=names).astype({name: frames.CELLS[name] for name in names})


def add_labels(frame: pd.DataFrame, schedules: bool) -> pd.DataFrame:
    """Add ``mixture_label`` (``gsm8k[1000]``), ``setting_label`` (name, variant; the schedule with ``schedules``)."""
    named = zip(frame["data"], frame["size"], strict=True)
    labels = [mixture_label(name, None if pd.isna(size) else int(size)) for name, size in named]
    mixture = pd.Series(labels, index=frame.index, dtype="string")
    schedule = frame["schedule"].str.cat(frame["horizon"].astype("string").radd("/").fillna(""))
    setting = frame["setting"].str.cat(" " + schedule) if schedules else frame["setting"]
    return frame.assign(
        mixture_label=mixture.mask(frame["method"] == frames.BASE, "base model"),
        setting_label=setting.str.cat((" " + frame["variant"].fillna("")).str.rstrip()),
    )


def _curves(plan: Plan, ledger: Ledger, records: Iterable[Record], warned: list[Finding]) -> dict[str, ThinnedCurve]:
    """Read the loss curve that each trajectory's last recorded epoch rests on; one that does not parse is a finding."""
    per_epoch = {run.trajectory.id: run.steps_per_epoch for run in plan.runs}
    last: dict[str, tuple[Record, str]] = {}
    for record in sorted(records, key=lambda record: int(record.coordinates["epoch"] or 0)):
        name = curve_file(record)
        if record.trajectory and name is not None:
            last[record.trajectory] = (record, name)
    curves = {}
    for trajectory, (record, name) in last.items():
        try:
            curves[trajectory] = read_curve(ledger.verified_file(record, name), per_epoch.get(trajectory))
        except (Corrupt, ValueError, OSError) as error:
            warned.append(Finding("damaged", f"{ledger.root / name}: is no loss curve ({error})", ()))
    return curves


def read_curve(path: Path, per_epoch: int | None = None) -> ThinnedCurve:
    """Read and thin a ``losses.jsonl``; a step whose loss is not finite breaks the curve.

    Args:
        path: the file.
        per_epoch: optimizer steps of an epoch; where nobody knows, the first epoch counts as taken to its end.

    Raises:
        ValueError: it is none.
    """
    steps = list(read_steps(path))
    if not steps:
        raise ValueError("empty")
    per_epoch = per_epoch or sum(step.epoch == 1 for step in steps) or len(steps)
    losses = [step.loss for step in steps]
    size = math.ceil(len(losses) / CURVE_POINTS)
    points = []
    for start in range(0, len(losses), size):
        window = losses[start : start + size]
        mean = math.fsum(window) / len(window) if all(map(math.isfinite, window)) else math.nan
        points.append(((start + (len(window) + 1) / 2) / per_epoch, mean))
    return ThinnedCurve(points, size, losses[0], losses[-1])


def _layers(ledger: Ledger, records: Iterable[Record], warned: list[Finding]) -> pd.DataFrame:
    by_cell = {record.cell: record for record in records}
    layers = frames.layer_changes(by_cell.values())
    floors = []
    for cell in layers["cell"].unique():
        name = f"cells/{cell}/layers.parquet"
        try:
            path = ledger.verified_file(by_cell[cell], name)
            tensors = pq.read_table(path, columns=["layer", "base_norm", "rounding_floor"])
        except (Corrupt, KeyError, OSError, ValueError) as error:
            warned.append(Finding("damaged", f"{ledger.root / name}: cannot be read ({error})", (cell,)))
            continue
        floors += [(cell, layer, floor) for layer, floor in rounding_floors(tensors).items()]
    if not floors:
        return layers.assign(floor=math.nan)
    known = pd.DataFrame(floors, columns=["cell", "layer", "floor"]).astype({"cell": "string", "layer": "int64"})
    return layers.merge(known, on=["cell", "layer"], how="left")


def rounding_floors(tensors: pa.Table) -> dict[int, float]:
    """Return, by layer, the relative change that rounding alone makes to its weights taken as one.

    Args:
        tensors: ``layer`` (null outside the stack), ``base_norm`` and ``rounding_floor`` (relative) of each weight.
    """
    sums: dict[int, tuple[float, float]] = {}
    for layer, norm, floor in zip(*(tensors[name].to_pylist() for name in tensors.column_names), strict=True):
        if layer is not None:
            rounding, start = sums.get(layer, (0.0, 0.0))
            sums[layer] = (rounding + (floor * norm) ** 2, start + norm**2)
    return {layer: math.sqrt(rounding / start) for layer, (rounding, start) in sums.items() if start}
