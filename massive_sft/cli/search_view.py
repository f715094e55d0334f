"""Searches for people: what a plan says of them, how far they are, each decision with its reason."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.text import Text

from massive_sft.cli.cell_lookup import plans_here
from massive_sft.cli.options import load_plan
from massive_sft.cli.views import indented, make_table
from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.core.files import format_bytes
from massive_sft.core.wording import counted
from massive_sft.cost.duration import Quantity
from massive_sft.cost.estimate import estimate
from massive_sft.cost.formatting import figure_json, format_time
from massive_sft.cost.gpu_counts import with_gpu_counts
from massive_sft.ledger.store import Ledger
from massive_sft.planning.plan import Plan
from massive_sft.search.cells import CellSpace
from massive_sft.search.decider import trials_of
from massive_sft.search.outcomes import wanted_names
from massive_sft.search.plan import Planned, plan_points
from massive_sft.search.rules import Decision
from massive_sft.search.standing import Standing, count_recorded, find_earlier, find_standings
from massive_sft.search.view import as_text, entry_text, outcome_text, reason_of, stale_text

ERRORS_NOTE = "±: 1.96 standard errors, as searches weigh scores; `best` has their intervals"


def searches_view(plan: Plan, with_cost: bool = False) -> Group:
    """Return how far the searches of a plan are; an empty group without any.

    Args:
        with_cost: with the size of their spaces and what they may still take.
    """
    if not plan.sweep.file.search or plan.missing:
        return Group()
    ledger = Ledger(plan.storage)
    lines = [line for one in find_standings(plan.sweep, ledger) for line in _lines(one, plan, ledger, with_cost)]
    return Group(Text(), *map(indented, lines))


def searches_json(plan: Plan) -> list[dict[str, Any]]:
    """Return how far the searches of a plan are as JSON values; ``cost``: seconds of all trials that may be left."""
    if not plan.sweep.file.search or plan.missing:
        return []
    found = []
    for one in find_standings(plan.sweep, Ledger(plan.storage)):
        named = {"search": one.planned.search.name, "id": one.planned.id}
        counts = {"trials": trials_of(one.planned.space), "decided": len(one.asks), "outcomes": dict(one.counts)}
        left = {"left": one.left, "confirmations_left": one.confirmations_left}
        seconds = _longest(one, plan)[0].times(sum(left.values())) if one.is_open else None
        found.append({**named, **counts, **left, "cost": figure_json(seconds)})
    return found


def trials_left(plan: Plan) -> list[str]:
    """Return what each search may still have trained, for people: ``at most 8 more trials of search lora``."""
    if not plan.sweep.file.search:
        return []
    standings = find_standings(plan.sweep, Ledger(plan.storage))
    return [
        f"at most {_count_left(one)} of search {one.planned.search.name}, a training each"
        for one in standings
        if one.is_open
    ]


def _lines(one: Standing, plan: Plan, ledger: Ledger, with_cost: bool) -> Iterator[str]:
    search, counts = one.planned.search, one.counts
    done = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in sorted(counts.items())) or "nothing decided"
    trials = f"{len(one.asks)} of {trials_of(one.planned.space)} trials decided"
    trials += f", {one.confirmations} with other seeds to confirm the best" if one.confirmations else ""
    yield f"search {search.name} ({one.planned.id}): {trials}: {done}"
    if one.shortage:
        yield f"  {one.shortage}"
    for earlier in find_earlier(one.planned, ledger) if not one.entries else ():
        yield f"  another search than {earlier}, which had this name: what decides its sequence was changed since"
    if with_cost:
        yield f"  {_space(one.planned, ledger)}"
        yield f"  {_start(one.planned)}"
        if one.is_open:
            yield from (f"  {line}" for line in _left(one, plan))
        if one.planned.search.rungs is not None:
            yield f"  {_rungs(one)}"
    best = list(best_lines(one))
    yield from (f"  {line}" for line in best)
    if any("±" in line for line in best):
        yield f"  {ERRORS_NOTE}"
    if one.stale:
        yield f"  {stale_text(one.stale)}"
    if one.waits_for and one.left:
        yield f"  the next decision waits for the outcome of {', '.join(map(str, one.waits_for))}"


def _space(planned: Planned, ledger: Ledger) -> str:
    space = planned.space
    axes = ", ".join(axis.name for axis in space.axes)
    each = f" for each of {counted(len(space.groups), 'model')}" if len(space.groups) > 1 else ""
    if isinstance(space, CellSpace) and space.has_weights:
        listed = ", ".join(getattr(planned.search.mixture, "weights", ()))
        return f"space: {space.size:,} mixtures of {listed}; the ledger has {count_recorded(planned, ledger)} of them"
    if isinstance(space, CellSpace):
        recorded, names = count_recorded(planned, ledger), ", ".join(planned.search.over or ())
        return f"space: {counted(space.size, 'cell')} of {names}; the ledger has {recorded} of them"
    if space.size is None:
        return f"space: {axes}{each}; its ranges hold more values than are listed"
    recorded = count_recorded(planned, ledger)
    there = "" if recorded is None else f"; the ledger has {recorded} of them"
    return f"space: {axes}: {counted(space.size, 'cell')}{each}{there}"


def _start(planned: Planned) -> str:
    rules, search = planned.rules, planned.search
    order = "the same on any cluster" if search.order == "strict" else "by what is there"
    limits = [count for count in (search.trials, planned.space.size) if count is not None]
    first = min(rules.start_count, *limits)
    proposes = f"{counted(first, 'trial')} spread evenly" + ("" if first in limits else f", then {rules.sampler}")
    if isinstance(planned.space, CellSpace):
        proposes = f"{counted(planned.space.start, 'mixture')}, then" if planned.space.start else "spread out, then"
        proposes += " a Gaussian process over all candidates"
    taken_over = search.start.portfolio
    others = f"{taken_over} of what was best for other models in the ledger, " if taken_over else ""
    start = f"start: {others}{proposes}"
    return f"{start}; at most {search.at_once} without an outcome; {order}"


def _rungs(one: Standing) -> str:
    """Return what rungs keep, and what parked trainings may come to."""
    search, rules = one.planned.search, one.planned.rules
    assert search.rungs is not None
    sizes = [rules.state_bytes(rules.model_of(choice, group)) for choice, group in one.planned.space.corners()]
    most = max(sizes) * (search.trials or 0)
    limit = "" if rules.parked_most is None else f", beyond {format_bytes(rules.parked_most)} the worst are dropped"
    at = ", ".join(map(str, search.rungs.at))
    parked = f"at most {format_bytes(most)} of checkpoints are parked" if most else "what a checkpoint takes is unknown"
    return f"rungs at epochs {at}: {search.rungs.keep:.0%} of each go on; {parked}{limit}"


def _longest(one: Standing, plan: Plan) -> tuple[Quantity, Quantity]:
    """Return the seconds of the trial that takes longest of those that stand for all, and of GPUs in it.

    Where no GPU is used, both are those of this machine.
    """
    space = one.planned.space
    if isinstance(space, CellSpace):
        points = [space.point(choice) for choice in space.longest()]
    else:
        points = [space.point(choice, group) for choice, group in (*space.corners(), *space.corners(1.0))]
    # As if the ledger had none of them: what is left to do has not been tried.
    costs = [estimate(with_gpu_counts(plan_points(plan.sweep, [point], lambda *_: {}))) for point in points]
    took = [cost.training + cost.evaluation for cost in costs]
    used = [each if cost.gpu_seconds is None else cost.gpu_seconds for cost, each in zip(costs, took, strict=True)]
    return _most(took), _most(used)


def _most(figures: Sequence[Quantity]) -> Quantity:
    """Return the largest figure, as sure and as complete as all are."""
    largest = max(figures, key=lambda each: each.value)
    return Quantity(largest.value, all(each.sure for each in figures), all(each.complete for each in figures))


def _left(one: Standing, plan: Plan) -> Iterator[str]:
    """Yield what the trials that are left take if each takes as long as the longest, and what the budget says to it."""
    took, used = _longest(one, plan)
    hours, most = one.planned.search.budget.gpu_hours, one.left + one.confirmations_left
    yield f"at most {_count_left(one)}: training and scoring {format_time(took.times(most))}, one after another"
    if hours is not None:
        line = f"budget: {hours:g} GPU-hours (of this machine, without GPUs) end it, whatever comes first"
        first = one.planned.rules.start_count * max(1, len(one.planned.space.groups))
        if used.complete and used.times(first).value > hours * 3600:
            line += (
                f"; that is less than its start may take: {counted(first, 'trial')}, {format_time(used.times(first))}"
            )
        yield line


def _count_left(one: Standing) -> str:
    confirming = f" and {one.confirmations_left} that confirm the best" if one.confirmations_left else ""
    return f"{counted(one.left, 'more trial')}{confirming}"


def best_lines(one: Standing) -> Iterator[str]:
    """Yield what is best so far, of each answer that is asked for."""
    for answer in one.answers:
        of = f" of {answer.of}" if answer.of else ""
        for entry in answer.entries:
            what = "best" if len(answer.entries) == 1 else "none is better in all than"
            outcome = outcome_text(one.outcomes.get(entry["n"]))
            alike = [other for other in one.as_good_as(entry) if not answer.of or other["model"] == entry["model"]]
            outcome += f"; as good: decision {', '.join(str(other['n']) for other in alike)}" if alike else ""
            yield f"{what}{of}: {entry['cell']}, decision {entry['n']}: {_values(one.planned, entry)}: {outcome}"
            if again := one.confirmed(entry):
                yield f"  with {counted(len(again), 'other seed')}: {'; '.join(map(outcome_text, again))}"


def _values(planned: Planned, entry: Decision) -> str:
    return ", ".join(f"{name} {as_text(value)}" for name, value in planned.space.named(entry["choice"]).items())


def find_search(name: str, sweep: Path | None, overlays: Sequence[Path] | None) -> Standing | None:
    """Return the search of a name: of a sweep file, or of those in the current folder; None where it may be a cell's.

    Raises InvalidInput where there are searches, and the name is neither one's nor what an id could begin with.
    """
    plans = [load_plan(sweep, overlays)] if sweep is not None and not sweep.is_dir() else list(plans_here(sweep))
    found = {search.name: plan for plan in reversed(plans) for search in plan.sweep.file.search}
    if name in found:
        standings = find_standings(found[name].sweep, Ledger(found[name].storage))
        return next(one for one in standings if one.planned.search.name == name)
    if found and not re.fullmatch("[0-9a-f]+", name):
        rule = "must be the beginning of a cell's id (`massive-sft status SWEEP` lists them) or the name of a search"
        raise InvalidInput(Problem("cell", rule, name, tuple(found)))
    return None


def search_view(one: Standing) -> Group:
    """Return each decision of a search with its reason and what came of it."""
    table = make_table("n", "cell", "what", "outcome", "why", right=("n",))
    best = {entry["n"] for entry in one.best}
    for entry in one.entries:
        if "cell" not in entry:
            table.add_row(str(entry["n"]), "", Text(entry_text(entry)))
            continue
        group = one.planned.group(entry)
        what = _values(one.planned, entry) + (f" ({group})" if len(one.planned.space.groups) > 1 else "")
        outcome = outcome_text(one.outcomes.get(entry["n"]))
        style = "bold" if entry["n"] in best else ""
        table.add_row(str(entry["n"]), entry["cell"], what, outcome, reason_of(entry), style=style)
    names = ", ".join(wanted_names(one.planned.search))
    head = f"search {one.planned.search.name} ({one.planned.id}) looks at {names}; bold: the best so far; {ERRORS_NOTE}"
    return Group(Text(head), table, *([Text(stale_text(one.stale))] if one.stale else ()))


def search_json(one: Standing) -> dict[str, Any]:
    """Return a search as JSON values; what a decision chose is ``values``, as the sweep file would have it.

    ``choice``, on which its hash rests, has positions of axes that are lists.
    """
    outcomes = {str(number): outcome.as_json() for number, outcome in sorted(one.outcomes.items())}
    best = [entry["n"] for entry in one.best]
    return {
        "schema": 1,
        "search": one.planned.search.name,
        "id": one.planned.id,
        "decisions": [{**entry, "values": one.planned.named(entry)} for entry in one.entries],
        "outcomes": outcomes,
        "best": best,
        "waits_for": list(one.waits_for),
        "stale": list(one.stale),
    }
