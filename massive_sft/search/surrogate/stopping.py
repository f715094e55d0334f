"""Whether a search may stop: how much better the best candidate may yet be than the best one seen.

What was not tried is drawn jointly from what is expected of it, many times. In each draw the regret of an answer is how
far its incumbent lies below the best of the draw, relative to that best (where values have both signs, to their range);
the mean over the answers is what is judged. Only what was observed can be an incumbent, however sure its prediction.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.search.observations import Outcome, Space, Standing, Target, Verdict
from massive_sft.search.surrogate.asking import MIN_KNOWN, Answers, check_outcomes
from massive_sft.search.surrogate.kernels import Array, Features, Indices
from massive_sft.search.surrogate.model import Known, Model, fit_model
from massive_sft.search.surrogate.threads import one_thread

DRAWS = 1000
MAX_JOINT = 512  # candidates drawn together; those that could be best by three deviations come first


@one_thread
def judge(
    space: Space,
    target: Target,
    outcomes: Sequence[Outcome],
    seed: int,
    regret: float,
    probability: float,
    given_up: Collection[int] = (),
) -> Verdict:
    """Judge how good the answers are.

    Args:
        seed: of the draws.
        regret: the mean regret over the answers that is good enough, relative: 0.05 is 5 %.
        probability: how sure that must be.
        given_up: candidates without an outcome that are not tried any more.

    Raises InvalidInput for a regret or a probability out of (0, 1), or outcomes that do not fit.
    """
    check_outcomes(space, target, outcomes)
    limits = {"regret": regret, "probability": probability}
    problems = [Problem(f"stop.{name}", "must be > 0 and < 1", value) for name, value in limits.items()]
    if not all(0 < value < 1 for value in limits.values()):
        raise InvalidInput([problem for problem in problems if not 0 < problem.value < 1])
    features, answers = Features.of(space), Answers.of(space, target)
    tried = {outcome.candidate for outcome in outcomes if outcome.status != "pending"}.union(given_up)
    untried = np.array([index for index in range(len(space.candidates)) if index not in tried], dtype=np.intp)
    standings: list[Standing] = []
    regrets = []
    for position, objective in enumerate(target.objectives):
        known = Known.of(outcomes, position)
        generator = np.random.default_rng([seed, position])
        drawn = _drawn(features, known, untried, generator)
        for level, name in enumerate(answers.names):
            best = known.best(answers.of_candidate == level)
            of_level = None if drawn is None else drawn[1][:, answers.of_candidate[drawn[0]] == level]
            found = regrets_of(known, None if best is None else best[1], of_level)
            regrets.append(found)
            sure = float((found <= regret).mean())
            incumbent, value = (None, float("nan")) if best is None else best
            standings.append(Standing(objective, name, incumbent, value, float(found.mean()), sure))
    mean = np.mean(regrets, axis=0)
    sure = float((mean <= regret).mean())
    return Verdict(sure >= probability, sure, float(mean.mean()), tuple(standings))


def _drawn(
    features: Features, known: Known, untried: Indices, generator: np.random.Generator
) -> tuple[Indices, Array] | None:
    """Return the untried candidates that may be best and their draws [draws, candidates]; None before much is known."""
    if len(known.rows) < MIN_KNOWN or not features.kinds:
        return None
    if not len(untried):
        return untried, np.zeros((DRAWS, 0))
    model = fit_model(features, known)
    likely = _likely(model, untried)
    return likely, model.draws(likely, DRAWS, generator)


def _likely(model: Model, untried: Indices) -> Indices:
    """Return at most ``MAX_JOINT`` of the candidates, in their order: those with the highest upper bounds."""
    if len(untried) <= MAX_JOINT:
        return untried
    mean, sd = model.moments(untried, np.zeros(0, dtype=np.intp))
    return np.sort(untried[np.argsort(-(mean + 3 * sd), kind="stable")[:MAX_JOINT]])


def regrets_of(known: Known, incumbent: float | None, drawn: Array | None) -> Array:
    """Return an answer's regret in each draw [draws]; 1, all of it, where there is no incumbent or nothing is known."""
    if incumbent is None or drawn is None:
        return np.ones(DRAWS)
    if not drawn.shape[1]:
        return np.zeros(len(drawn))
    best = np.maximum(drawn.max(axis=1), incumbent)
    return (best - incumbent) / known.sizes(best)
