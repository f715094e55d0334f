"""What a search has not tried, and why."""

from __future__ import annotations

from collections.abc import Iterator

from massive_sft.core.wording import counted
from massive_sft.search.cells import CANDIDATE, CellSpace
from massive_sft.search.coordinates import coordinates
from massive_sft.search.decider import points_of, trials_of
from massive_sft.search.deciding_cells import observed
from massive_sft.search.promoting import trial_of
from massive_sft.search.rules import Given
from massive_sft.search.standing import Standing

SHOWN = 3  # cells that were not tried and of which most was expected


def untried(one: Standing) -> Iterator[str]:
    """Yield sentences on what was not tried, or not to its end, and why."""
    space = one.planned.space
    size = points_of(space)
    if size is not None and size > len(one.asks):
        yield f"{size - len(one.asks):,} of {size:,} cells were not tried: {_why(one)}"
    elif size is None:
        yield f"its ranges hold more values than were tried: {_why(one)}"
    for axis in coordinates(space, one.asks):
        if axis.untried and not isinstance(space, CellSpace):
            yield f"{axis.name} was never {', '.join(axis.untried)}"
    yield from _not_to_the_end(one)
    if isinstance(space, CellSpace) and size != len(one.asks):
        yield from _promising(one, space)


def _why(one: Standing) -> str:
    """Return why nothing more is tried."""
    search = one.planned.search
    if any(entry["kind"] == "stop" for entry in one.entries) and not one.left:
        return "by the rule to stop, what is left is not worth it"
    if one.left and not one.is_over:
        return "the search is not over"
    most = trials_of(one.planned.space)
    if search.trials is not None and len(one.asks) >= most:
        return f"trials: {most} is used up"
    return f"budget.gpu_hours: {search.budget.gpu_hours:g} is used up" if search.budget.gpu_hours else "it is over"


def _not_to_the_end(one: Standing) -> Iterator[str]:
    """Yield what was begun and not gone on with."""
    rungs = one.planned.search.rungs
    if rungs is not None:
        last = {trial_of(entry): entry for entry in one.trained}
        dropped = {entry["trial"] for entry in one.entries if entry["kind"] == "drop"}
        for rung, epoch in enumerate(rungs.at[:-1]):
            ended = [trial for trial, entry in last.items() if entry["rung"] == rung]
            gone = len(dropped.intersection(ended))
            if ended:
                yield (
                    f"{counted(len(ended), 'trial')} ended at epoch {epoch}: not among the better {rungs.keep:.0%} "
                    f"there; {len(ended) - gone} of them are parked, {gone} dropped"
                )
    for kind, why in (("given_up", "failed as often as it may"), ("infeasible", "found no memory")):
        numbers = [str(number) for number, outcome in sorted(one.outcomes.items()) if outcome.kind == kind]
        if numbers:
            yield f"what decision {', '.join(numbers)} asked for {why}: nothing is known of it"


def _promising(one: Standing, space: CellSpace) -> Iterator[str]:
    """Yield what is expected of the most promising cells that were not tried."""
    from massive_sft.search.surrogate.asking import propose

    told = observed(one.planned.rules, one.asks, Given(one.outcomes, one.bases))
    left = set(range(space.size)) - {int(entry["choice"][CANDIDATE]) for entry in one.asks}
    for proposal in propose(space.candidates, space.target, told, 0, left, SHOWN):
        if proposal.objective is None:
            return
        place = space.target.objectives.index(proposal.objective)
        sign = 1.0 if one.planned.search.objective.maximize is not None else -1.0
        expected = f"{sign * proposal.mean[place]:.4g} ± {1.96 * proposal.sd[place]:.2g}"
        cell = space.cells[proposal.candidate]
        yield f"of most promise: {cell.coordinates}: {proposal.objective} {expected}"
