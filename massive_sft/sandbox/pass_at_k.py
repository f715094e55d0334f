"""The share of questions that one of k answers solves, estimated without bias from n answers."""

from __future__ import annotations

import math


def pass_at_k(n: int, passed: int, k: int) -> float:
    """Return 1 - C(n - passed, k) / C(n, k): the chance that one of k answers, drawn of n, passed.

    Source: Chen et al. 2021 (2107.03374), equation 1.

    Raises:
        ValueError: there are fewer than k answers.
    """
    if not 0 < k <= n:
        raise ValueError(f"k must be 1 to {n}, the number of answers, got {k}")
    return 1.0 - math.comb(n - passed, k) / math.comb(n, k)
