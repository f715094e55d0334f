"""Tables of differences between scores, coloured by which way they point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from massive_sft.report.formatting import MISSING, early_mark, format_count, format_interval, format_score, is_missing
from massive_sft.report.html_table import Column, Heat, Table, Value, without
from massive_sft.study.frames import CONDITION, grouped, to_rows
from massive_sft.suites import metrics

ROW = ["model", "mixture_label", "setting_label", "epoch"]
Labels = dict[tuple[Any, ...], Mapping[str, Any]]


def heat_labels(frame: pd.DataFrame) -> Labels:
    """Return what to call each condition: the first of its rows, by the values of ``CONDITION``."""
    return {key: rows[0] for key, rows in grouped(to_rows(frame), *CONDITION).items()}


def heat_table(
    key: str, caption: str, means: pd.DataFrame, labels: Labels, columns: Sequence[str], counted: str = "seeds"
) -> Table:
    """Return one row a condition and one column a benchmark.

    Args:
        means: of ``tables.over_seeds`` or ``contrasts.mean_over``.
        labels: of the conditions, with the names of ``ROW``.
        columns: the benchmarks' columns, in order.
        counted: what a row is the mean of, where it is one of several.
    """
    largest = means.groupby("column")["improvement"].agg(lambda values: values.abs().max())
    rows: list[list[Value]] = []
    for condition, members in grouped(to_rows(means), *CONDITION).items():
        by_column = {row["column"]: row for row in members}
        most = max(row["seeds"] for row in members)
        heats = [_heat(by_column.get(column), largest.get(column), most) for column in columns]
        runs = f"{most} of {members[0]['asked_seeds']}"
        rows.append([*(str(labels[condition][name]) for name in ROW), runs, *heats])
    head = [Column(name, "facet") for name in ("model", "mixture", "setting", "epoch")]
    heads = [*head, Column(counted), *(_score_column(means, column) for column in columns)]
    if not len(means) or means["asked_seeds"].max() == 1:
        heads, rows = without(4, heads), [without(4, row) for row in rows]
    if len({row["epoch"] for row in labels.values()}) < 2:
        heads, rows = without(3, heads), [without(3, row) for row in rows]
    return Table(key, caption, heads, rows, page=60)


def count_comparisons(table: Table) -> int:
    """Return how many differences a table tells."""
    return sum(isinstance(value, Heat) and value.tone != "missing" for row in table.rows for value in row)


def _score_column(means: pd.DataFrame, column: str) -> Column:
    rows = means[means["column"] == column]
    metric, n = rows["metric"].dropna(), rows["n"].dropna()
    alike = n.nunique() == 1 and rows.loc[rows["gain"].notna(), "n"].notna().all()
    size = f"n {format_count(n.iloc[0])}" if alike else "n varies" if len(n) else ""
    if metric.empty:
        return Column(column, "number", "no score")
    lower = ((rows["gain"] * rows["improvement"]) < 0).any()
    name = metric_name(to_rows(rows.dropna(subset=["metric"]).head(1))[0])
    head = " ".join(filter(None, (name, metrics.unit(metric.iloc[0]), metrics.LOWER if lower else "")))
    return Column(column, "number", f"{head}\n{size}".rstrip())


def metric_name(row: dict[str, Any]) -> str:
    """Return the name of a row's metric, with its filter."""
    if is_missing(row["metric"]):
        return MISSING
    return metrics.full_name(str(row["metric"]), None if is_missing(row["filter"]) else str(row["filter"]))


def _heat(row: dict[str, Any] | None, largest: float | None, most: int) -> Heat:
    """Return a difference's cell, with its count where it is the mean of fewer than ``most``, which its row shows."""
    if row is None or is_missing(row["gain"]):
        why = "not scored" if row is None or is_missing(row["why"]) else str(row["why"])
        return Heat(MISSING, "", "missing", 0.0, False, f"missing: {why}")
    metric, better = row["metric"], row["improvement"]
    text, ends = format_score(row["gain"], metric, True) + early_mark(row), (row["gain_low"], row["gain_high"])
    bounds, note = format_interval(*ends, metric, True), format_interval(*ends, metric, True, short=True)
    sure = not is_missing(row["gain_low"]) and (row["gain_low"] > 0 or row["gain_high"] < 0)
    tone = "flat" if is_missing(better) or not better else "good" if better > 0 else "bad"
    strength = 0.0 if tone == "flat" or not largest else round(abs(float(better)) / float(largest), 2)
    story = f"{row['column']}: score {format_score(row['value'], metric)}, "
    story += f"gain {text} (95 %: {bounds}; {row['interval']}), "
    story += f"n {format_count(row['n'])}, {row['seeds']} of {row['asked_seeds']} runs"
    below = ["" if note == MISSING else note, f"{row['seeds']} of {row['asked_seeds']}" if row["seeds"] < most else ""]
    return Heat(text, ", ".join(filter(None, below)), tone, strength, sure, story)
