"""Hyperparameters of a cell: what its id is the hash of, as one level of names and plain values."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from massive_sft.core.fingerprint import flatten
from massive_sft.sweep.schema import Schedule, Setting

_COORDINATES = {"method", "seed", "schedule.name", "schedule.horizon"}  # known by name already


def hyperparameters(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a cell's hyperparameters as in the sweep file, every default written out; nothing for a base model.

    Names are those of the settings (``lr``, ``batch``, ``lora.rank``, ``optimizer.weight_decay``) and, behind
    ``schedule.``, of the schedule. A template is its text, or ``chat``; a list is JSON.

    Args:
        content: of the cell (``Cell.content``, ``Ledger.read_cell``).
    """
    written = content.get("setting") or {}
    setting = {name: written[name] for name in Setting.model_fields if name in written}
    if "template" in setting:
        setting["template"] = setting["template"].get("prompt", "chat")
    lists = {key: json.dumps(value) for key, value in setting.items() if isinstance(value, list)}
    nested = {key: _lists_as_json(value) for key, value in setting.items() if isinstance(value, Mapping)}
    schedule = {"schedule": content["schedule"]} if content.get("schedule") else {}
    flat = flatten({**setting, **lists, **nested, **schedule})
    return {name: value for name, value in flat.items() if name and name not in _COORDINATES}


def hyperparameter_names() -> list[str]:
    """Return the names of all hyperparameters that cells may have, those of LoRA and of every schedule among them."""
    names = (*_names(Setting), *_names(Schedule, "schedule."))
    return [name for name in names if name not in _COORDINATES]


def _names(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _names(kind, f"{prefix}{name}.")
        else:
            yield prefix + name


def _lists_as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: json.dumps(value) if isinstance(value, list | tuple) else value for key, value in values.items()}
