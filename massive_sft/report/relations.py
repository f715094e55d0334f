"""Sections on training and what gains go with: loss curves, perplexity of the training data, layer change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from massive_sft.core.wording import counted
from massive_sft.report.chart import COLOURS, Dot, Key, Line, Panel
from massive_sft.report.formatting import MISSING, format_number, is_missing
from massive_sft.report.html_table import Column, of_texts
from massive_sft.report.report_data import ReportData
from massive_sft.report.scores import LineStyles, numbering
from massive_sft.report.section import FigureBlock, Section, TableBlock
from massive_sft.study import correlate, tables
from massive_sft.study.frames import BASE, grouped, to_rows
from massive_sft.suites import metrics

NAMES = {
    "log_perplexity_all": "log perplexity, all tokens",
    "log_perplexity_response": "log perplexity, response tokens",
    "log_perplexity_text_response": "log perplexity, response text",
    "bits_per_byte_response": "bits per byte, response text",
    "layer_change": "layer change",
}
NO_CAUSE = (
    "One point a training run, at its last epoch. Those of one model are not independent and the intervals (Fisher's "
    "z) treat them as if they were. A correlation is no cause; one that hangs on one point is none without it: read "
    "Spearman's ρ and the range of r with any one run left out."
)
TOO_FEW = f"Of fewer than {correlate.MIN_PAIRS} training runs no correlation is told."


def loss_section(data: ReportData) -> Section | None:
    """Return each run's training loss, a chart for each model and mixture; None where no curve is on disk."""
    runs = data.trainings
    runs = runs[runs["trajectory"].isin(list(data.curves))]
    if runs.empty:
        return None
    colours = numbering(runs["setting_label"])
    groups: dict[str, Sequence[Panel]] = {}
    for model, of_model in runs.groupby("model", sort=False):
        panels = []
        for mixture, members in of_model.groupby("mixture_label", sort=False):
            lines = [_loss_line(data, row, colours) for row in to_rows(members)]
            panels.append(Panel(str(mixture), "epoch", "loss, nats per token", lines, log_y=_spread(lines) > 10))
        groups[str(model)] = panels
    thinned = max(curve.steps for curve in data.curves.values())
    point = "one optimizer step" if thinned == 1 else f"the mean of up to {thinned} optimizer steps"
    notes = [f"Each point is {point}; a gap is a loss that was not finite."]
    keys = [Key(name, colour=index, dash=index // COLOURS) for name, index in colours.items()]
    return Section("losses", "Training loss", notes, [FigureBlock(groups, keys)])


def _loss_line(data: ReportData, row: dict[str, Any], colours: dict[str, int]) -> Line:
    curve = data.curves[str(row["trajectory"])]
    label = f"{row['model']} {row['mixture_label']} {row['setting_label']} seed {row['seed']}: {row['steps']} steps, "
    label += (
        f"loss {format_number(curve.first)} at the first, {format_number(curve.last)} at the last ({row['status']})"
    )
    number = colours[str(row["setting_label"])]
    return Line(label, curve.points, number, number // COLOURS)


def _spread(lines: Sequence[Line]) -> float:
    values = [y for line in lines for _, y in line.points if math.isfinite(y)]
    return max(values) / min(values) if values and min(values) > 0 else 1.0


def perplexity_section(data: ReportData) -> Section | None:
    """Return gains against the perplexity of the training data; None where it was not measured."""
    return _against(
        data,
        ["log_perplexity_all", "log_perplexity_response", "log_perplexity_text_response", "bits_per_byte_response"],
        "perplexity_all",
        Section(
            "perplexity",
            "Perplexity and gain",
            [
                "Perplexity of the training data under the base model, per token over all tokens, micro average; gains "
                "with the sign turned where lower is better, so up is better everywhere. Correlations are with the log "
                "of the perplexity. Response tokens count EOS, to which a base model gives almost no probability after "
                "a short answer; the response's text and its bits per byte do not. Models with different tokenizers "
                "have different tokens: compare within a model, or bits per byte. " + NO_CAUSE
            ],
            [],
        ),
        "perplexity",
    )


def layer_change_section(data: ReportData) -> Section | None:
    """Return gains against layer change, and its profile over the layers; None where it was not measured."""
    section = _against(
        data,
        ["layer_change"],
        "layer_change",
        Section(
            "layers",
            "Layer change and gain",
            [
                "Layer change: Frobenius norm of the weights' change relative to that of the weights, over the whole "
                "model on the horizontal axis. Full tuning and LoRA change weights on different scales: compare within "
                "a method. " + NO_CAUSE
            ],
            [],
        ),
        "relative change",
    )
    profile = _profile(data)
    if profile is None:
        return section
    blocks, notes = (section.blocks, section.notes) if section else ([], [])
    return Section("layers", "Layer change and gain", [*notes, *profile.notes], [*profile.blocks, *blocks])


def _against(data: ReportData, measures: list[str], drawn: str, section: Section, axis: str) -> Section | None:
    points = data.points
    if points.empty or points[drawn].isna().all():
        return None
    rank = {column: index for index, column in enumerate((correlate.OVERALL, *data.columns))}
    correlations = correlate.correlations(points, measures).sort_values(
        "column", key=lambda c: c.map(rank), kind="stable"
    )
    models, methods = (
        numbering(data.cells["model"]),
        numbering(data.cells.loc[data.cells["method"] != BASE, "method"]),
    )
    units = tables.primary_rows(data.gains).dropna(subset=["metric"]).groupby("column")["metric"].first()
    drawn_for = correlations[(correlations["measure"] == measures[0]) & (correlations["group"] == "all")]
    overall = {str(row["column"]): row for row in to_rows(drawn_for)}
    panels = []
    by_column = grouped(to_rows(points), "column")
    for column in (correlate.OVERALL, *data.columns):
        members = by_column.get((column,), [])
        if not members:
            continue
        metric = units.get(column)
        result = overall[column]
        factor = 1.0 if metric is None else metrics.scale(metric)
        dots = [_dot(row, drawn, factor, models, methods) for row in members]
        name = "better, in standard deviations" if metric is None else f"better, {metrics.unit(metric) or metric}"
        log = drawn.startswith("perplexity")
        panels.append(Panel(_title(column), axis, name, dots=dots, caption=summary(result), log_x=log, zero=True))
    keys = [Key(name, colour=index, shape=0) for name, index in models.items()]
    keys += [Key(name, shape=index) for name, index in methods.items()]
    enough = [_correlation_row(row) for row in to_rows(correlations[correlations["n"] >= correlate.MIN_PAIRS])]
    table = of_texts(f"{section.key}-correlations", "Correlations", _CORRELATION, enough)
    few = [] if len(enough) == len(correlations) else [TOO_FEW]
    tabled = [TableBlock(table)] if enough else []
    return Section(section.key, section.title, [*section.notes, *few], [FigureBlock({"": panels}, keys), *tabled])


def _title(column: object) -> str:
    return "overall: mean over benchmarks" if column == correlate.OVERALL else str(column)


def _dot(row: dict[str, Any], drawn: str, factor: float, models: dict[str, int], methods: dict[str, int]) -> Dot:
    x, better = row[drawn], row["improvement"]
    y = math.nan if is_missing(better) else float(better) * factor
    label = f"{row['model']} {row['mixture_label']} {row['setting_label']} epoch {row['epoch']}"
    label += f": {format_number(x)}, {format_number(y, signed=True)}"
    place = math.nan if is_missing(x) else float(x)
    series = f"{row['model']} {row['method']}"
    return Dot(label, place, y, models[str(row["model"])], methods[str(row["method"])], series=series)


def summary(row: dict[str, Any]) -> str:
    """Return a correlation in one line."""
    if is_missing(row["pearson"]):
        return f"n = {row['n']}: {row['note']}"
    pearson = f"r = {format_number(row['pearson'], 2)} ({_bounds(row, 'pearson')})"
    text = f"n = {row['n']}, {pearson}\nρ = {format_number(row['spearman'], 2)} ({_bounds(row, 'spearman')})"
    is_told = correlate.HANGS in row["note"] and correlate.LONE not in row["note"]
    left_out = f": r = {_without_one(row)} without one" if is_told else ""
    return f"{text}\n{row['note']}{left_out}" if row["note"] else text


def _without_one(row: dict[str, Any]) -> str:
    ends = [format_number(row[name], 2) for name in ("pearson_least", "pearson_most")]
    return MISSING if MISSING in ends else " to ".join(ends)


def _bounds(row: dict[str, Any], name: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return MISSING if is_missing(low) else f"{format_number(low, 2)} to {format_number(high, 2)}"


_CORRELATION = [
    Column("measure", "facet"),
    Column("benchmark", "facet"),
    Column("training runs", "facet"),
    Column("n", "number"),
    Column("Pearson r", "number"),
    Column("95 % interval"),
    Column("p", "number"),
    Column("r without any one"),
    Column("Spearman ρ", "number"),
    Column("95 % interval"),
    Column("p", "number"),
    Column("note"),
]


def _correlation_row(row: dict[str, Any]) -> list[str]:
    measure, column = NAMES.get(str(row["measure"]), str(row["measure"])), str(row["column"])
    numbers: list[str] = []
    for name in ("pearson", "spearman"):
        p = row[f"{name}_p"]
        numbers += [
            format_number(row[name], 2),
            _bounds(row, name),
            MISSING if is_missing(p) else "<0.001" if p < 0.001 else f"{p:.3f}",
        ]
        numbers += [_without_one(row)] if name == "pearson" else []
    return [measure, column, str(row["group"]), str(row["n"]), *numbers, str(row["note"])]


def _profile(data: ReportData) -> Section | None:
    joined = data.trainings.merge(data.layers, on="cell")
    if joined.empty:
        return None
    styles = LineStyles.of(joined)
    changes, gains = [], []
    correlations = correlate.layer_correlations(data.layers, data.points)
    names = ["model", "method", "cell", "layer", "change", "floor", "mixture_label", "setting_label", "epoch"]
    for (model,), of_model in grouped(to_rows(joined[names].sort_values("layer", kind="stable")), "model").items():
        lines = [_profile_line(part, styles) for part in grouped(of_model, "cell").values()]
        changes.append(Panel(str(model), "layer", "relative change", lines, whole_x=True))
        dots = [_layer_dot(row) for row in to_rows(correlations[correlations["model"] == model])]
        n = correlations.loc[correlations["model"] == model, "n"]
        caption = f"n = {counted(n.max(), 'training run')}" if len(n) else ""
        caption += ": too few" if len(n) and n.max() < correlate.MIN_PAIRS else ""
        caption += f", {correlate.MIXED}" if len({row["method"] for row in of_model}) > 1 else ""
        caption += _layer_notes(correlations.loc[correlations["model"] == model, "note"])
        gains.append(
            Panel(
                str(model), "layer", "Pearson r with overall gain", dots=dots, caption=caption, whole_x=True, zero=True
            )
        )
    notes = [
        "Change of each layer, from the input (0) upward, and its correlation with the overall gain (mean over all "
        "benchmarks, each in units of its own standard deviation) with its 95 % interval."
    ]
    if (joined["change"] < 2 * joined["floor"]).any():
        notes.append("Grey: below twice what rounding to bf16 alone changes; it says nothing about training.")
    figures = [
        FigureBlock({"Change by layer": changes}, styles.keys),
        FigureBlock({"Layer change and gain, by layer": gains}),
    ]
    return Section("layers", "", notes, figures)


def _layer_notes(notes: pd.Series) -> str:
    """Return what is noted of the layers' correlations, beyond too few pairs, and of how many of them."""
    counts = notes[~notes.isin(["", "too few"])].value_counts()
    return "".join(f"\n{note} ({count} of {counted(len(notes), 'layer')})" for note, count in counts.items())


def _profile_line(rows: list[dict[str, Any]], styles: LineStyles) -> Line:
    first = rows[0]
    points = [(float(row["layer"]), float(row["change"])) for row in rows]
    faint = [row["change"] < 2 * row["floor"] for row in rows]
    label = f"{first['mixture_label']} {first['setting_label']} epoch {first['epoch']}: "
    largest = max(rows, key=lambda row: row["change"])
    label += f"{len(rows)} layers, {format_number(rows[0]['change'])} at the input, "
    label += f"{format_number(rows[-1]['change'])} at the output, "
    label += f"largest {format_number(largest['change'])} in layer {largest['layer']}"
    return Line(label, points, *styles(first), True, faint)


def _layer_dot(row: dict[str, Any]) -> Dot:
    values = [float(row[name]) for name in ("pearson", "pearson_low", "pearson_high")]
    label = f"layer {row['layer']}: r = {format_number(values[0], 2)} ({_bounds(row, 'pearson')}), n = {row['n']}"
    label += f"; {row['note']}" if row["note"] else ""
    return Dot(label, float(row["layer"]), values[0], 0, 0, values[1], values[2])
