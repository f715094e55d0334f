"""Which parked training goes on to the next rung: a function of what is known at the rungs, with no order of time in
it.

As ASHA, but nothing is stopped: of the trainings that reached a rung, the best part is promoted, and one that was not
among them yet may be, as more arrive. A training is promoted from its own checkpoint, so no epoch is trained twice.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from massive_sft.core.errors import InvalidInput, Problem


@dataclass(frozen=True)
class AtRung:
    """A training's value at a rung.

    Attributes:
        training: the number of the decision that asked for it; of equal values the earlier goes first.
        rung: from 0.
        value: larger is better; -infinity where it diverged, which is never promoted.
    """

    training: int
    rung: int
    value: float


@dataclass(frozen=True)
class Promotion:
    """A training, and the rung that it goes on to."""

    training: int
    rung: int


def next_promotion(
    known: Sequence[AtRung], promoted: Collection[Promotion], rungs: int, keep: float
) -> Promotion | None:
    """Return the next promotion that is due, from the highest rung down; None where none is.

    Args:
        known: of each training, its values at the rungs it reached.
        promoted: the promotions decided so far, whether they are trained yet or not.
        rungs: how many there are; of the last nothing is promoted.
        keep: the part of a rung that goes on.

    Raises InvalidInput for a part out of (0, 1).
    """
    if not 0 < keep < 1:
        raise InvalidInput(Problem("rungs.keep", "must be > 0 and < 1", keep))
    for rung in reversed(range(rungs - 1)):
        here = sorted((one for one in known if one.rung == rung), key=lambda one: (-one.value, one.training))
        for one in here[: math.floor(len(here) * keep + 1e-9)]:
            promotion = Promotion(one.training, rung + 1)
            if promotion not in promoted and one.value > -math.inf:
                return promotion
    return None
