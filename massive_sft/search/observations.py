"""What a search knows and what it answers: spaces of candidates, outcomes, targets, proposals, verdicts.

Plain values, so that deciding stays a function of them. A candidate is known by its index in ``Space.candidates``;
which cell that is, is the caller's business. Values of objectives are always better when larger: who minimizes hands
over negated values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from massive_sft.core.errors import InvalidInput, Problem

Value = str | float | Mapping[str, float]
"""Of a candidate in one factor: a level of a category, a number, or shares by dataset."""
_SUM = 1e-6  # how far the shares of a mixture may be from 1 in sum


@dataclass(frozen=True)
class Factor:
    """One thing that candidates differ in.

    Attributes:
        name: as it is shown: ``model``, ``mixture``, ``lr``.
        kind: ``category``: values are of ``levels``, none nearer to another; ``number``: values are numbers;
            ``mixture``: values are shares of ``levels`` that sum to 1, those left out being 0.
        levels: of a category its values, of a mixture its datasets.
        log: whether ratios of a number count, not differences: learning rates, ranks, batch sizes.
    """

    name: str
    kind: Literal["category", "number", "mixture"]
    levels: tuple[str, ...] = ()
    log: bool = False


@dataclass(frozen=True)
class Space:
    """The candidates of a search, in a fixed order: each has one value a factor, in the order of ``factors``.

    Raises InvalidInput, naming the candidate and the factor, for a space without candidates or with a value that does
    not fit its factor.
    """

    factors: tuple[Factor, ...]
    candidates: tuple[tuple[Value, ...], ...]

    def __post_init__(self) -> None:
        if not self.candidates:
            raise InvalidInput(Problem("space", "must have at least one candidate"))
        problems = []
        for index, values in enumerate(self.candidates):
            if len(values) != len(self.factors):
                rule = f"must have one value for each of {len(self.factors)} factors"
                problems.append(Problem(f"space: candidate {index}", rule, len(values)))
                continue
            for factor, value in zip(self.factors, values, strict=True):
                broken = _broken_rule(factor, value)
                if broken is not None:
                    problems.append(Problem(f"space: candidate {index}: {factor.name}", broken, value))
        if problems:
            raise InvalidInput(problems)

    def levels_of(self, name: str) -> tuple[str, ...]:
        """Return the level of each candidate in a category factor."""
        for position, factor in enumerate(self.factors):
            if factor.name == name and factor.kind == "category":
                return tuple(str(values[position]) for values in self.candidates)
        choices = [factor.name for factor in self.factors if factor.kind == "category"]
        raise InvalidInput(Problem("for_each", "must be a factor that is a category", name, choices))


@dataclass(frozen=True)
class Target:
    """What a search is to find: the best candidate of each objective, or of each objective and level of a factor.

    Attributes:
        objectives: their names, in the order of ``Outcome.values``.
        for_each: a category factor (``model``): one answer for each of its levels; None: one for the whole space.
    """

    objectives: tuple[str, ...]
    for_each: str | None = None

    def __post_init__(self) -> None:
        if not self.objectives:
            raise InvalidInput(Problem("objective", "must name at least one"))


@dataclass(frozen=True)
class Outcome:
    """What came of a candidate that was tried. Several of one candidate, as of several seeds, are allowed.

    Attributes:
        candidate: its index in the space.
        values: one an objective, larger is better; NaN where one is not known.
        variances: of the values, as far as they come from the questions asked (squared standard errors); NaN or left
            out: not known, then the surrogate finds it.
        status: ``complete``; ``diverged``: counts as the worst complete value of its objective less one standard
            deviation, whatever its values; ``pending``: asked and not known yet.
    """

    candidate: int
    values: tuple[float, ...] = ()
    variances: tuple[float, ...] = ()
    status: Literal["complete", "diverged", "pending"] = "complete"


@dataclass(frozen=True)
class Proposal:
    """A candidate to try next, and why.

    Attributes:
        candidate: its index in the space.
        mean, sd: what the surrogate expects of each objective, in the objective's own unit.
        acquisition: the expected gain, as a share of the spread of the values known; 0 where nothing was to choose by.
        objective, level: the answer that it is expected to better most; None where it is of the start.
    """

    candidate: int
    mean: tuple[float, ...]
    sd: tuple[float, ...]
    acquisition: float
    objective: str | None = None
    level: str | None = None


@dataclass(frozen=True)
class Standing:
    """How good one answer of a search is.

    Attributes:
        objective, level: which answer; ``level`` is None where the target has no ``for_each``.
        incumbent: the candidate with the best value seen, by its index; None where there is none yet.
        value: that value, the mean over its outcomes.
        regret: how much the best candidate is expected to be better than the incumbent, relative to that best.
        probability: that it is better by no more than the regret asked for.
    """

    objective: str
    level: str | None
    incumbent: int | None
    value: float
    regret: float
    probability: float


@dataclass(frozen=True)
class Verdict:
    """Whether a search may stop.

    Attributes:
        stop: whether ``probability`` is as high as asked for.
        probability: that the mean regret over all answers is no more than asked for.
        regret: the expected mean regret.
    """

    stop: bool
    probability: float
    regret: float
    standings: tuple[Standing, ...]


def _broken_rule(factor: Factor, value: Value) -> str | None:
    """Return the rule of its factor that a value breaks; None if it breaks none."""
    if factor.kind == "category":
        return None if value in factor.levels else f"must be one of {', '.join(factor.levels)}"
    if factor.kind == "number":
        if not isinstance(value, int | float) or not math.isfinite(value):
            return "must be a finite number"
        return "must be > 0, for its logarithm counts" if factor.log and value <= 0 else None
    if not isinstance(value, Mapping) or not set(value) <= set(factor.levels):
        return f"must be shares of {', '.join(factor.levels)}"
    if min(value.values(), default=0.0) < 0 or abs(sum(value.values()) - 1) > _SUM:
        return "must be shares >= 0 that sum to 1"
    return None
