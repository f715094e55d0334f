"""A search's id: the hash of what decides its sequence, and of nothing else.

Not in it: names, trials, budgets, when to stop, lanes. So a search goes on when it is to try more, and a changed space
is another search.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from massive_sft.core.fingerprint import fingerprint
from massive_sft.search.cells import CellSpace
from massive_sft.search.outcomes import objective_names
from massive_sft.search.space import Space
from massive_sft.sweep.content import Contents
from massive_sft.sweep.identity import schedule_content, setting_content
from massive_sft.sweep.schema import Mean
from massive_sft.sweep.semantics import TRAIN_SEMANTICS

SEARCH_SEMANTICS = 1
"""Of deciding: bumped when a fix changes what a search decides, so that a log of before is not gone on with."""
RUNG_SEMANTICS = 2
"""As ``SEARCH_SEMANTICS``, of searches with rungs alone."""


def search_content(
    space: Space | CellSpace, contents: Contents, asked: Mapping[str, Sequence[str]], start: int, sampler: str
) -> dict[str, Any]:
    """Return what a search is, as JSON values.

    Args:
        asked: what of the sweep gives each name that the search looks at, as ids of requirements.
        start: choices of each group before the sampler proposes.
        sampler: that proposes.
    """
    search = space.search
    objective = search.objective
    written = objective.maximize or objective.minimize
    how = written.scale if isinstance(written, Mean) else "each"
    return {
        "search_semantics": SEARCH_SEMANTICS,
        "train_semantics": TRAIN_SEMANTICS,
        "space": space.content(contents),
        **_trained(space),
        "objective": {
            "better": "high" if objective.maximize is not None else "low",
            "of": [list(asked[name]) for name in objective_names(search)],
            "as": how,
            **({"for_each": "model"} if isinstance(space, CellSpace) and objective.for_each else {}),
        },
        "constraints": [
            {"of": list(asked[name]), **{side: getattr(bound, side) for side in ("at_least", "at_most")}}
            for name, bound in search.constraints.items()
        ],
        **({"rungs": {"keep": search.rungs.keep, "semantics": RUNG_SEMANTICS}} if search.rungs else {}),
        "sampler": sampler,
        "start": start,
        **({"portfolio": search.start.portfolio} if search.start.portfolio else {}),
        "seed": search.seed,
        "at_once": search.at_once,
        "order": search.order,
    }


def _trained(space: Space | CellSpace) -> dict[str, Any]:
    """Return what is the same of all that a search trains; of one over cells that is in their ids."""
    if isinstance(space, CellSpace):
        return {}
    search = space.search
    # What the space replaces is the same wherever the setting had it.
    setting = space.point(*space.corners()[0]).variant.setting
    return {
        "setting": {**setting_content(setting), "seed": setting.seed},
        "schedule": schedule_content(search.schedule, search.horizon),
        "snapshots": list(space.snapshots),
    }


def search_id(content: Mapping[str, Any]) -> str:
    """Return the id of what ``search_content`` returned."""
    return fingerprint(content)
