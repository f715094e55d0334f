"""Writes a sweep's report: one HTML file that needs no network, and its tables beside it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from massive_sft.core.files import write_bytes
from massive_sft.planning.outcome import find_remedies
from massive_sft.planning.plan import Plan
from massive_sft.report import comparison, overview, relations, scores
from massive_sft.report.differences import differences_section
from massive_sft.report.model_map import model_map_section
from massive_sft.report.report_data import ReportData, read_report_data
from massive_sft.report.searches import searches_section
from massive_sft.report.section import Section
from massive_sft.report.source import META, PAGE, source_of
from massive_sft.study import tables
from massive_sft.study.hyperparameters import hyperparameters
from massive_sft.study.imported import ImportedLedger
from massive_sft.study.results import Results
from massive_sft.study.text_sets import text_set_frame


def write_report(plan: Plan, results: Results, out: Path, imported: Sequence[ImportedLedger] = ()) -> Path:
    """Write ``report.html``, ``table.csv``, ``table.parquet`` and ``scores.parquet`` into ``out`` and return the page.

    Works on any state of a sweep: what is not there yet is listed as missing. ``table`` is one row a cell in the
    released table's conventions, then its learning rate, batch, measures and gains; ``scores`` every metric of every
    task with its interval (``study.frames.tidy``). Imported tables whose rows are to stand beside the sweep's cells
    add a section and a ``beside-<name>.csv`` each.

    Args:
        plan: of the sweep.
        results: of ``results_of`` of that plan.
        out: folder; made where it is not there.
        imported: tables to stand beside.

    Raises:
        OSError: ``out`` cannot be written.
    """
    data = read_report_data(plan, results)
    table = tables.release_table(data.cells, data.scores)
    texts = text_set_frame(results.records.values())
    table = tables.with_details(table, data.cells, data.gains, _settings(plan), texts)
    write_bytes(out / "table.csv", tables.to_csv(table))
    write_bytes(out / "table.parquet", tables.to_parquet(table))
    labels = ["mixture_label", "setting_label"]
    write_bytes(out / "scores.parquet", tables.to_parquet(tables.with_mixture(data.scores.drop(columns=labels))))
    added = []
    for table_ledger in imported:
        frame = comparison.compare(data, table_ledger)
        write_bytes(out / f"beside-{table_ledger.table.name}.csv", tables.to_csv(tables.with_mixture(frame)))
        added.append(comparison.comparison_section(data, table_ledger, frame))
    if (searches := searches_section(plan, results)) is not None:
        added.append(searches)
    write_bytes(out / PAGE, render(data, added).encode())
    return out / PAGE


def _settings(plan: Plan) -> pd.DataFrame:
    rows = [{"cell": item.cell.id, **hyperparameters(item.cell.content)} for item in plan.cells]
    return pd.DataFrame(rows, columns=["cell", "lr", "batch"]).astype({"cell": "string", "batch": "Int64"})


def sections(data: ReportData) -> list[Section]:
    """Return the page's sections in their order; those with nothing to show are left out."""
    shown = data.scores["column"].notna().any()
    parts = [
        overview.warnings_section(data.findings, find_remedies(data.plan)),
        overview.runs_section(data),
        scores.heatmap_section(data) if shown else None,
        differences_section(data) if shown else None,
        scores.scores_section(data) if shown else None,
        scores.epochs_section(data) if shown else None,
        relations.loss_section(data),
        relations.perplexity_section(data),
        relations.layer_change_section(data),
        model_map_section(data),
        overview.data_section(data),
        overview.provenance_section(data),
    ]
    return [section for section in parts if section is not None]


def render(data: ReportData, added: Sequence[Section] = ()) -> str:
    """Return the page of a sweep, with further sections after its own."""
    name = data.plan.sweep.file.name
    head, statuses, source = overview.head(data), overview.statuses(data), source_of(data.plan)
    return page(name, head, statuses, [*sections(data), *added], source)


def page(
    name: str,
    head: Sequence[tuple[str, str]],
    statuses: Sequence[tuple[str, int]],
    parts: Sequence[Section],
    source: str = "",
) -> str:
    """Return a page. Everything a user named is escaped; no other script than the page's own can run.

    Args:
        source: what a sweep's page is made of, as ``source_of``, which stands in its head.
    """
    environment = Environment(
        loader=PackageLoader("massive_sft.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = _breakable
    script = environment.get_template("script.js.jinja").render()
    return environment.get_template("report.html.jinja").render(
        name=name,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        head=head,
        statuses=statuses,
        sections=parts,
        meta=META,
        source=source,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _breakable(name: str) -> Markup:
    """Return a name that may break after its underscores and hyphens."""
    return Markup(escape(name).replace("_", Markup("_<wbr>")).replace("-", Markup("-<wbr>")))
