"""The section on trained cells beside each other: methods, datasets left out, and means over models and mixtures."""

from __future__ import annotations

import pandas as pd

from massive_sft.report.formatting import early_notes
from massive_sft.report.heat_table import heat_labels, heat_table
from massive_sft.report.html_table import Table
from massive_sft.report.report_data import ReportData
from massive_sft.report.scores import with_planned
from massive_sft.report.section import Section, TableBlock
from massive_sft.study import contrasts, tables
from massive_sft.study.frames import CONDITION, grouped, to_rows


def differences_section(data: ReportData) -> Section | None:
    """Return the tables that a sweep gives rise to; None where it gives rise to none."""
    made = [
        _pairs(data, data.lora_less_full, "lora-full", "LoRA less full tuning", "setting"),
        _pairs(data, data.with_less_without, "left-out", "A mixture less itself without one dataset", "data"),
        _mean(data, ["model"], "model-mean", "Mean gain over models", "models"),
        _mean(data, ["data", "size"], "mixture-mean", "Mean gain over mixtures", "mixtures"),
    ]
    shown = [TableBlock(table) for table in made if table is not None]
    notes = [
        "At the last epoch that both of a difference have, in the colours of the gains. LoRA and full tuning are "
        "compared where model, mixture, schedule and seed are the same; what a dataset gives to a mixture is the "
        "score with it less the score without it. The 95 % interval is of the differences on the same questions where "
        "the ledger has them, and Student's t over the seeds where there are several. Means take each model, or "
        "mixture, once, by the mean over its seeds, of runs that share all else, at the last epoch that most have; "
        "their interval, Student's t, takes the models or mixtures for a sample of those that could have been. None is "
        "narrower than the single intervals on average: all runs answered the same questions, and their chance is in "
        "each of them.",
    ]
    notes += early_notes(data.gains)
    return Section("differences", "Differences", notes, shown) if shown else None


def _pairs(data: ReportData, frame: pd.DataFrame, key: str, caption: str, told: str) -> Table | None:
    """Return the table of differences between pairs of cells; what each is about stands for the coordinate ``told``."""
    if frame.empty:
        return None
    label = {"setting": "setting_label", "data": "mixture_label"}[told]
    named = frame.assign(**{told: frame["about"], label: frame["about"]})
    asked = named[[*CONDITION, "asked_seeds"]].drop_duplicates()
    means = tables.over_seeds(named).drop(columns="asked_seeds").merge(asked, on=CONDITION)
    labels = {**heat_labels(data.gains), **heat_labels(named)}  # which say whether epochs are told apart
    return heat_table(key, caption, means, labels, _columns(data, means))


def _mean(data: ReportData, axes: list[str], key: str, caption: str, plural: str) -> Table | None:
    means = contrasts.mean_over(tables.over_seeds(with_planned(data, data.planned)), axes)
    if means.empty:
        return None
    labels = heat_labels(data.planned.assign(**dict.fromkeys(axes, None)))
    told = {"model": "model", "data": "mixture_label"}[axes[0]]
    for condition, rows in grouped(to_rows(means), *CONDITION).items():
        members, asked = (max(row[name] for row in rows) for name in ("members", "asked_members"))
        what = f"all {plural}" if members == asked else f"{members} of {asked} {plural}"
        labels[condition] = {**labels[condition], told: what}
    return heat_table(key, caption, means, labels, _columns(data, means), counted="runs")


def _columns(data: ReportData, means: pd.DataFrame) -> list[str]:
    return [column for column in data.columns if column in set(means["column"])]
