"""The map of models: near ones hold the same texts equally likely."""

from __future__ import annotations

from typing import Any

from massive_sft.core.wording import counted
from massive_sft.report.chart import Dot, Key, Panel
from massive_sft.report.formatting import format_number
from massive_sft.report.report_data import ReportData
from massive_sft.report.scores import numbering
from massive_sft.report.section import FigureBlock, Section
from massive_sft.study.frames import to_rows
from massive_sft.study.model_map import ModelMap


def model_map_section(data: ReportData) -> Section | None:
    """Return a map for each set of texts; None where fewer models were measured than a map can show."""
    if not data.maps:
        return None
    rows = {str(row["cell"]): row for row in to_rows(data.cells)}
    shown = data.cells[data.cells["cell"].isin([cell for one in data.maps for cell in one.cells])]
    models, methods = numbering(shown["model"]), numbering(shown["method"])
    panels = [_panel(one, rows, models, methods) for one in data.maps]
    keys = [Key(name, colour=index, shape=0) for name, index in models.items()]
    keys += [Key(name, shape=index) for name, index in methods.items()]
    note = (
        "Each point is a cell, or a base model (method none), placed by how likely it holds each of the same texts: "
        "the two directions in which log-likelihoods differ most, with the means of models and of texts taken off, in "
        "nats over all texts. An axis says its share of the variance; what the two leave out is not seen, so that near "
        "points may differ."
    )
    return Section("map", "Map of models", [note], [FigureBlock({"": panels}, keys)])


def _panel(one: ModelMap, rows: dict[str, dict[str, Any]], models: dict[str, int], methods: dict[str, int]) -> Panel:
    dots = [_dot(rows[cell], x, y, models, methods) for cell, (x, y) in zip(one.cells, one.places, strict=True)]
    first, second = (f"axis {axis}, {share:.0%} of the variance" for axis, share in enumerate(one.shares, 1))
    caption = f"{counted(one.texts, 'text')}, {counted(len(one.cells), 'model')}"
    caption += f"; {counted(one.left_out, 'text')} left out, without a finite likelihood" if one.left_out else ""
    return Panel(one.name, first, second, dots=dots, caption=caption)


def _dot(row: dict[str, Any], x: float, y: float, models: dict[str, int], methods: dict[str, int]) -> Dot:
    label = f"{row['model']} {row['mixture_label']} {row['setting_label']} epoch {row['epoch']}"
    label += f": {format_number(float(x), signed=True)}, {format_number(float(y), signed=True)}"
    series = f"{row['model']} {row['method']}"
    return Dot(label, float(x), float(y), models[str(row["model"])], methods[str(row["method"])], series=series)
