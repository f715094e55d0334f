"""Cells' coordinates in as few words as tell them apart from the others that are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from massive_sft.sweep.cell import mixture_label


def short_names(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return cells' names with their models, as ``short_conditions``."""
    conditions = short_conditions(cells)
    return [f"{cell['model']} {condition}" for cell, condition in zip(cells, conditions, strict=True)]


def short_conditions(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what cells' models were tuned on and how, without size, schedule and seed where all have the same.

    Args:
        cells: coordinates by name; a mean over seeds has no ``seed``.
    """
    trained = [cell for cell in cells if cell["method"] != "none"]
    sizes = {cell["size"] for cell in trained}
    schedules = {(cell["schedule"], cell["horizon"]) for cell in trained}
    seeds = {cell.get("seed") for cell in trained}

    def name(cell: Mapping[str, Any]) -> str:
        if cell["method"] == "none":
            return "(base)"
        parts = [cell["data"] if len(sizes) == 1 else mixture_label(cell["data"], cell["size"]), cell["setting"]]
        if len(schedules) > 1:
            parts.append(cell["schedule"] + ("" if cell["horizon"] is None else f"/{cell['horizon']}"))
        parts += [] if len(seeds) == 1 else [f"seed {cell['seed']}"]
        variant = cell["variant"].replace(",", ", ")  # where a narrow column may break it
        return " ".join([*parts, *filter(None, [variant]), f"epoch {cell['epoch']}"])

    return [name(cell) for cell in cells]
