"""What texts and sequences of tokens begin with alike."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T", str, tuple[int, ...])


def common(one: T, other: T) -> int:
    """Return how many tokens, or characters, two sequences begin with alike."""
    shortest = min(len(one), len(other))
    if one[:shortest] == other[:shortest]:
        return shortest
    low, high = 0, shortest  # one[:low] is common, one[:high] is not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle)
    return low
