"""The section on trained cells beside each other: methods, datasets left out, and means over models and mixtures."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from massive_sft.report.formatting import early_notes
from massive_sft.report.heat_table import heat_labels, heat_table
from massive_sft.report.html_table import Table
from massive_sft.report.report_data import ReportData
from massive_sft.report.section import Section, TableBlock
from massive_sft.study import contrasts, tables


def differences_section(data: ReportData) -> Section | None:
    """Return the tables that a sweep gives rise to; None where it gives rise to none."""
    over_models, over_mixtures = {"model": "all models"}, {"mixture_label": "all mixtures"}
    made = [
        _pairs(data, data.lora_less_full, "lora-full", "LoRA less full tuning", "setting"),
        _pairs(data, data.with_less_without, "left-out", "A mixture less itself without one dataset", "data"),
        _mean(data, ["model"], "model-mean", "Mean gain over models", over_models),
        _mean(data, ["data", "size"], "mixture-mean", "Mean gain over mixtures", over_mixtures),
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
    means = tables.over_seeds(named)
    labels = {**heat_labels(data.gains), **heat_labels(named)}  # which say whether epochs are told apart
    return heat_table(key, caption, means, labels, _columns(data, means))


def _mean(data: ReportData, axes: list[str], key: str, caption: str, names: Mapping[str, str]) -> Table | None:
    means = contrasts.mean_over(tables.over_seeds(data.gains), axes)
    if means.empty:
        return None
    without_axes = data.gains.assign(**dict.fromkeys(axes, None))
    labels = {condition: {**row, **names} for condition, row in heat_labels(without_axes).items()}
    return heat_table(key, caption, means, labels, _columns(data, means), counted="runs")


def _columns(data: ReportData, means: pd.DataFrame) -> list[str]:
    return [column for column in data.columns if column in set(means["column"])]
