"""Compares own cells with an imported table's rows of the same names."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from massive_sft.study.findings import find_copied
from massive_sft.study.frames import BASE
from massive_sft.study.imported import approximation_note
from massive_sft.study.released import ScoreColumn, known_columns, task_of
from massive_sft.study.tables import primary_rows
from massive_sft.suites import metrics

SHARED_COORDINATES = ["model", "data", "method", "size", "schedule", "epoch"]
"""The coordinates that a table has; a row is beside a cell when all of them are equal."""
RATING, OPENCOMPASS = "judge_rating", "opencompass"
COPIED = "its cell may be a copy of another"
COLUMNS: dict[str, str] = (
    {"cell": "string"}
    | dict.fromkeys(["model", "data", "setting", "method", "schedule", "variant"], "string")
    | dict.fromkeys(["size", "epoch", "seed"], "Int64")
    | {"column": "string", "metric": "string", "own": "float64", "own_low": "float64", "own_high": "float64"}
    | {"imported_column": "string", "imported_metric": "string", "imported": "float64", "difference": "float64"}
    | {"why": "string", "caution": "string"}
)
"""Columns of ``compare_with_imported``."""


def compare_with_imported(
    own: pd.DataFrame, imported: pd.DataFrame, columns: Mapping[str, ScoreColumn]
) -> pd.DataFrame:
    """Return one row per own score of a cell and benchmark that an imported row of the same names has a score of, too.

    Own scores are those that stand for benchmarks, ratings of MT-Bench's categories, and scores by OpenCompass's rules.

    Args:
        own, imported: of ``frames.tidy``.
        columns: of the imported table.

    Returns:
        ``COLUMNS``: both values in the unit that people read, ``difference`` = own - imported where the units are the
        same (else ``why`` there is none), and ``caution``: what is not known of the imported row, and whether its cell
        looks copied.
    """
    imported_scores = _theirs(imported, columns)
    own_scores = _comparable(own)
    joined = own_scores.merge(imported_scores, on=[*SHARED_COORDINATES, "task", "shots"], how="inner")
    factor = joined["metric"].map(metrics.scale).astype("float64")
    frame = joined.assign(
        own=joined["value"] * factor,
        own_low=joined["low"] * factor,
        own_high=joined["high"] * factor,
    )
    same = frame["metric"].map(_unit) == frame["imported_metric"].map(_unit)
    frame["difference"] = (frame["own"] - frame["imported"]).where(same)
    units = "in other units: " + frame["metric"] + ", " + frame["imported_metric"]
    frame["why"] = units.mask(same)
    return frame.reindex(columns=list(COLUMNS)).astype(COLUMNS)


def _comparable(own: pd.DataFrame) -> pd.DataFrame:
    """Return the own scores that may stand beside a table's, each with a ``column``."""
    standing = own["primary"].fillna(False).astype(bool)
    rated = (own["metric"] == RATING) & (own["filter"] == "none")
    rows = own[(standing | rated.fillna(False) | own["metric"].str.startswith(OPENCOMPASS, na=False))]
    rows = rows[rows["value"].notna()]
    return rows.assign(task=rows["task"].astype("string"), column=rows["column"].fillna(rows["task"]))


def _theirs(imported: pd.DataFrame, columns: Mapping[str, ScoreColumn]) -> pd.DataFrame:
    """Return the imported scores, one row for each name that a sweep may have for their benchmark."""
    rows = primary_rows(imported)
    rows = rows[rows["value"].notna()]
    known = known_columns()  # a table may have been imported by an older version
    alike = {name: (column, known.get(name, column)) for name, column in columns.items()}
    names = {name: tuple({task_of(name, one), *one.tasks, *other.tasks}) for name, (one, other) in alike.items()}
    shots = {name: _shots(one, other) for name, (one, other) in alike.items()}
    doubtful = {cell for finding in find_copied(imported) for cell in finding.cells}
    caution = rows["method"].map({method: approximation_note(method) for method in (BASE, "full", "lora")})
    frame = pd.DataFrame(
        {
            **{name: rows[name] for name in SHARED_COORDINATES},
            "shots": rows["benchmark"].map(shots),
            "imported_shots": rows["shots"].astype("Int64"),
            "task": rows["benchmark"].map(names),
            "imported_column": rows["benchmark"],
            "imported_metric": rows["metric"],
            "imported": rows["value"] * rows["metric"].map(metrics.scale).astype("float64"),
            "caution": caution.mask(rows["cell"].isin(doubtful), caution + "; " + COPIED),
        }
    )
    frame = frame.explode("task").explode("shots").astype({"task": "string", "shots": "Int64"})
    return frame.assign(caution=frame["caution"] + _other_shots(frame["shots"], frame["imported_shots"]))


def _shots(column: ScoreColumn, known: ScoreColumn) -> tuple[int, ...]:
    """Return the shots at which a sweep may have a column's benchmark."""
    shots = {column.shots, column.own_shots, known.own_shots}
    return tuple(number for number in shots if number is not None)


def _other_shots(own: pd.Series, theirs: pd.Series) -> pd.Series:
    """Return what is said of columns at another number of shots than the sweep's, else nothing."""
    said = "; " + own.astype("string") + " shots here, " + theirs.astype("string") + " there"
    return said.where((own != theirs).fillna(False), "")


def _unit(metric: str) -> str:
    """Return what two metrics must have in common for a difference to mean anything."""
    return metrics.unit(metric) or metric
