"""How much each axis of a space matters for what a search looked at, as far as its trials can tell.

The share of the variance of the scores between the values of an axis (omega squared: what chance makes is taken off),
of each axis by itself. A sampler tries mostly what is good, so this is of what was tried and not of the space.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from massive_sft.search.coordinates import Coordinate

LEAST = 8  # trials, with fewer of which nothing is said
DRAWS = 400  # of trials with replacement for the interval, and of scores in another order for what chance gives
PARTS = 3  # that a range is cut into, of as many trials each


@dataclass(frozen=True)
class Importance:
    """What one axis explains.

    Attributes:
        name: of the axis.
        share: of the variance, 0 to 1.
        low, high: its 95 % interval.
        by_chance: the share that 95 % of axes stay below which mean nothing.
    """

    name: str
    share: float
    low: float
    high: float
    by_chance: float

    @property
    def is_sure(self) -> bool:
        """Whether it is more than chance gives."""
        return self.share > self.by_chance


def importances(axes: Sequence[Coordinate], values: Sequence[float], seed: int = 0) -> list[Importance]:
    """Return what axes explain of values, one a trial, the most first; nothing with fewer trials than tell."""
    if len(values) < LEAST:
        return []
    scores, generator = np.array(values), np.random.default_rng(seed)
    count, found = len(scores), []
    for axis in axes:
        groups = _groups(axis)
        again = (generator.integers(0, count, count) for _ in range(DRAWS))
        drawn = [_explained(groups[rows], scores[rows]) for rows in again]
        chance = [_explained(groups, generator.permutation(scores)) for _ in range(DRAWS)]
        low, high = (float(np.quantile(drawn, end)) for end in (0.025, 0.975))
        share = _explained(groups, scores)
        found.append(Importance(axis.name, share, low, high, float(np.quantile(chance, 0.95))))
    return sorted(found, key=lambda one: (-one.share, one.name))


def _groups(axis: Coordinate) -> NDArray[np.intp]:
    """Return the group of each trial: its value's, or the part of the range that it is in."""
    if axis.is_range:
        order = np.argsort(np.argsort(axis.shares, kind="stable"), kind="stable")
        return order * PARTS // len(order)
    levels: list[Hashable] = list(dict.fromkeys(axis.levels))
    return np.array([levels.index(level) for level in axis.levels], dtype=np.intp)


def _explained(groups: NDArray[np.intp], scores: NDArray[np.float64]) -> float:
    """Return omega squared of groups, not below 0; 0 where there is nothing to compare."""
    kinds = np.unique(groups)
    total = float(((scores - scores.mean()) ** 2).sum())
    if not 1 < len(kinds) < len(scores) or total == 0:
        return 0.0
    within = sum(float(((own - own.mean()) ** 2).sum()) for own in (scores[groups == kind] for kind in kinds))
    error = within / (len(scores) - len(kinds))
    return max(0.0, (total - within - (len(kinds) - 1) * error) / (total + error))
