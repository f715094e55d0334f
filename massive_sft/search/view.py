"""What people read of a search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from massive_sft.core.files import format_bytes
from massive_sft.search.outcomes import Outcome


def decision_line(entry: Mapping[str, Any], named: Mapping[str, Any]) -> str:
    """Return a decision as a line: its number, what it is, why.

    Args:
        named: of ``Planned.named``.
    """
    if "cell" not in entry:
        return f"decision {entry['n']}: {entry_text(entry)}"
    values = ", ".join(f"{name} {as_text(value)}" for name, value in named.items())
    return f"decision {entry['n']}: {values} ({reason_of(entry)})"


def entry_text(entry: Mapping[str, Any]) -> str:
    """Return what a decision is that has nothing trained."""
    if entry["kind"] in ("stop", "go_on"):
        sure, regret = entry["why"]["probability"], entry["regret"]
        what = "stop" if entry["kind"] == "stop" else "go on"
        than = f"at most {regret:.0%} better ({entry['probability']:.0%} asked)"
        return f"{what}: with {sure:.0%} what was not tried is {than}"
    if entry["kind"] == "drop":
        why = entry["why"]
        taken = f"checkpoints of what waits take {format_bytes(why['bytes'])}, more than {format_bytes(why['at_most'])}"
        return f"the training of decision {entry['trial']} is dropped: {taken}"
    reason = {"given_up": "it failed as often as it may", "infeasible": "memory ran out"}[entry["kind"]]
    return f"decision {entry['of']} is {entry['kind'].replace('_', ' ')}: {reason}"


def reason_of(entry: Mapping[str, Any]) -> str:
    """Return why something was asked."""
    why = entry["why"]
    if entry["kind"] == "confirm":
        of = f" in {why['objective']}" if "objective" in why else ""
        return f"confirms decision {entry['trial']}, place {why['place']}{of}, with seed {entry['with_seed']}"
    if entry["kind"] == "promote":
        return f"promoted to rung {entry['rung'] + 1}: place {why['place']} of {why['of']} below"
    again = f", proposal {entry['try'] + 1}, for earlier ones had been asked" if entry["try"] else ""
    if entry["sampler"] == "portfolio":
        return "best of another model"
    if entry["sampler"] == "start":
        return f"start{again}"
    if "gain" in why:
        expected = why["expected"][why["objective"]]
        aim = f"best of {why['objective']}" + (" of its model" if why["model"] else "")
        return f"{aim}: expects {expected['mean']:.4g} ± {1.96 * expected['sd']:.2g}, gain {why['gain']:.2g}{again}"
    known = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in why["given"].items()) or "none"
    return f"{entry['sampler']} by outcomes: {known}; {why['pending']} pending{again}"


def stale_text(numbers: Sequence[int]) -> str:
    """Return what it means that decisions have no longer the outcome that later ones were given."""
    which = f"decision {', '.join(map(str, numbers))}"
    return (
        f"later decisions rest on an outcome of {which} that the ledger has no longer: nothing more is decided until "
        "it is the same again; another `seed` makes another search, for which all that the ledger has counts"
    )


def as_text(value: Any) -> str:
    """Return a value of an axis without digits that say nothing."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def outcome_text(outcome: Outcome | None) -> str:
    """Return what came of a decision: its scores with their 95 % intervals, where answers differ."""
    if outcome is None:
        return "pending"
    if outcome.kind != "complete":
        return outcome.kind.replace("_", " ")
    parts = []
    for name, value in sorted(outcome.values.items()):
        error = outcome.errors.get(name)
        spread = "" if error is None else f" ± {1.96 * error:.2g}" if error else " (all answers alike)"
        parts.append(f"{name} {value:.4g}{spread}")
    return ", ".join(parts)
