"""The section that compares a sweep's scores with an imported table's rows of the same names."""

from __future__ import annotations

from typing import Any

import pandas as pd

from massive_sft.report.formatting import MISSING, format_number, is_missing
from massive_sft.report.html_table import Column, of_texts
from massive_sft.report.scores import ScoreData
from massive_sft.report.section import Section, TableBlock
from massive_sft.study import frames, tables
from massive_sft.study.comparison import compare_with_imported
from massive_sft.study.imported import ImportedLedger


def compare(data: ScoreData, table_ledger: ImportedLedger) -> pd.DataFrame:
    """Return the frame of ``study.comparison`` for a sweep's scores and an imported table."""
    imported = frames.tidy(record for record in table_ledger.records().values() if record is not None)
    return compare_with_imported(data.scores, imported, table_ledger.table.columns)


def comparison_section(data: ScoreData, table_ledger: ImportedLedger, frame: pd.DataFrame) -> Section:
    """Return the section on one imported table.

    Args:
        frame: of ``compare``.
    """
    scored = tables.primary_rows(data.scores)
    scored = scored[scored["value"].notna()]
    cells, columns = frame["cell"].nunique(), sorted(set(scored["column"]) - set(frame["column"]))
    name, file = table_ledger.table.name, table_ledger.table.file
    notes = [
        f"{cells:,} of {scored['cell'].nunique():,} scored cells have a row of the same model, mixture, size, method, "
        f"schedule and epoch in {name} ({file}), imported and not measured here. The names agree, what "
        "they stand for need not: a difference is no effect of anything."
    ]
    if columns:
        notes.append(f"Without a column of {name} beside them: {', '.join(columns)}.")
    head = [Column(name, "facet") for name in ("benchmark", "model", "mixture", "setting", "epoch", "seed")]
    head += [Column("ours", "number"), Column("95 % interval"), Column("imported", "number")]
    head += [Column("difference", "number"), Column("metrics"), Column("caution", "long")]
    table = of_texts(f"beside-{name}", f"Beside {name}", head, [_row(row) for row in frames.to_rows(frame)])
    return Section(f"beside-{name}", f"Beside {name}", notes, [TableBlock(table)])


def _benchmark(row: dict[str, Any]) -> str:
    own, theirs = str(row["column"]), str(row["imported_column"])
    return own if own == theirs else f"{theirs} ({own})"


def _row(row: dict[str, Any]) -> list[str]:
    base = row["method"] == frames.BASE
    setting = " ".join(text for text in (row["setting"], row["schedule"], row["variant"]) if not is_missing(text))
    ends = (format_number(row["own_low"], 2), format_number(row["own_high"], 2))
    caution = row["caution"] if is_missing(row["why"]) else f"{row['why']}; {row['caution']}"
    return [
        _benchmark(row),
        str(row["model"]),
        "base model" if base else f"{row['data']} {row['size']:,}",
        MISSING if base else setting.strip(),
        str(row["epoch"]),
        MISSING if is_missing(row["seed"]) else str(row["seed"]),
        format_number(row["own"], 2),
        MISSING if MISSING in ends else " to ".join(ends),
        format_number(row["imported"], 2),
        format_number(row["difference"], 2, signed=True),
        f"{row['metric']}, {row['imported_metric']}",
        str(caution),
    ]
