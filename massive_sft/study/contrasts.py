"""Trained cells beside each other: LoRA less full tuning, a mixture less itself without one dataset, and means."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from massive_sft.study.frames import CONDITION, grouped, last_epochs, to_json_rows, to_rows
from massive_sft.study.tables import SAME, gain_over, mean_gain, primary_rows

RUN = ["model", "schedule", "horizon", "epoch", "seed"]
"""What two cells must share to be compared, beside their mixture or their setting."""
_PLURALS = {"model": "models", "data": "mixtures"}
MixtureKey = tuple[str, int | None]
"""A mixture's name and its samples, None for all that there are."""
Pair = tuple[str, str, str]
"""A cell, the cell it is compared with, and what the difference is about."""


def lora_less_full(cells: pd.DataFrame) -> list[Pair]:
    """Pair each LoRA cell at a run's last epoch with the fully tuned ones of the same mixture and schedule.

    Args:
        cells: rows with ``cell``, ``trajectory`` and the coordinates.
    """
    pairs = []
    for members in grouped(to_rows(last_epochs(cells)), *RUN, "data", "size").values():
        full = [row for row in members if row["method"] == "full"]
        lora = [row for row in members if row["method"] == "lora"]
        pairs += [(str(one["cell"]), str(other["cell"]), _label(one, other)) for one in lora for other in full]
    return pairs


def _label(one: Mapping[str, object], other: Mapping[str, object]) -> str:
    names = [f"{row['setting']} {row['variant'] or ''}".strip() for row in (one, other)]
    return f"{names[0]} − {names[1]}"


def with_less_without(cells: pd.DataFrame, left_out: Sequence[tuple[MixtureKey, MixtureKey, str]]) -> list[Pair]:
    """Pair each cell of a mixture at a run's last epoch with the one trained on the mixture without one dataset.

    Args:
        cells: as of ``lora_less_full``.
        left_out: a whole mixture, one that lacks a dataset of it and nothing else, and that dataset.
    """
    pairs = []
    for members in grouped(to_json_rows(last_epochs(cells)), *RUN, "setting", "variant").values():
        by_mixture = {(row["data"], row["size"]): str(row["cell"]) for row in members}
        for whole, lesser, dataset in left_out:
            if whole in by_mixture and lesser in by_mixture:
                pairs.append((by_mixture[whole], by_mixture[lesser], f"{dataset} in {whole[0]}"))
    return pairs


def differences(scores: pd.DataFrame, pairs: Iterable[Pair]) -> pd.DataFrame:
    """Return the primary rows of ``tidy`` of each pair's first cell beside the second's, as ``tables.gains`` does.

    ``about`` is the pair's third field. Scores under different protocols are not compared.
    """
    chosen = pd.DataFrame(list(pairs), columns=["cell", "base_cell", "about"], dtype="string")
    rows = primary_rows(scores)
    names = {"value": "base", "stderr": "base_stderr", "low": "base_low", "high": "base_high", "n": "base_n"}
    others = rows.rename(columns={"cell": "base_cell", **names})[["base_cell", *SAME, *names.values()]]
    rows = rows[rows["protocol"].notna()].merge(chosen, on="cell")
    return gain_over(rows.merge(others, on=["base_cell", *SAME], how="inner")).assign(why=None)


def mean_over(means: pd.DataFrame, axes: Sequence[str]) -> pd.DataFrame:
    """Return the mean of ``tables.over_seeds`` over some of the coordinates, with the interval of ``mean_interval``.

    Only what at least two values of ``axes`` have is there; ``members`` counts them.

    Args:
        axes: ``model``, or ``data`` with ``size``.
    """
    names = [name for name in CONDITION if name not in axes]
    rows = []
    for members in grouped(to_rows(means[means["gain"].notna()]), *names, "column").values():
        if len(members) < 2:
            continue
        first = members[0]
        mean = {name: pd.Series([float(row[name]) for row in members]).mean() for name in ("value", "improvement")}
        counts = {name: sum(int(row[name]) for row in members) for name in ("seeds", "asked_seeds")}
        kept = {name: first[name] for name in (*names, "column", "metric", "filter", "benchmark", "n")}
        kept["early"] = any(row["early"] for row in members)
        told = {**mean_gain(members, f"{len(members)} {_PLURALS[axes[0]]}"), "why": pd.NA, "members": len(members)}
        rows.append({**kept, **mean, **counts, **told})
    return pd.DataFrame(rows, columns=[*means.columns, "members"])
