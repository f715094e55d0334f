"""Hub revisions that may move become commits before anything is done under the ids that hang on them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.core.files import json_bytes
from massive_sft.ledger.store import Ledger
from massive_sft.models import hub
from massive_sft.planning.lock import LOCK, lock_content
from massive_sft.planning.plan import Plan
from massive_sft.search.plan import make_whole_plan
from massive_sft.sweep.content import Commits

ASKED_AT_ONCE = 8


def pin(plan: Plan, say: Callable[[str], None]) -> Plan:
    """Return the plan with every hub revision it uses pinned to a commit, which the sweep's ``lock.json`` keeps.

    The commit is the hub's of now; where nobody answers or ``HF_HUB_OFFLINE`` is set, that of the snapshot in this
    node's cache. What was pinned before stays; ``massive-sft fetch`` moves it.

    Args:
        plan: of the whole sweep.
        say: called with each commit.

    Raises:
        InvalidInput: neither the hub nor this node has a revision, with every one of which that is so.
        LedgerError: the storage root cannot be written.
    """
    if not plan.unpinned:
        return plan
    repositories = _unpinned(plan)
    with ThreadPoolExecutor(ASKED_AT_ONCE) as threads:
        answers = list(threads.map(_commit, repositories))
    problems = [problem for _, found in answers for problem in found]
    if problems:
        raise InvalidInput(problems)
    place = plan.open_ledger().sweep(plan.sweep.file.name)
    lock = lock_content(place)
    commits = Commits.model_validate(lock["commits"])
    for repository, (commit, _) in zip(repositories, answers, strict=True):
        known = (commits.models if repository.kind == "model" else commits.datasets).setdefault(repository.id, {})
        known.setdefault(repository.revision, commit)
        say(f"pinned {repository.id}@{repository.revision} to {known[repository.revision][:12]}")
    place.put(LOCK, json_bytes(lock | {"commits": commits.model_dump(mode="json")}))
    return make_whole_plan(plan.sweep, Ledger.states)


def _unpinned(plan: Plan) -> list[hub.Repository]:
    """Return the repositories of the models and datasets that ``plan.unpinned`` speaks of, each once."""
    file = plan.sweep.file
    named: dict[str, Any] = {f"models.{name}.hub": model for name, model in file.models.items()}
    named |= {f"datasets.{name}.hub": dataset for name, dataset in file.datasets.items()}
    places = [item.place for item in plan.unpinned]
    found = (hub.repository_of(named[place.partition(": ")[2]], place) for place in places)
    return list({(one.kind, one.id, one.revision): one for one in found}.values())


def _commit(repository: hub.Repository) -> tuple[str, list[Problem]]:
    try:
        return hub.resolve(repository).commit, []
    except InvalidInput as error:
        here = hub.cached(repository.kind, repository.id, repository.revision)
        return (here.name, []) if here is not None else ("", error.problems)
