"""Which rows a part uses: the first n of one permutation that only ``sample_seed`` and the row numbers decide.

So 1,000 samples are the first of the 20,000 from the same dataset, and a filter never reorders what it keeps.
"""

from __future__ import annotations

import numpy as np

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.core.wording import counted

_WORD = 2**64


def keys(rows: np.ndarray, sample_seed: int) -> np.ndarray:
    """Return the sort key of each source row: uint64, same shape as ``rows`` (int64).

    SplitMix64 (Steele, Lea, Flood 2014) of the row number, offset by the hashed seed. Written out here so that
    no library's version can change which rows a study used.
    """
    start = _splitmix64(np.array([sample_seed % _WORD], dtype=np.uint64))
    return _splitmix64(start + np.asarray(rows).astype(np.uint64))


def _splitmix64(state: np.ndarray) -> np.ndarray:
    """One output of SplitMix64 for each state; arithmetic modulo 2^64, as numpy's uint64 arrays do."""
    mixed = state + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def draw(
    rows: np.ndarray, count: int | None, sample_seed: int, max_repeats: int = 1, place: str = "mixture"
) -> np.ndarray:
    """Return the source rows that are used, in the permutation's order.

    Args:
        rows: int64, the distinct source rows available (after filters), numbered before any filter.
        count: how many to use; None for all of them, once.
        sample_seed: seed of the permutation, any integer.
        max_repeats: how many whole passes over the rows are allowed; a further pass repeats the same order.
        place: where the count was asked for, for the message.

    Returns:
        int64, shape (count,).

    Raises:
        InvalidInput: when ``count`` is more than ``max_repeats`` passes give.
    """
    order = rows[np.lexsort((rows, keys(rows, sample_seed)))]
    if count is None:
        return order
    if count > len(order) * max_repeats:
        passes = f" in {max_repeats} passes" if max_repeats > 1 else ""
        most = counted(len(order) * max_repeats, "sample")
        rule = f"must be at most {most}: it has {counted(len(order), 'row')}{passes}"
        raise InvalidInput(Problem(place, f"{rule}; ask for fewer, or raise max_repeats", count))
    return np.resize(order, count)
