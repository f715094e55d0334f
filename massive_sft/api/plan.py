"""Plan a sweep file, and pin what it takes from the hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from massive_sft.ledger.store import Ledger
from massive_sft.planning.plan import Plan, StatesOf
from massive_sft.planning.selection import parse_where, select_cells
from massive_sft.search.plan import make_whole_plan
from massive_sft.sweep.load import load_sweep
from massive_sft.sweep.paths import Paths, listed


def plan(file: str | Path, overlays: Paths = (), where: str | None = None) -> Plan:
    """Return what a sweep file asks for, what its storage root already holds, and what is left; nothing is written.

    Args:
        file: the sweep file.
        overlays: files merged over it, or one.
        where: only these cells, as ``--where``: ``"method=lora and epoch!=1"``.

    Raises:
        InvalidInput: with everything that is wrong with the file, or with ``where``.
        Unsupported: a newer version of massive-sft made the storage root.
    """
    selection = parse_where(where)
    return select_cells(_planned(file, overlays, Ledger.listed_states), selection)


def sound_plan(file: str | Path, overlays: Paths = ()) -> Plan:
    """Return a sweep file's plan as ``plan``, after a look at the file of every record, for what acts on the plan.

    So what was edited or damaged in place does not count. Errors are those of ``plan``.
    """
    return _planned(file, overlays, Ledger.states)


def _planned(file: str | Path, overlays: Paths, states_of: StatesOf) -> Plan:
    sweep = load_sweep(Path(file), listed(overlays))
    return make_whole_plan(sweep, states_of)


def pin_revisions(whole: Plan, say: Callable[[str], None]) -> Plan:
    """Return the plan with hub revisions as commits; the hub library takes half a second, so only where one is none.

    A plan that lacks local files stays as it is: the check that follows refuses it, with all else that is wrong.
    Raises InvalidInput where neither the hub nor this node has a revision.
    """
    if not whole.unpinned or whole.missing:
        return whole
    from massive_sft.running.revision_pinning import pin

    return pin(whole, say)
