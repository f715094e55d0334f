"""What the tracker shows of a cell that a search asked for: by which decision, and at which rung."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from massive_sft.ledger.storage import Root
from massive_sft.search.plan import plan_searches
from massive_sft.sweep.load import Sweep

SEARCH, DECISION, RUNG = SEARCH_TAGS = ("massive_sft.search", "massive_sft.decision", "massive_sft.rung")


def search_tags(sweep: Sweep, storage: Root) -> dict[str, dict[str, str]]:
    """Return the tags of every cell that the searches of a sweep have asked for so far, by its id."""
    found: dict[str, dict[str, str]] = {}
    for one in plan_searches(sweep):
        found |= tags_of(one.search.name, one.log(storage).read())
    return found


def tags_of(search: str, entries: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Return the tags of the cells that decisions of a search asked for, by their ids."""
    return {
        entry["cell"]: {SEARCH: search, DECISION: str(entry["n"])}
        | ({RUNG: str(entry["rung"] + 1)} if "rung" in entry else {})
        for entry in entries
        if "cell" in entry
    }
