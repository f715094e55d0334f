"""The report of an imported table: the sections of a sweep's report that rest on scores alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from massive_sft.core.files import write_bytes
from massive_sft.ledger.record import Record, Status
from massive_sft.report import overview, scores
from massive_sft.report.report_data import add_labels
from massive_sft.report.section import FactBlock, Section
from massive_sft.report.write import PAGE, page
from massive_sft.study import frames, tables
from massive_sft.study.findings import Finding, collect_findings
from massive_sft.study.imported import Imported, ImportedLedger, approximation_note


@dataclass(frozen=True)
class ImportedReportData:
    """What the sections draw from, as ``report_data.ReportData`` has it for a sweep.

    Attributes:
        records: newest sound record of each row's cell that has one, in the table's order.
    """

    table: Imported
    records: tuple[Record, ...]
    planned: pd.DataFrame
    cells: pd.DataFrame
    scores: pd.DataFrame
    gains: pd.DataFrame
    findings: tuple[Finding, ...]
    columns: tuple[str, ...]

    @property
    def statuses(self) -> list[tuple[str, int]]:
        """How many rows have each status, those that occur."""
        counts = Counter(record.status for record in self.records)
        return [(str(status), counts[status]) for status in Status if counts[status]]


def read_imported_data(table_ledger: ImportedLedger) -> ImportedReportData:
    """Read what the ledger holds of an imported table, and find what to warn of: copied cells, then what is missing.

    Raises Unsupported when a newer version of massive-sft wrote a record.
    """
    recorded = table_ledger.records()
    records = tuple(record for record in recorded.values() if record is not None)
    cells, tidy = frames.cell_frame(records), frames.tidy(records)
    gains = tables.gains(tidy)
    warned = collect_findings(cells, tidy, gains)
    warned += [Finding("damaged", error, ()) for error in table_ledger.ledger.corrupt.values()]
    if len(records) < len(recorded):
        absent = tuple(cell for cell, record in recorded.items() if record is None)
        warned.append(
            Finding("to do", f"{len(absent)} rows have no record: import {table_ledger.table.file} again", absent)
        )
    trained = cells[cells["method"] != frames.BASE]
    schedules = trained["schedule"].nunique() > 1
    order = {name: index for index, name in enumerate(table_ledger.table.columns)}
    columns = sorted(tables.primary_rows(tidy)["column"].dropna().unique(), key=lambda name: order[str(name)])
    return ImportedReportData(
        table=table_ledger.table,
        records=records,
        planned=add_labels(trained, schedules),
        cells=cells,
        scores=add_labels(tidy, schedules),
        gains=add_labels(gains, schedules),
        findings=tuple(warned),
        columns=tuple(map(str, columns)),
    )


def write_imported_report(data: ImportedReportData, out: Path) -> Path:
    """Write ``report.html``, ``table.csv``, ``table.parquet`` and ``scores.parquet`` into ``out``; return the page.

    Raises OSError when ``out`` cannot be written.
    """
    table = tables.release_table(data.cells, data.scores)
    write_bytes(out / "table.csv", tables.to_csv(table))
    write_bytes(out / "table.parquet", tables.to_parquet(table))
    labels = ["mixture_label", "setting_label"]
    write_bytes(out / "scores.parquet", tables.to_parquet(tables.with_mixture(data.scores.drop(columns=labels))))
    shown = bool(data.scores["column"].notna().any())
    sections = [
        overview.warnings_section(data.findings),
        _what(data.table),
        scores.heatmap_section(data) if shown else None,
        scores.scores_section(data) if shown else None,
        scores.epochs_section(data) if shown else None,
    ]
    kept = [section for section in sections if section is not None]
    written = page(data.table.name, _head(data.table, data.cells), data.statuses, kept)
    write_bytes(out / PAGE, written.encode())
    return out / PAGE


def _head(table: Imported, cells: pd.DataFrame) -> list[tuple[str, str]]:
    runs = frames.last_epochs(cells).drop_duplicates("trajectory")
    return [
        ("Cells", f"{len(table.cells):,}"),
        ("Training runs", f"{len(runs):,}"),
        ("Benchmarks", f"{len(table.columns):,}"),
        ("Imported", table.when[:16].replace("T", "\N{NO-BREAK SPACE}")),
    ]


def _what(table: Imported) -> Section:
    """Return where the table came from, what its columns hold, and what it does not say."""
    scales: dict[str, list[str]] = {}
    for name, column in table.columns.items():
        scales.setdefault(column.scale, []).append(f"{name} ({column.metric})")
    facts = [("File", table.file), ("SHA-256", table.sha256)]
    facts += [(scale.capitalize(), ", ".join(names)) for scale, names in scales.items()]
    facts += [("Trained rows", approximation_note("lora")), ("Base rows", approximation_note("none"))]
    note = (
        "These numbers were imported, not measured here. Rows of equal names but for the epoch are taken for snapshots "
        "of one training run. There are no intervals: the table has no per-sample values, and no seed was repeated."
    )
    return Section("imported", "What was imported", [note], [FactBlock(facts)])
