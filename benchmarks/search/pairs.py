"""Methods against each other, in pairs of one start."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.stats import binomtest


def compare(figures: Mapping[str, Mapping[str, np.ndarray]], groups: str) -> None:
    """Print how often the first method has the smaller figures, by a sign test.

    Studies of a group are not independent of one another, so a test over the groups' means is there too.

    Args:
        figures: of each method what was measured by name, better when smaller [groups, starts].
        groups: what the groups are, for people.
    """
    first, *others = figures
    for other in others:
        for what, own in figures[first].items():
            apart = figures[other][what] - own
            for of, gains in (("studies", apart.ravel()), (groups, apart.mean(axis=1))):
                better, worse = int((gains > 0).sum()), int((gains < 0).sum())
                chance = binomtest(better, better + worse).pvalue if better + worse else 1.0
                print(
                    f"{first} against {other}: {what} smaller in {better}, larger in {worse} of {gains.size} {of}, "
                    f"p = {chance:.2g}"
                )
