"""Mixtures to choose among: counts of samples by dataset that obey bounds, repeat limits and a cap on datasets.

A candidate is made of whole samples before it is looked at, so that it is the mixture of a cell. The first ones are
those
that other blocks train too: each dataset alone, all of them, all but one, pairs. The rest is drawn at random, each
from a seed of its own, so that more of them begin with the same.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from massive_sft.core.errors import InvalidInput, Problem

Counts = dict[str, int]
CONCENTRATIONS = (0.3, 1.0, 3.0)  # of the Dirichlet draws, in turns: near a corner, anywhere, near the middle
TRIES = 20  # draws for one candidate; each may have been drawn before


@dataclass(frozen=True)
class Limits:
    """What a mixture may be.

    Attributes:
        samples: in total.
        shares: the least and the greatest share of each dataset.
        rows: how many samples each dataset has.
        max_repeats: how often a row may be taken.
        at_most: datasets with a share above 0; None: all of them.

    Raises InvalidInput where no mixture is possible.
    """

    samples: int
    shares: Mapping[str, tuple[float, float]]
    rows: Mapping[str, int]
    max_repeats: int = 1
    at_most: int | None = None

    def __post_init__(self) -> None:
        if not self.shares:
            raise InvalidInput(Problem("weights", "must name at least one dataset"))
        problems = [
            Problem(f"weights.{name}", "must have a least share that its greatest and its rows allow", share)
            for name, share in self.shares.items()
            if self.counts[name][0] > self.counts[name][1]
        ]
        least = sum(low for low, _ in self.counts.values())
        widest = sorted((high for _, high in self.counts.values()), reverse=True)[: self.most_datasets]
        if least > self.samples:
            problems.append(Problem("weights", "must be able to sum to 1, but the least shares exceed it"))
        if sum(widest) < self.samples or len(self.needed) > self.most_datasets:
            rule = f"must be able to sum to 1 with {self.most_datasets} datasets and {self.max_repeats} takes of a row"
            problems.append(Problem("weights", rule, f"at most {sum(widest)} of {self.samples} samples"))
        if problems:
            raise InvalidInput(problems)

    @cached_property
    def counts(self) -> dict[str, tuple[int, int]]:
        """The least and the greatest count of each dataset."""
        return {
            name: (
                math.ceil(low * self.samples - 1e-9),
                min(math.floor(high * self.samples + 1e-9), self.max_repeats * self.rows[name]),
            )
            for name, (low, high) in self.shares.items()
        }

    @property
    def most_datasets(self) -> int:
        """How many datasets may have a share."""
        return len(self.shares) if self.at_most is None else self.at_most

    @cached_property
    def needed(self) -> frozenset[str]:
        """The datasets that must have a share."""
        return frozenset(name for name, (low, _) in self.counts.items() if low > 0)

    @cached_property
    def bound_by_rows(self) -> tuple[str, ...]:
        """The datasets whose rows allow less than their greatest share does."""
        return tuple(
            name
            for name, (_, high) in self.shares.items()
            if self.max_repeats * self.rows[name] < math.floor(high * self.samples + 1e-9)
        )


def fitted(limits: Limits, weights: Mapping[str, float]) -> Counts | None:
    """Return the counts in proportion to the weights, as near as the limits allow; None where they cannot be.

    Datasets without a weight get none. All others are scaled by one factor and cut at their limits; what whole samples
    leave over goes to the largest remainders.
    """
    names = [name for name in limits.shares if weights.get(name, 0.0) > 0]
    if not limits.needed <= set(names) or len(names) > limits.most_datasets:
        return None
    low = np.array([limits.counts[name][0] for name in names], dtype=np.float64)
    high = np.array([limits.counts[name][1] for name in names], dtype=np.float64)
    if not low.sum() <= limits.samples <= high.sum():
        return None
    wanted = np.array([weights[name] for name in names], dtype=np.float64)
    # The sum is piecewise linear in the factor, with corners where a dataset comes to one of its limits.
    corners = np.sort(np.concatenate([[0.0], low / wanted, high / wanted]))
    sums = np.clip(corners[:, None] * wanted, low, high).sum(axis=1)
    exact = np.clip(np.interp(limits.samples, sums, corners) * wanted, low, high)
    counts = np.floor(exact + 1e-6)
    for place in np.argsort(-(exact - counts), kind="stable").tolist() * 2:
        if counts.sum() < limits.samples and counts[place] < high[place]:
            counts[place] += 1
    if counts.sum() != limits.samples:
        return None
    return {name: int(count) for name, count in zip(names, counts, strict=True) if count > 0}


def centres(
    limits: Limits, singles: bool = True, everything: bool = True, leave_one_out: bool = True, pairs: int | None = None
) -> list[Counts]:
    """Return equal shares of each dataset, all, all but one, and pairs (None: all), as far as the limits allow them."""
    names = list(limits.shares)
    groups: list[Sequence[str]] = [[name] for name in names] if singles else []
    groups += [names] if everything else []
    groups += [[other for other in names if other != name] for name in names] if leave_one_out else []
    groups += itertools.islice(itertools.combinations(names, 2), pairs)
    found = (fitted(limits, dict.fromkeys([*group, *limits.needed], 1.0)) for group in groups)
    return _distinct(counts for counts in found if counts is not None)


def candidates(limits: Limits, count: int, seed: int) -> list[Counts]:
    """Return up to ``count`` distinct mixtures, the centres first; fewer where the limits allow few."""
    drawn = (_drawn(limits, np.random.default_rng([seed, index]), index) for index in range(TRIES * count))
    every = itertools.chain(centres(limits), (counts for counts in drawn if counts is not None))
    return _distinct(every, count)


def _drawn(limits: Limits, generator: np.random.Generator, index: int) -> Counts | None:
    """Return a mixture of some datasets by lot; None where the limits do not allow these."""
    free = [name for name in limits.shares if name not in limits.needed and limits.counts[name][1] > 0]
    least = 0 if limits.needed else 1
    room = min(limits.most_datasets - len(limits.needed), len(free))
    size = int(generator.integers(min(least, room), room + 1))
    names = [*sorted(limits.needed), *generator.permutation(free)[:size].tolist()]
    weights = generator.dirichlet([CONCENTRATIONS[index % len(CONCENTRATIONS)]] * len(names))
    return fitted(limits, dict(zip(names, np.maximum(weights, 1e-6).tolist(), strict=True)))


def _distinct(found: Iterable[Counts], count: int | None = None) -> list[Counts]:
    """Return the first of what is found, each once."""
    unique: dict[tuple[tuple[str, int], ...], Counts] = {}
    for counts in found:
        unique.setdefault(tuple(sorted(counts.items())), counts)
        if count is not None and len(unique) >= count:
            break
    return list(unique.values())
