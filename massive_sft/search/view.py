"""What people read of a search."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def decision_line(entry: Mapping[str, Any], named: Mapping[str, Any] | None = None) -> str:
    """Return a decision as a line: its number, what it is, why.

    Args:
        named: the values by axis, as the sweep file has them; None for a decision's own numbers.
    """
    if entry["kind"] != "ask":
        reason = {"given_up": "failed as often as it may", "infeasible": "memory ran out"}[entry["kind"]]
        return f"decision {entry['n']}: decision {entry['of']} is {entry['kind'].replace('_', ' ')}, {reason}"
    values = ", ".join(f"{name} {as_text(value)}" for name, value in (named or entry["choice"]).items())
    return f"decision {entry['n']}: {values} ({reason_of(entry)})"


def reason_of(entry: Mapping[str, Any]) -> str:
    """Return why something was asked."""
    why = entry["why"]
    known = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in why["given"].items()) or "none"
    again = f", proposal {entry['try'] + 1}, for earlier ones had been asked" if entry["try"] else ""
    if entry["sampler"] == "start":
        return f"start{again}"
    return f"{entry['sampler']} by outcomes: {known}; {why['pending']} pending{again}"


def as_text(value: Any) -> str:
    """Return a value of an axis without digits that say nothing."""
    return f"{value:g}" if isinstance(value, float) else str(value)
