"""How alike two candidates are: products of one correlation a factor, summed over which factors take part.

A value is a sum of effects, as in an analysis of variance: of each factor alone, of each pair of them, of all together.
The effect of some factors has the product of their correlations as its covariance, times a variance of its own:

- categories: 1 for the same level, else 0;
- numbers: Matern 5/2 over the difference (of logarithms where ratios count), each with a length of its own;
- mixtures: Matern 5/2 over the Hellinger distance, which is that of the square roots of the shares. Shares near 0,
  where a dataset comes in, are told apart better so than by the shares themselves.

Lengths are in units of the spread of the candidates, so that one prior serves every factor.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from massive_sft.search.observations import Factor, Space, Value

Array = NDArray[np.float64]
Indices = NDArray[np.intp]
_ROOT5 = 5.0**0.5
_ALL_PAIRS = 4  # factors up to which each pair has an effect of its own
LENGTH_PRIOR = {"number": (0.7, 0.7), "mixture": (0.7, 0.5)}  # mean and deviation of a length's logarithm


@dataclass(frozen=True, eq=False)
class Features:
    """Candidates as numbers.

    Attributes:
        kinds: of each factor.
        columns: of each factor an array [candidates, width]: codes of categories, numbers and roots of shares over
            their spread.
    """

    kinds: tuple[str, ...]
    columns: tuple[Array, ...]

    @classmethod
    def of(cls, space: Space) -> Features:
        """Return the features of a space; a factor that all candidates agree in is left out."""
        kinds, columns = [], []
        for position, factor in enumerate(space.factors):
            column = _column(factor, [candidate[position] for candidate in space.candidates])
            spread = np.sqrt(column.var(axis=0).sum())
            if spread > 0:
                kinds.append(factor.kind)
                columns.append(column if factor.kind == "category" else (column - column.mean(axis=0)) / spread)
        return cls(tuple(kinds), tuple(columns))

    def __len__(self) -> int:
        return len(self.columns[0]) if self.columns else 1

    @cached_property
    def effects(self) -> tuple[tuple[int, ...], ...]:
        """Which factors take part in each effect: each alone, each two, all of them."""
        every = range(len(self.kinds))
        sizes = {1, 2, len(self.kinds)} if len(self.kinds) <= _ALL_PAIRS else {1, len(self.kinds)}
        return tuple(chosen for size in sorted(sizes) for chosen in itertools.combinations(every, size))

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """The factors that have a length."""
        return tuple(position for position, kind in enumerate(self.kinds) if kind != "category")

    def distances(self, rows: Indices, others: Indices) -> list[Array]:
        """Return of each factor the squared distances [rows, others]; of categories whether they differ."""
        found = []
        for kind, column in zip(self.kinds, self.columns, strict=True):
            left, right = column[rows], column[others]
            if kind == "category":
                found.append((left != right.T).astype(np.float64))
            else:
                square = (left**2).sum(1)[:, None] + (right**2).sum(1)[None, :] - 2 * left @ right.T
                found.append(np.maximum(square, 0.0))
        return found


def _column(factor: Factor, values: Sequence[Value]) -> Array:
    """Return the candidates' values in a factor as numbers [candidates, width], before they are scaled."""
    if factor.kind == "category":
        codes = {level: code for code, level in enumerate(factor.levels)}
        return np.array([[codes[str(value)]] for value in values], dtype=np.float64)
    if factor.kind == "number":
        column = np.array(values, dtype=np.float64)[:, None]
        return np.log(column) if factor.log else column
    shares = [value for value in values if isinstance(value, Mapping)]
    return np.sqrt([[share.get(name, 0.0) for name in factor.levels] for share in shares])


def correlations(features: Features, distances: Sequence[Array], log_lengths: Array) -> tuple[list[Array], list[Array]]:
    """Return each factor's correlations, and the derivatives of those that have a length by its logarithm."""
    found, slopes = [], []
    lengths = iter(np.exp(log_lengths))
    for kind, square in zip(features.kinds, distances, strict=True):
        if kind == "category":
            found.append(1.0 - square)
            continue
        scaled = _ROOT5 * np.sqrt(square) / next(lengths)
        decay = np.exp(-scaled)
        found.append((1 + scaled + scaled**2 / 3) * decay)
        slopes.append(scaled**2 * (1 + scaled) / 3 * decay)
    return found, slopes


def product(parts: Sequence[Array], chosen: Sequence[int]) -> Array:
    """Return the product of the chosen arrays."""
    result = parts[chosen[0]]
    for position in chosen[1:]:
        result = result * parts[position]
    return result
