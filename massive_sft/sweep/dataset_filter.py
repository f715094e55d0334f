"""A dataset's filter: which values a column may hold. Values compare as text, so 1 and "1" are one value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

NOT = "not"  # the key under which a filter maps columns to the values they may not hold
TEXTS = ("prompt", "completion")  # names by which a filter asks for the texts that are made of columns


def comparable(value: Any) -> str | None:
    """Return the text by which filters compare: 1 equals "1", true equals "true", null only null."""
    if value is None:
        return None
    return str(value).lower() if isinstance(value, bool) else str(value)


def validate(rules: dict[str, Any]) -> dict[str, Any]:
    """Return a well-formed filter unchanged. Raises ValueError."""
    refused = rules.get(NOT, {})
    if not isinstance(refused, Mapping):
        raise ValueError(f"{NOT} must map columns to the refused values")
    for column, values in [*((key, rules[key]) for key in rules if key != NOT), *refused.items()]:
        listed = values if isinstance(values, (list, tuple)) else [values]
        if not isinstance(column, str) or not listed or not all(map(_is_scalar, listed)):
            raise ValueError(f"{column} must be text, a number, true, false, null, or a list of these (quote a date)")
    return rules


def _is_scalar(value: Any) -> bool:
    if isinstance(value, int):
        return abs(value) < 2**63
    return value is None or isinstance(value, str) or (isinstance(value, float) and math.isfinite(value))


def parse(rules: Mapping[str, Any]) -> dict[tuple[str, bool], frozenset[str | None]]:
    """Return a checked filter's values by (column, whether they are accepted or refused)."""
    accepted = {(column, True): values for column, values in rules.items() if column != NOT}
    refused = {(column, False): values for column, values in rules.get(NOT, {}).items()}
    return {
        key: frozenset(map(comparable, values if isinstance(values, (list, tuple)) else [values]))
        for key, values in (accepted | refused).items()
    }


def judges_texts(rules: Mapping[str, Any]) -> bool:
    """Return whether a checked filter asks for what a row becomes, and not for its columns alone."""
    return any(column in TEXTS for column, _ in parse(rules))


def content(rules: Mapping[str, Any]) -> dict[str, Any]:
    """Return a checked filter's identity, in which different spellings of one filter are equal."""
    ordered: dict[str, Any] = {}
    for (column, accepted), values in parse(rules).items():
        below = ordered if accepted else ordered.setdefault(NOT, {})
        below[column] = sorted(values, key=repr)
    return ordered
