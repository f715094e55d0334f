"""Which candidate to try next: the one that is expected to better the answers most.

An answer is the best candidate of an objective, or of an objective and a level of ``Target.for_each``. A candidate's
acquisition is the expected improvement of the best value of its own level, summed over the objectives. Gains are made
comparable by dividing by the root of the incumbent's size: relative gains are what is to be had, but the error of what
is expected of a level grows with its values.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.search.observations import Outcome, Proposal, Space, Target
from massive_sft.search.surrogate.kernels import Array, Features, Indices
from massive_sft.search.surrogate.model import Known, Model, fit_model
from massive_sft.search.surrogate.threads import one_thread

LEAST_SIZE = 0.01  # of the largest value, that a best value counts as where gains are relative to it
MIN_KNOWN = 2  # outcomes, with fewer of which candidates are spread out instead


@dataclass(frozen=True, eq=False)
class Answers:
    """The levels that answers are sought for: names, and of each candidate [candidates] the index of its own."""

    names: tuple[str | None, ...]
    of_candidate: Indices

    @classmethod
    def of(cls, space: Space, target: Target) -> Answers:
        """Return the answers that a target asks of a space."""
        if target.for_each is None:
            return cls((None,), np.zeros(len(space.candidates), dtype=np.intp))
        levels = space.levels_of(target.for_each)
        names = tuple(dict.fromkeys(levels))
        place = {name: index for index, name in enumerate(names)}
        return cls(names, np.array([place[level] for level in levels], dtype=np.intp))

    def incumbents(self, known: Known) -> Array:
        """Return the best value of each level; of one without any, the worst value of all."""
        found = [known.best(self.of_candidate == level) for level in range(len(self.names))]
        return np.array([known.values.min() if best is None else best[1] for best in found])


@one_thread
def propose(
    space: Space,
    target: Target,
    outcomes: Sequence[Outcome],
    seed: int,
    allowed: Collection[int] | None = None,
    count: int = 1,
) -> tuple[Proposal, ...]:
    """Propose the next candidates, of those that no outcome names.

    Args:
        outcomes: of this search, pending ones among them, in any order.
        seed: of the choice where nothing is known yet.
        allowed: the candidates that may be proposed; None: all.
        count: how many; each is proposed as if those before it were pending.

    Returns:
        As many proposals as asked for, fewer where candidates run out: none is proposed twice.

    Raises InvalidInput for an outcome of no candidate or without a value for each objective.
    """
    check_outcomes(space, target, outcomes)
    tried = {outcome.candidate for outcome in outcomes}
    pending = [outcome.candidate for outcome in outcomes if outcome.status == "pending"]
    choices = range(len(space.candidates)) if allowed is None else sorted(allowed)
    rest = [candidate for candidate in choices if candidate not in tried]
    knowns = [Known.of(outcomes, objective) for objective in range(len(target.objectives))]
    features = Features.of(space)
    if not features.kinds or min(len(known.rows) for known in knowns) < MIN_KNOWN:
        return _spread_out(space, target, sorted(tried), rest, seed, count)
    answers = Answers.of(space, target)
    models = [fit_model(features, known) for known in knowns]
    incumbents = [answers.incumbents(known) for known in knowns]
    sizes = [_sizes(known, best) for known, best in zip(knowns, incumbents, strict=True)]
    found: list[Proposal] = []
    for _ in range(min(count, len(rest))):
        found.append(_best_of(target, answers, models, incumbents, sizes, rest, pending))
        pending.append(found[-1].candidate)
        rest.remove(found[-1].candidate)
    return tuple(found)


def check_outcomes(space: Space, target: Target, outcomes: Sequence[Outcome]) -> None:
    """Raise InvalidInput for outcomes that do not fit the space or the target."""
    problems = []
    for index, outcome in enumerate(outcomes):
        if not 0 <= outcome.candidate < len(space.candidates):
            rule = f"must be a candidate of the space, 0 to {len(space.candidates) - 1}"
            problems.append(Problem(f"outcome {index}", rule, outcome.candidate))
        elif outcome.status == "complete" and len(outcome.values) != len(target.objectives):
            rule = f"must have a value for each of {', '.join(target.objectives)}"
            problems.append(Problem(f"outcome {index}", rule, outcome.values))
        elif outcome.status == "complete" and np.isinf(outcome.values).any():
            problems.append(Problem(f"outcome {index}", "must have finite values, or NaN", outcome.values))
    if problems:
        raise InvalidInput(problems)


def _sizes(known: Known, best: Array) -> Array:
    """Return what gains over the best values are relative to.

    Where all is 0 yet no gain counts, for an objective that nothing has reached would have every proposal.
    """
    least = LEAST_SIZE * float(np.abs(known.values).max())
    return np.maximum(known.sizes(best), least) if least > 0 else np.full(best.shape, np.inf)


def _best_of(
    target: Target,
    answers: Answers,
    models: Sequence[Model],
    incumbents: Sequence[Array],
    sizes: Sequence[Array],
    rest: Sequence[int],
    pending: Sequence[int],
) -> Proposal:
    """Return the candidate of the rest with the largest acquisition, the first of equals."""
    asked, waiting = np.array(rest, dtype=np.intp), np.array(pending, dtype=np.intp)
    level = answers.of_candidate[asked]
    gains = []
    for model, best, size in zip(models, incumbents, sizes, strict=True):
        gains.append(model.gain(asked, waiting, best[level]) / np.sqrt(size[level] * size.mean()))
    total = np.sum(gains, axis=0)
    place = int(np.argmax(total))
    chosen = asked[place : place + 1]
    moments = [model.moments(chosen, waiting) for model in models]
    largest = int(np.argmax([gain[place] for gain in gains]))
    return Proposal(
        candidate=int(chosen[0]),
        mean=tuple(float(mean[0]) for mean, _ in moments),
        sd=tuple(float(sd[0]) for _, sd in moments),
        acquisition=float(total[place]),
        objective=target.objectives[largest],
        level=answers.names[int(level[place])],
    )


def _spread_out(
    space: Space, target: Target, tried: Sequence[int], rest: Sequence[int], seed: int, count: int
) -> tuple[Proposal, ...]:
    """Return candidates of the rest by lot, levels and categories that were tried least first."""
    unknown = (float("nan"),) * len(target.objectives)
    seen = [space.candidates[index] for index in tried]
    generator = np.random.default_rng(seed)
    order = [rest[place] for place in generator.permutation(len(rest))]
    categories = [position for position, factor in enumerate(space.factors) if factor.kind == "category"]
    found = []
    for _ in range(min(count, len(order))):
        counts = [_counts(seen, position) for position in categories]

        def tried_before(index: int, counts: Sequence[dict[object, int]] = counts) -> int:
            values = space.candidates[index]
            return sum(of.get(values[position], 0) for of, position in zip(counts, categories, strict=True))

        chosen = min(order, key=tried_before)
        order.remove(chosen)
        seen.append(space.candidates[chosen])
        found.append(Proposal(chosen, unknown, unknown, 0.0))
    return tuple(found)


def _counts(seen: Sequence[tuple[object, ...]], position: int) -> dict[object, int]:
    """Return how often each value of a factor was seen."""
    counts: dict[object, int] = {}
    for values in seen:
        counts[values[position]] = counts.get(values[position], 0) + 1
    return counts
