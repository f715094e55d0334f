"""What is expected of one objective: by two Gaussian processes, over its values and over their logarithm.

Scores of many models differ by factors, and a few candidates stand out: then the logarithm of the distance from just
below the worst value is nearer to a normal. But it is sure that the rest of a poor model is poor, too, where one over
the values would look again. Neither is right of all benchmarks, so both have their say, and their difference is part of
what is not known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky
from scipy.special import ndtr

from massive_sft.search.observations import Outcome
from massive_sft.search.surrogate.kernels import Array, Features, Indices
from massive_sft.search.surrogate.process import JITTER, Process, fit

BELOW = 0.5  # where the logarithm starts: so many standard deviations below the worst value
MIN_FOR_LOG = 6  # values, with fewer of which no shape can be seen


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of one objective: candidates, their values, and the variances of these [n], NaN if unknown."""

    rows: Indices
    values: Array
    variances: Array

    @classmethod
    def of(cls, outcomes: Sequence[Outcome], objective: int) -> Known:
        """Take one objective from outcomes; a diverged one counts as the worst of the complete less one deviation."""
        rows, values, variances = [], [], []
        for outcome in sorted(outcomes, key=lambda one: (one.candidate, one.status, one.values)):
            if outcome.status == "pending":
                continue
            diverged = outcome.status == "diverged"
            value = -np.inf if diverged else outcome.values[objective]
            if not np.isnan(value):
                rows.append(outcome.candidate)
                values.append(value)
                variances.append(np.nan if diverged or not outcome.variances else outcome.variances[objective])
        found = np.array(values, dtype=np.float64)
        complete = found[np.isfinite(found)]
        worst = complete.min() - complete.std() if len(complete) else 0.0
        found[~np.isfinite(found)] = worst
        return cls(np.array(rows, dtype=np.intp), found, np.array(variances, dtype=np.float64))

    def sizes(self, best: Array) -> Array:
        """Return what a difference to each best value is relative to: that value; the range where signs differ."""
        if self.values.min() < 0 < self.values.max():
            return np.full(best.shape, np.ptp(self.values))
        return np.maximum(np.abs(best), 1e-12)

    def best(self, mask: NDArray[np.bool_]) -> tuple[int, float] | None:
        """Return the candidate in the mask [candidates] with the best mean over its outcomes, and that mean."""
        inside = mask[self.rows]
        if not inside.any():
            return None
        rows, values = self.rows[inside], self.values[inside]
        means = {int(row): float(values[rows == row].mean()) for row in np.unique(rows)}
        winner = max(means, key=lambda row: (means[row], -row))
        return winner, means[winner]


@dataclass(frozen=True, eq=False)
class Member:
    """A process over values, or over log(value + ``offset``)."""

    process: Process
    offset: float | None

    def moments(self, asked: Indices, pending: Indices) -> tuple[Array, Array]:
        """Return mean and standard deviation of the asked candidates, in the objective's unit."""
        mean, sd = self._scaled(asked, pending)
        if self.offset is None:
            return mean, sd
        center = np.exp(mean + sd**2 / 2)
        return center - self.offset, center * np.sqrt(np.expm1(sd**2))

    def gain(self, asked: Indices, pending: Indices, best: Array) -> Array:
        """Return the expected improvement of each asked candidate over ``best`` [asked], in the objective's unit."""
        mean, sd = self._scaled(asked, pending)
        if self.offset is None:
            return expected_improvement(mean, sd, best)
        return expected_log_improvement(mean, sd, np.maximum(best + self.offset, 1e-12))

    def draws(self, asked: Indices, normals: Array) -> Array:
        """Return values [draws, asked] of standard normals [draws, asked], without noise, in the objective's unit."""
        mean, covariance = self.process.joint(asked)
        lower = cholesky(covariance + 10 * JITTER * np.eye(len(asked)), lower=True)
        scaled = (mean + normals @ lower.T) * self.process.scale + self.process.shift
        return scaled if self.offset is None else np.exp(scaled) - self.offset

    def _scaled(self, asked: Indices, pending: Indices) -> tuple[Array, Array]:
        mean, sd = self.process.posterior(asked, pending)
        return mean * self.process.scale + self.process.shift, sd * self.process.scale


@dataclass(frozen=True, eq=False)
class Model:
    """Members that are equally likely to be right."""

    members: tuple[Member, ...]

    def moments(self, asked: Indices, pending: Indices) -> tuple[Array, Array]:
        """Return mean and standard deviation of the asked candidates, in the objective's unit."""
        means, sds = zip(*(member.moments(asked, pending) for member in self.members), strict=True)
        mean = np.mean(means, axis=0)
        square = np.mean([sd**2 + (own - mean) ** 2 for own, sd in zip(means, sds, strict=True)], axis=0)
        return mean, np.sqrt(square)

    def gain(self, asked: Indices, pending: Indices, best: Array) -> Array:
        """Return the expected improvement of each asked candidate over ``best`` [asked], in the objective's unit."""
        return np.asarray(np.mean([member.gain(asked, pending, best) for member in self.members], axis=0))

    def draws(self, asked: Indices, count: int, generator: np.random.Generator) -> Array:
        """Return values [count, asked] drawn jointly from what is expected, without noise, in the objective's unit."""
        normals = generator.standard_normal((count, len(asked)))
        shares = np.array_split(normals, len(self.members))
        return np.concatenate([member.draws(asked, own) for member, own in zip(self.members, shares, strict=True)])


def fit_model(features: Features, known: Known) -> Model:
    """Fit a model to what is known of an objective, of at least one candidate."""
    plain = Member(fit(features, known.rows, known.values, known.variances), None)
    spread = float(known.values.std())
    if len(known.values) < MIN_FOR_LOG or spread <= 0:
        return Model((plain,))
    offset = BELOW * spread - float(known.values.min())
    shifted = known.values + offset
    logarithm = fit(features, known.rows, np.log(shifted), known.variances / shifted**2)
    return Model((plain, Member(logarithm, offset)))


def expected_improvement(mean: Array, sd: Array, best: Array) -> Array:
    """Return E[max(0, value - best)] of normal values."""
    away = (mean - best) / sd
    return np.maximum((mean - best) * ndtr(away) + sd * np.exp(-0.5 * away**2) / np.sqrt(2 * np.pi), 0.0)


def expected_log_improvement(mean: Array, sd: Array, best: Array) -> Array:
    """Return E[max(0, value - best)] of values whose logarithm is normal with the mean and deviation; best > 0."""
    away = (mean - np.log(best)) / sd
    return np.maximum(np.exp(mean + sd**2 / 2) * ndtr(away + sd) - best * ndtr(away), 0.0)
