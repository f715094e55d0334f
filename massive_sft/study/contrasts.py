"""Trained cells beside each other: LoRA less full tuning, a mixture less itself without one dataset, and means."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import pandas as pd

from massive_sft.study.frames import BASE, CONDITION, grouped, to_json_rows, to_rows
from massive_sft.study.tables import SAME, gain_over, mean_gain, primary_rows

RUN = ["model", "schedule", "horizon", "seed"]
"""What two cells must share to be compared, beside the epoch and their mixture or their setting."""
_PLURALS = {"model": "models", "data": "mixtures"}
MixtureKey = tuple[str, int | None]
"""A mixture's name and its samples, None for all that there are."""
Pair = tuple[str, str, str]
"""A cell, the cell it is compared with, and what the difference is about."""


def lora_less_full(cells: pd.DataFrame) -> list[Pair]:
    """Pair LoRA cells with the fully tuned ones of the same mixture and schedule, at the last epoch that both have.

    Args:
        cells: rows with ``cell`` and the coordinates.
    """
    pairs = []
    for members in grouped(to_rows(cells), *RUN, "data", "size").values():
        by_method = {name: [row for row in members if row["method"] == name] for name in ("full", "lora")}
        full, lora = (_by_epoch(rows, "setting", "variant") for rows in by_method.values())
        for one, other in product(lora.values(), full.values()):
            for tuned, whole in _last_shared(one, other):
                pairs.append((str(tuned["cell"]), str(whole["cell"]), _label(tuned, whole)))
    return pairs


def _by_epoch(rows: Iterable[dict[str, Any]], *keys: str) -> dict[tuple[Any, ...], dict[int, dict[str, Any]]]:
    """Return cells by some of their coordinates, then by epoch."""
    return {key: {int(row["epoch"]): row for row in members} for key, members in grouped(rows, *keys).items()}


def _last_shared(
    one: Mapping[int, dict[str, Any]], other: Mapping[int, dict[str, Any]]
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield the two cells of the last epoch that both runs have; nothing where there is none."""
    shared = one.keys() & other.keys()
    if shared:
        yield one[max(shared)], other[max(shared)]


def _label(one: Mapping[str, object], other: Mapping[str, object]) -> str:
    names = [f"{row['setting']} {row['variant'] or ''}".strip() for row in (one, other)]
    return f"{names[0]} − {names[1]}"


def with_less_without(cells: pd.DataFrame, left_out: Sequence[tuple[MixtureKey, MixtureKey, str]]) -> list[Pair]:
    """Pair cells of a mixture with those of the mixture without one dataset, at the last epoch that both have.

    Args:
        cells: as of ``lora_less_full``.
        left_out: a whole mixture, one that lacks a dataset of it and nothing else, and that dataset.
    """
    pairs = []
    trained = cells[cells["method"] != BASE]
    for members in grouped(to_json_rows(trained), *RUN, "setting", "variant").values():
        by_mixture = _by_epoch(members, "data", "size")
        for whole, lesser, dataset in left_out:
            for one, other in _last_shared(by_mixture.get(whole, {}), by_mixture.get(lesser, {})):
                pairs.append((str(one["cell"]), str(other["cell"]), f"{dataset} in {whole[0]}"))
    return pairs


def differences(scores: pd.DataFrame, pairs: Iterable[Pair]) -> pd.DataFrame:
    """Return the primary rows of ``tidy`` of each pair's first cell beside the second's, as ``tables.gains`` does.

    ``about`` is the pair's third field, ``early`` says whether either score is an early answer. Scores under different
    protocols are not compared.
    """
    chosen = pd.DataFrame(list(pairs), columns=["cell", "base_cell", "about"], dtype="string")
    rows = primary_rows(scores)
    names = {"value": "base", "stderr": "base_stderr", "low": "base_low", "high": "base_high", "n": "base_n"}
    names |= {"early": "base_early"}
    others = rows.rename(columns={"cell": "base_cell", **names})[["base_cell", *SAME, *names.values()]]
    rows = rows[rows["protocol"].notna()].merge(chosen, on="cell")
    found = gain_over(rows.merge(others, on=["base_cell", *SAME], how="inner")).assign(why=None)
    return found.assign(early=found["early"] | found["base_early"]).drop(columns="base_early")


def mean_over(means: pd.DataFrame, axes: Sequence[str]) -> pd.DataFrame:
    """Return the mean of ``tables.over_seeds`` over some of the coordinates, with the interval of ``mean_interval``.

    It is of the epoch that most values of ``axes`` have, the last of such; only what at least two of them have is
    there. ``members`` counts them, and ``asked_members`` those beside them that have a row without a gain; ``n`` is
    missing where theirs differ.

    Args:
        axes: ``model``, or ``data`` with ``size``.
    """
    names = [name for name in CONDITION if name not in axes]
    without_epoch = [name for name in names if name != "epoch"]
    rows = []
    for runs in grouped(to_rows(means), *without_epoch, "column").values():
        asked = max(grouped(runs, "epoch").values(), key=lambda of_epoch: (len(_known(of_epoch)), of_epoch[0]["epoch"]))
        members = _known(asked)
        if len(members) < 2:
            continue
        first = members[0]
        mean = {name: pd.Series([float(row[name]) for row in members]).mean() for name in ("value", "improvement")}
        counts = {name: sum(int(row[name]) for row in asked) for name in ("seeds", "asked_seeds")}
        counts |= {"members": len(members), "asked_members": len(asked)}
        kept = {name: first[name] for name in (*names, "column", "metric", "filter", "benchmark")}
        sizes = {pd.NA if pd.isna(row["n"]) else int(row["n"]) for row in members}
        kept["n"] = sizes.pop() if len(sizes) == 1 else pd.NA
        kept["early"] = any(row["early"] for row in members)
        told = {**mean_gain(members, f"{len(members)} {_PLURALS[axes[0]]}"), "why": pd.NA}
        rows.append({**kept, **mean, **counts, **told})
    return pd.DataFrame(rows, columns=[*means.columns, "members", "asked_members"])


def _known(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if not pd.isna(row["gain"])]
