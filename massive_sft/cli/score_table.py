"""The scores of a sweep as a table in the terminal: a row a cell, a column a benchmark, with the gain over the base."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.text import Text

from massive_sft.cli.views import make_table
from massive_sft.study.metrics import scale, unit

if TYPE_CHECKING:
    from massive_sft.study.results import Results

MAX_ROWS, MAX_COLUMNS = 30, 6
NOTE = "in brackets the difference to the base model; bold where 0 is outside its 95 % interval; ↓: lower is better"


def score_table(results: Results, cells: Collection[str]) -> Group:
    """Return these cells' scores on the benchmarks, base models first; an empty group where there are none."""
    from massive_sft.study.frames import to_rows

    primary = results.scores.query("primary and value.notna() and cell in @cells")
    firsts = to_rows(primary.drop_duplicates("column"))
    columns = [(row["column"], row["metric"], row["higher_is_better"]) for row in firsts]
    if not columns:
        return Group()
    shown = columns[:MAX_COLUMNS]
    scored = set(primary["cell"])
    records = [record for record in results.records.values() if record.cell in scored]
    records.sort(key=lambda record: record.coordinates["method"] != "none")
    texts = _texts(results)
    heads = [_head(*column) for column in shown]
    table = make_table("cell", "what", *heads, right=heads)
    names = short_names([record.coordinates for record in records])
    for name, record in zip(names, records[:MAX_ROWS], strict=False):
        row = [texts.get((record.cell, column), Text("—", style="dim")) for column, *_ in shown]
        table.add_row(record.cell, Text(name), *row)
    more = [(len(records) - MAX_ROWS, "cells"), (len(columns) - MAX_COLUMNS, "benchmarks")]
    left = ", ".join(f"{count} {what}" for count, what in more if count > 0)
    notes = [Text(f"and {left} more: the report has them all")] if left else []
    if any("(" in texts[key].plain for key in texts if key[0] in scored):
        notes.append(Text(NOTE, style="dim"))
    return Group(table, *notes)


def _head(column: str, metric: str, higher_is_better: bool | None) -> str:
    """Return such as ``gsm8k-5shot exact_match %``, with an arrow where lower is better."""
    lower = " ↓" if higher_is_better is False else ""
    return " ".join(filter(None, (column, metric, unit(metric)))) + lower


def _texts(results: Results) -> dict[tuple[str, str], Text]:
    """Return what stands in the table by cell and column."""
    from massive_sft.study.frames import to_rows

    gains = {(row["cell"], row["column"]): row for row in to_rows(results.gains.query("primary and gain.notna()"))}
    texts = {}
    for row in to_rows(results.scores.query("primary and value.notna()")):
        factor, gain = scale(row["metric"]), gains.get((row["cell"], row["column"]))
        text = Text(f"{row['value'] * factor:.4g}")
        if gain is not None:
            sure = gain["gain_low"] > 0 or gain["gain_high"] < 0  # not without an interval
            text.append(f" ({gain['gain'] * factor:+.3g})", style="bold" if sure else "")
        texts[row["cell"], row["column"]] = text
    return texts


def short_names(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return cells' coordinates in words, without size, schedule and seed where all trained ones have the same."""
    trained = [cell for cell in cells if cell["method"] != "none"]
    sizes = {cell["size"] for cell in trained}
    schedules = {(cell["schedule"], cell["horizon"]) for cell in trained}
    seeds = {cell["seed"] for cell in trained}

    def name(cell: Mapping[str, Any]) -> str:
        if cell["method"] == "none":
            return f"{cell['model']} (base)"
        parts = [cell["model"], cell["data"] if len(sizes) == 1 else f"{cell['data']}[{cell['size'] or 'all'}]"]
        parts.append(cell["setting"])
        if len(schedules) > 1:
            parts.append(cell["schedule"] + ("" if cell["horizon"] is None else f"/{cell['horizon']}"))
        parts += [] if len(seeds) == 1 else [f"seed {cell['seed']}"]
        return " ".join([*parts, *filter(None, [cell["variant"]]), f"epoch {cell['epoch']}"])

    return [name(cell) for cell in cells]
