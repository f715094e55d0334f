"""Entries of a sweep file that break the schema, set aside so that the others are looked at all the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from massive_sft.sweep.yaml_errors import Location

# What the second look puts in place of broken sections that it cannot do without.
PLACEHOLDERS: dict[str, Any] = {"schema": 1, "name": "unnamed", "storage": {"root": "."}}
EMPTY_SECTIONS: dict[str, Any] = {"models": {}, "datasets": {}, "mixtures": {}, "settings": {}, "blocks": []}


def without(raw: Mapping[str, Any], places: set[Location]) -> dict[str, Any]:
    """Return ``raw`` without the entries at ``places`` (section, key or index)."""
    kept: dict[str, Any] = {}
    for section, value in raw.items():
        if (section,) in places:
            continue
        if isinstance(value, Mapping):
            kept[section] = {key: item for key, item in value.items() if (section, key) not in places}
        elif isinstance(value, (list, tuple)):
            kept[section] = [item for index, item in enumerate(value) if (section, index) not in places]
        else:
            kept[section] = value
    broken = {place[0] for place in places}
    return EMPTY_SECTIONS | kept | {section: value for section, value in PLACEHOLDERS.items() if section in broken}


def left(section: str, raw: Mapping[str, Any], places: set[Location]) -> list[int]:
    """Return the indices, as in the file, of a list's entries that are not at ``places``."""
    count = 0 if (section,) in places else len(raw.get(section) or ())
    return [index for index in range(count) if (section, index) not in places]


def broken_names(places: set[Location]) -> dict[str, list[str]]:
    """Return the names of the entries at ``places`` (section, key or index), by section."""
    named: dict[str, list[str]] = {}
    for section, *steps in sorted(places, key=str):
        if steps:
            named.setdefault(str(section), []).append(str(steps[0]))
    return named


def texts_of(names: Any) -> list[str]:
    """Return the names, of a list or one alone, that are text."""
    return [name for name in (names if isinstance(names, list | tuple) else [names]) if isinstance(name, str)]
