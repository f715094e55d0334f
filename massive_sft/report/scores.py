"""Sections on scores: the heatmap of gains, every score with its interval, scores along the epochs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pandas as pd

from massive_sft.report.chart import Key, Line, Panel
from massive_sft.report.formatting import (
    MISSING,
    early_mark,
    early_notes,
    format_count,
    format_interval,
    format_score,
    is_missing,
)
from massive_sft.report.heat_table import ROW, count_comparisons, heat_labels, heat_table, metric_name
from massive_sft.report.html_table import Column, of_texts
from massive_sft.report.section import FigureBlock, Section, TableBlock
from massive_sft.study import tables
from massive_sft.study.frames import BASE, CONDITION, COORDINATES, grouped, last_epochs, to_rows
from massive_sft.suites import metrics


class ScoreData(Protocol):
    """What these sections draw from: the frames of ``report_data.ReportData``."""

    @property
    def planned(self) -> pd.DataFrame: ...

    @property
    def scores(self) -> pd.DataFrame: ...

    @property
    def gains(self) -> pd.DataFrame: ...

    @property
    def columns(self) -> tuple[str, ...]: ...


def numbering(values: Iterable[str]) -> dict[str, int]:
    """Number distinct names by their first appearance: their colour or dash wherever they are drawn."""
    return {name: index for index, name in enumerate(dict.fromkeys(values))}


@dataclass(frozen=True)
class LineStyles:
    """Colours and dashes of the lines of training runs: of mixtures and settings, whichever are more get the colours.

    Attributes:
        colour, dash: the columns that they stand for.
        colours, dashes: by name.
    """

    colour: str
    dash: str
    colours: dict[str, int]
    dashes: dict[str, int]

    @staticmethod
    def of(frame: pd.DataFrame) -> LineStyles:
        """Return the styles for rows with ``mixture_label`` and ``setting_label``."""
        names = sorted(("mixture_label", "setting_label"), key=lambda name: -frame[name].nunique())
        return LineStyles(names[0], names[1], numbering(frame[names[0]]), numbering(frame[names[1]]))

    def __call__(self, row: dict[str, Any]) -> tuple[int, int]:
        """Return the colour and the dash of a row's line."""
        return self.colours[row[self.colour]], self.dashes[row[self.dash]]

    @property
    def keys(self) -> list[Key]:
        """The entries of a legend."""
        keys = [Key(name, colour=index, marked=True) for name, index in self.colours.items()]
        return keys + [Key(name, dash=index) for name, index in self.dashes.items()]


def heatmap_section(data: ScoreData) -> Section:
    """Return the gains of each condition's last epoch: model × mixture × benchmark."""
    last = last_epochs(data.planned)[CONDITION].drop_duplicates()
    cells = data.planned.merge(last, on=CONDITION)  # a seed that went on has its earlier epoch beside the others'
    means = tables.over_seeds(with_planned(data, cells))
    columns = [column for column in data.columns if column in set(means["column"])]
    table = heat_table("gains", "Gains over the base model", means, heat_labels(cells), columns)
    epochs = sorted({int(epoch) for epoch in means["epoch"]})
    shown = f"epoch {epochs[0]}" if len(epochs) == 1 else "each training run's last epoch, of all seeds that have it"
    arrow = f" ({metrics.LOWER_NOTE})" if any(metrics.LOWER in column.note for column in table.columns) else ""
    has_intervals = bool(means["gain_low"].notna().any())
    interval = "; the 95 % interval is below it" if has_intervals else ""
    bold = " Bold: the interval excludes 0." if has_intervals else ""
    notes = [
        f"Gain at {shown}: score minus the same model's base score under the same protocol{interval}. Blue is better "
        f"than the base, orange worse, whichever way the metric points{arrow}; the strength is the share of the "
        f"column's largest gain.{bold} Hatched: missing."
    ]
    if has_intervals:
        notes.append(
            f"{count_comparisons(table)} comparisons, not corrected for their number: about one in twenty intervals "
            "excludes 0 by chance alone."
        )
    notes += early_notes(means)
    return Section("gains", "Gains", notes, [TableBlock(table)])


def with_planned(data: ScoreData, trained: pd.DataFrame) -> pd.DataFrame:
    """Return the gains of these cells, and a row without one for each cell and benchmark that has none."""
    known = tables.primary_rows(data.gains)
    known = known[known["cell"].isin(trained["cell"])]
    columns = pd.DataFrame({"column": list(data.columns)}, dtype="string")
    every = trained[["cell", "status", "error", *COORDINATES]].merge(columns, how="cross")
    merged = every.merge(known.drop(columns=["status", *COORDINATES]), on=["cell", "column"], how="left")
    merged["primary"] = True
    reason = merged["missing"].fillna(merged["why"]).fillna(merged["error"])
    late = merged["status"].isin(["WAITING", "RUNNING"])
    merged["why"] = reason.mask(late, merged["status"]).fillna("not scored").mask(merged["gain"].notna())
    return merged


def scores_section(data: ScoreData) -> Section:
    """Return one row per cell and benchmark, base models included."""
    head = [Column(name, "facet") for name in ("benchmark", "model", "mixture", "setting", "epoch", "seed")]
    numbers = [Column(name, "number") for name in ("score", "n", "base", "gain")]
    bounds = Column("95 % interval", "text")
    columns = [
        *head,
        Column("metric"),
        numbers[0],
        bounds,
        numbers[1],
        numbers[2],
        numbers[3],
        bounds,
        Column("how"),
        Column("why not", "long"),
    ]
    base = tables.primary_rows(data.scores)
    every = pd.concat([base[base["method"] == BASE], tables.primary_rows(data.gains)])
    rank = {column: index for index, column in enumerate(data.columns)}
    every = every[SHOWN].sort_values("column", key=lambda columns: columns.map(rank), kind="stable")
    rows = [_score_row(row) for row in to_rows(every)]
    intervals = (
        "Every benchmark's score with its 95 % interval from the per-sample values (Wilson for proportions, delta "
        "method for bits per byte), n questions, and its gain. The gain's interval is of the differences on the same "
        "questions where every question's value is in the ledger (how: paired); elsewhere it "
        "combines both scores' intervals as if they were independent and is rather too wide."
    )
    told = intervals if every["low"].notna().any() else "Every benchmark's score and its gain."
    tail = " Fractions are in percent. All metrics of every task are in scores.parquet, one row a cell in table.csv."
    notes = [told + tail, *early_notes(every)]
    return Section("scores", "Scores", notes, [TableBlock(of_texts("scores", "Scores", columns, rows))])


SHOWN = [
    "column",
    *ROW,
    "method",
    "seed",
    "metric",
    "filter",
    "value",
    "low",
    "high",
    "n",
    "base",
    "gain",
    "gain_low",
    "gain_high",
]
SHOWN += ["gain_interval", "missing", "why", "early", "base_n"]


def _score_row(row: dict[str, Any]) -> list[str]:
    metric = row["metric"]
    why = next((str(row[name]) for name in ("missing", "why") if not is_missing(row[name])), "")
    return [
        str(row["column"]),
        *(str(row[name]) for name in ROW[:2]),
        MISSING if row["method"] == BASE else str(row["setting_label"]),
        str(row["epoch"]),
        MISSING if is_missing(row["seed"]) else str(row["seed"]),
        metric_name(row),
        format_score(row["value"], metric) + early_mark(row),
        format_interval(row["low"], row["high"], metric),
        format_count(row["n"]) + (f" of {format_count(row['base_n'])}" if early_mark(row) else ""),
        format_score(row["base"], metric),
        format_score(row["gain"], metric, True),
        format_interval(row["gain_low"], row["gain_high"], metric, True),
        "" if is_missing(row["gain_interval"]) else str(row["gain_interval"]),
        why,
    ]


def epochs_section(data: ScoreData) -> Section | None:
    """Return the score of each run at its snapshots, from the base model at epoch 0; None without any.

    A run with one scored snapshot is in the heatmap already.
    """
    known = tables.primary_rows(data.gains)
    known = known[known["value"].notna()]
    known = known[known.groupby("trajectory")["epoch"].transform("nunique") > 1]
    if known.empty:
        return None
    styles = LineStyles.of(known)
    rows = to_rows(known[[*LINE, "model", "column", "trajectory"]].sort_values("epoch", kind="stable"))
    groups: dict[str, Sequence[Panel]] = {}
    for (model,), of_model in grouped(rows, "model").items():
        by_column = grouped(of_model, "column")
        panels = []
        for column in data.columns:
            members = by_column.get((column,), [])
            if members:
                lines = [_epoch_line(part, styles) for part in grouped(members, "trajectory").values()]
                metric = str(members[0]["metric"])
                name = f"{metric} {metrics.unit(metric)}".strip()
                panels.append(Panel(column, "epoch", name, lines, whole_x=True))
        groups[str(model)] = panels
    notes = ["Training runs with several snapshots; epoch 0 is the base model. Hover a line for its numbers."]
    notes += early_notes(known)
    return Section("epochs", "Scores along the epochs", notes, [FigureBlock(groups, styles.keys)])


LINE = ["mixture_label", "setting_label", "seed", "epoch", "metric", "value", "low", "high", "n", "base", "early"]


def _epoch_line(rows: list[dict[str, Any]], styles: LineStyles) -> Line:
    first = rows[0]
    factor = metrics.scale(first["metric"])
    points = [(float(row["epoch"]), float(row["value"]) * factor) for row in rows]
    if not is_missing(first["base"]):
        points.insert(0, (0.0, float(first["base"]) * factor))
    story = [f"epoch {row['epoch']}: {_with_interval(row)}" for row in rows]
    seed = "" if is_missing(first["seed"]) else f" seed {first['seed']}"
    mixture, setting = first["mixture_label"], first["setting_label"]
    label = f"{mixture} {setting}{seed}; base {format_score(first['base'], first['metric'])}; "
    return Line(label + "; ".join(story), points, *styles(first), marked=True)


def _with_interval(row: dict[str, Any]) -> str:
    metric = row["metric"]
    bounds = format_interval(row["low"], row["high"], metric)
    return f"{format_score(row['value'], metric)}{early_mark(row)} ({bounds}, n {format_count(row['n'])})"
