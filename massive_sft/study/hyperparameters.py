"""Hyperparameters of a cell: what its id is the hash of, as one level of names and plain values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from massive_sft.core.fingerprint import flatten
from massive_sft.sweep.schema import Setting

_COORDINATES = {"method", "schedule.name", "schedule.horizon"}  # known by name already


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


def _lists_as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: json.dumps(value) if isinstance(value, list | tuple) else value for key, value in values.items()}
