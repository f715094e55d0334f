"""Everything that a storage root, a sweep or an imported table has come to, as tidy pandas frames."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from massive_sft.core.errors import Corrupt, InvalidInput, Problem
from massive_sft.ledger.bucket_root import BucketRoot
from massive_sft.ledger.cell_ids import match_id
from massive_sft.ledger.record import Record
from massive_sft.ledger.store import Ledger
from massive_sft.planning.plan import Plan
from massive_sft.planning.requirements import named_templates
from massive_sft.planning.selection import parse_where, select_cells
from massive_sft.planning.snapshot_address import bucket_address
from massive_sft.search.plan import make_whole_plan
from massive_sft.study import file_frames, frames, tables
from massive_sft.study.asked import asked_records
from massive_sft.study.hyperparameters import hyperparameter_names, hyperparameters
from massive_sft.study.imported import is_imported, open_imported
from massive_sft.study.model_map import map_frame, model_maps
from massive_sft.study.paired_gains import SampleReader, with_paired_intervals
from massive_sft.study.ranking import rank_cells
from massive_sft.study.unscored import unscored_rows
from massive_sft.sweep.load import load_sweep
from massive_sft.sweep.paths import Paths, listed


@dataclass(frozen=True)
class Results:
    """Results as frames that join on ``cell`` (and ``trajectory``). What is missing is NaN or NA, never 0.

    Files are read when they are first asked for. One that is damaged counts as not there: it is warned of (by
    logging), and noted in ``ledger.corrupt``. The mixture that a model was tuned on is named ``mixture``.

    Attributes:
        ledger: where all of it lies, open for reading.
        records: the newest sound record of each cell that has one, by cell id.
        planned: the rows of ``cells`` for those that have none yet; empty where no sweep was named.
        content_of: returns what a cell's id is the hash of. Raises ``Corrupt``, FileNotFoundError.
        asked: the benchmarks that the sweep asks for, such as ``mmlu-5shot``; none where no sweep was named.
        templates: the names of the templates under which it asks for them, as of ``frames.tidy``.
        unscored: the rows of ``scores`` of what it asks for and no record has or names as missing.
        bases: the records of these cells' base models that were left out (``where``): gains are over them.
    """

    ledger: Ledger
    records: Mapping[str, Record]
    planned: pd.DataFrame
    content_of: Callable[[str], Mapping[str, Any]]
    asked: tuple[str, ...] = ()
    templates: Mapping[str, str] = field(default_factory=dict)
    unscored: pd.DataFrame = field(default_factory=lambda: frames.tidy(()))
    bases: Mapping[str, Record] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Return a line that says what is there; the records of a study would fill a notebook's page."""
        statuses = Counter(str(record.status) for record in self.records.values())
        statuses.update(["WAITING"] * len(self.planned))
        counts = ", ".join(f"{count:,} {status}" for status, count in statuses.items()) or "no cells"
        return f"<Results {counts}; {self.ledger.storage}>"

    @cached_property
    def cells(self) -> pd.DataFrame:
        """One row a cell: coordinates, status, measures, counts, training, then every hyperparameter.

        The columns of ``frames.CELLS``, and those of the settings as the sweep file names them: ``lr``, ``batch``,
        ``lora.rank``, ``optimizer.weight_decay``, ..., also of those that no cell has. A cell without a record has only
        coordinates, status and these.
        """
        recorded = frames.cell_frame(self.records.values())
        ends = [file_frames.end_losses(self.ledger, record) or (None, None) for record in self.records.values()]
        recorded[["first_loss", "last_loss"]] = pd.DataFrame(ends, columns=["first", "last"], dtype="float64")
        whole = pd.concat([recorded, self.planned], ignore_index=True) if len(self.planned) else recorded
        rows = [self._hyperparameters(cell) for cell in whole["cell"]]
        names = dict.fromkeys([*hyperparameter_names(), *(name for row in rows for name in row)])
        settings = pd.DataFrame(rows, whole.index, [name for name in names if name not in whole.columns])
        return tables.with_mixture(pd.concat([whole, settings.convert_dtypes()], axis=1))

    def _hyperparameters(self, cell: str) -> dict[str, Any]:
        try:
            return hyperparameters(self.content_of(cell))
        except FileNotFoundError:
            return {}
        except Corrupt as error:
            self.ledger.report_corrupt(self.ledger.cell_dir(cell) / "cell.json", str(error))
            return {}

    @cached_property
    def scores(self) -> pd.DataFrame:
        """One row per cell, benchmark, task or group, metric and filter: the columns of ``frames.SCORES``.

        ``primary`` marks the row that is the benchmark's score, and ``column`` names it. A benchmark without a score
        has a row without a value; ``missing`` says why.
        """
        return self._with_unscored(self.recorded_scores)

    @cached_property
    def recorded_scores(self) -> pd.DataFrame:
        """The rows of ``scores`` that records have, what they name as missing among them."""
        return tables.with_mixture(self._tidy[self._tidy["cell"].isin(list(self.records))])

    @cached_property
    def _tidy(self) -> pd.DataFrame:
        """Scores of all records, and of the base models that are left out."""
        return frames.tidy([*self.records.values(), *self.bases.values()], self.templates)

    @cached_property
    def gains(self) -> pd.DataFrame:
        """The trained cells' rows of ``scores`` beside their base model's: see ``tables.gains``, ``paired_gains``."""
        recorded = with_paired_intervals(tables.gains(self._tidy), self.reader)
        return self._with_unscored(tables.with_mixture(recorded))

    @cached_property
    def primary_gains(self) -> pd.DataFrame:
        """The rows of ``gains`` that are benchmarks' scores, had sooner than all: only their samples are read."""
        return tables.primary_rows(self._with_unscored(self.recorded_gains))

    @cached_property
    def recorded_gains(self) -> pd.DataFrame:
        """The rows of ``primary_gains`` that records have."""
        rows = tables.primary_rows(tables.gains(self._tidy))
        return tables.with_mixture(with_paired_intervals(rows, self.reader))

    def _with_unscored(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Return rows of scores, or of gains, with those that are not there yet behind them."""
        late = tables.with_mixture(self.unscored)
        if "gain" in rows.columns:
            late = late[late["method"] != frames.BASE].assign(why=tables.NO_SCORE)
        if late.empty:
            return rows
        whole = late.reindex(columns=rows.columns).astype(rows.dtypes)
        return pd.concat([rows, whole], ignore_index=True)

    @cached_property
    def reader(self) -> SampleReader:
        """Reads per-sample values, for pairs of cells."""
        return SampleReader(self.ledger, {**self.records, **self.bases})

    @cached_property
    def measures(self) -> pd.DataFrame:
        """One row per measured number: the columns of ``frames.measure_frame``."""
        return frames.measure_frame(self.records.values())

    @cached_property
    def model_map(self) -> pd.DataFrame:
        """One row per model and set of texts: ``texts``, ``cell`` and its place (``x``, ``y``) on the map."""
        return map_frame(model_maps(self.ledger, self.records.values()))

    @cached_property
    def layers(self) -> pd.DataFrame:
        """One row per cell and layer: ``cell``, ``layer`` (from 0) and its relative Frobenius ``change``."""
        return frames.layer_changes(self.records.values())

    @cached_property
    def losses(self) -> pd.DataFrame:
        """One row per training run and optimizer step: the columns of ``file_frames.LOSSES``.

        ``loss`` is in nats per trainable token, mean over the batch, before the update.
        """
        return file_frames.loss_frame(self.ledger, self.records.values())

    def best(self, metric: str | None = None) -> pd.DataFrame:
        """Rank each model's cells, best first, and say which cannot be told apart: see ``ranking.rank_cells``.

        Args:
            metric: a benchmark, or ``TASK/METRIC[,FILTER]``; every benchmark's own without.
        """
        return tables.with_mixture(rank_cells(self.ledger, self.records, metric, self.asked, self.templates))

    def samples(self, cells: str | Iterable[str] | None = None) -> pd.DataFrame:
        """Return per-sample values: see ``file_frames.sample_frame``.

        Args:
            cells: ids of the cells to read, or their beginnings, or one; all of them without. Cells without a record
                add nothing.

        Raises:
            InvalidInput: an id that no cell has, or a beginning that several have.
        """
        return file_frames.sample_frame(self.ledger, self._chosen(cells))

    def answers(self, cells: str | Iterable[str] | None = None) -> pd.DataFrame:
        """Return prompts, gold answers and the models' answers: see ``file_frames.answer_frame``.

        Args:
            cells, errors: as of ``samples``.
        """
        return file_frames.answer_frame(self.ledger, self._chosen(cells))

    def _chosen(self, cells: str | Iterable[str] | None) -> list[Record]:
        if cells is None:
            return list(self.records.values())
        known = list(dict.fromkeys([*self.records, *self.cells["cell"]]))
        wanted = dict.fromkeys(match_id(known, cell) for cell in ([cells] if isinstance(cells, str) else cells))
        return [self.records[cell] for cell in wanted if cell in self.records]


def load(source: str | Path, overlays: Paths = (), where: str | None = None) -> Results:
    """Open results.

    Args:
        source: a sweep file (its cells, under its names, with the scores that it asks for), a storage root, a folder or
            ``s3://BUCKET/PREFIX`` (all that lies there), or an imported table's ``table.json``.
        overlays: files merged over the sweep file, or one.
        where: only these cells of the sweep, as ``--where``.

    Raises:
        InvalidInput: the sweep file or ``where`` is wrong, or nothing was ever run into the storage root.
        Unsupported: a newer version of massive-sft wrote there.
    """
    path, merged = Path(source), listed(overlays)
    is_bucket = str(source).startswith("s3://")
    if is_bucket or path.is_dir() or is_imported(path):
        if merged or where is not None:
            raise InvalidInput(Problem(str(source), "overlays and where go with a sweep file"))
        if is_imported(path):
            imported = open_imported(path)
            ledger, records = imported.ledger, {cell: record for cell, record in imported.records().items() if record}
        else:
            root = BucketRoot.of(bucket_address(str(source), str(source))) if is_bucket else path
            ledger = Ledger.open(root, create=False, place=str(source))
            records = {record.cell: record for record in ledger.records()}
        return Results(ledger, records, frames.cell_frame(()), ledger.read_cell)
    selection = parse_where(where)
    whole = make_whole_plan(load_sweep(path, merged))
    return results_of(select_cells(whole, selection), whole)


def results_of(plan: Plan, whole: Plan | None = None) -> Results:
    """Return what a plan's cells have come to. Raises InvalidInput when nothing was ever run into its storage root.

    Args:
        whole: the plan that its cells were selected from.
    """
    ledger = plan.open_ledger(create=False)
    records, by_id = asked_records(plan, ledger), {item.cell.id: item for item in plan.cells}
    waiting = [
        {"cell": item.cell.id, "trajectory": item.cell.recipe.id if item.cell.recipe else None}
        | {"status": str(item.status), **item.cell.coordinates._asdict()}
        for item in plan.cells
        if item.cell.id not in records
    ]
    planned = pd.DataFrame(waiting, columns=list(frames.CELLS)).astype(frames.CELLS)
    asked = dict.fromkeys(item.label for cell in plan.cells for item in cell.requirements if item.is_benchmark)
    templates = named_templates(item for cell in plan.cells for item in cell.requirements)
    return Results(
        ledger,
        records,
        planned,
        lambda cell: by_id[cell].cell.content,
        tuple(asked),
        templates,
        unscored_rows(plan, records),
        asked_records(_bases_left_out(plan, whole), ledger) if whole else {},
    )


def _bases_left_out(plan: Plan, whole: Plan) -> Plan:
    """Return the plan of those base models of a plan's cells that the whole has and it has not."""
    there, models = {item.cell.id for item in plan.base}, {item.cell.coordinates.model for item in plan.cells}
    left_out = [item for item in whole.base if item.cell.coordinates.model in models and item.cell.id not in there]
    return replace(whole, runs=(), base=tuple(left_out))
