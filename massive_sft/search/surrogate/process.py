"""A Gaussian process over candidates: its parameters from what was observed, and what it expects of the rest.

Parameters are the logarithms of the effects' variances, of the lengths and of the noise. They have normal priors and
are set to their most probable values (L-BFGS from the priors' means, so that equal observations give equal
parameters). Values are standardised; noise is what is known of each value's sampling error plus a part that is the
same for all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize

from massive_sft.search.surrogate.kernels import LENGTH_PRIOR, Array, Features, Indices, correlations, product

VARIANCE_DEVIATION = 0.7  # of the logarithm of an effect's variance
NOISE_PRIOR = (np.log(0.05), 1.0)  # mean and deviation of the noise's logarithm, as a share of the values' variance
JITTER = 1e-6
_STEPS = 40
_IN_CACHE = 1 << 15  # pairs of candidates that are looked at together, for memory is slower than arithmetic


@dataclass(frozen=True, eq=False)
class Prior:
    """Normal priors of the parameters, in their order: variances of effects, lengths, noise."""

    mean: Array
    deviation: Array

    @classmethod
    def of(cls, features: Features) -> Prior:
        """Return the prior in which all effects together have the variance 1."""
        effects = len(features.effects)
        lengths = [LENGTH_PRIOR[features.kinds[position]] for position in features.lengths]
        mean = [np.log(1 / max(effects, 1))] * effects + [mean for mean, _ in lengths] + [NOISE_PRIOR[0]]
        deviation = [VARIANCE_DEVIATION] * effects + [deviation for _, deviation in lengths] + [NOISE_PRIOR[1]]
        return cls(np.array(mean), np.array(deviation))


@dataclass(frozen=True, eq=False)
class Process:
    """A fitted process: what was observed, and the factorised covariance of it.

    Attributes:
        rows: the candidates observed; one may be there several times.
        shift, scale: of the values' own unit: value = shift + scale * standardised value.
        misfit: the negative log of the density of the values, in their own unit, and of the parameters.
    """

    features: Features
    parameters: Array
    rows: Indices
    values: Array
    noise: Array
    shift: float
    scale: float
    misfit: float

    def covariance(self, rows: Indices, others: Indices) -> Array:
        """Return the prior covariance [rows, others] of standardised values, without noise."""
        effects = self.features.effects
        log_lengths = self.parameters[len(effects) : -1]
        variances = [np.exp(log_variance) for log_variance in self.parameters[: len(effects)]]
        distances = self.features.distances(rows, others)
        total = np.zeros((len(rows), len(others)))
        step = max(1, _IN_CACHE // max(1, len(others)))
        for begin in range(0, len(rows), step):
            block = slice(begin, begin + step)
            parts, _ = correlations(self.features, [square[block] for square in distances], log_lengths)
            for chosen, variance in zip(effects, variances, strict=True):
                total[block] += variance * product(parts, chosen)
        return total

    def posterior(self, asked: Indices, pending: Indices) -> tuple[Array, Array]:
        """Return mean and standard deviation of the asked candidates, in standardised values.

        What is pending counts as known to be what is expected of it: it narrows, and moves nothing.
        """
        weights, half = self._weights(asked, pending)
        mean = half.T @ weights
        own = np.full(len(asked), np.exp(self.parameters[: len(self.features.effects)]).sum())
        return mean, np.sqrt(np.maximum(own - (half**2).sum(axis=0), 1e-12))

    def joint(self, asked: Indices) -> tuple[Array, Array]:
        """Return mean and covariance of the asked candidates, in standardised values."""
        weights, half = self._weights(asked, np.zeros(0, dtype=np.intp))
        return half.T @ weights, self.covariance(asked, asked) - half.T @ half

    def _weights(self, asked: Indices, pending: Indices) -> tuple[Array, Array]:
        """Return L^-1 values and L^-1 covariance(known, asked), L being the root of the known ones' covariance."""
        known = np.concatenate([self.rows, pending])
        noise = np.concatenate([self.noise, np.full(len(pending), self.noise.mean())])
        lower = cholesky(self.covariance(known, known) + np.diag(noise), lower=True)
        count = len(self.rows)
        weights = np.zeros(len(known))
        weights[:count] = solve_triangular(lower[:count, :count], self.values, lower=True)
        return weights, solve_triangular(lower, self.covariance(known, asked), lower=True)


def fit(features: Features, rows: Indices, values: Array, variances: Array) -> Process:
    """Fit a process to observed values.

    Args:
        rows: the candidates' indices [n]; n >= 1.
        values: in their own unit [n].
        variances: of the values' sampling error, in the unit's square [n]; NaN where not known.
    """
    shift, scale = float(values.mean()), float(values.std())
    scale = scale if scale > 0 else 1.0
    standardised = (values - shift) / scale
    known = np.nan_to_num(variances / scale**2, nan=0.0)
    prior = Prior.of(features)
    distances = features.distances(rows, rows)

    def loss(parameters: Array) -> tuple[float, Array]:
        return _loss(parameters, features, distances, standardised, known, prior)

    bounds = [(mean - 4 * sd, mean + 4 * sd) for mean, sd in zip(prior.mean, prior.deviation, strict=True)]
    found = minimize(loss, prior.mean, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": _STEPS})
    noise = known + np.exp(found.x[-1]) + JITTER
    misfit = float(found.fun) + len(values) * float(np.log(scale))
    return Process(features, found.x, rows, standardised, noise, shift, scale, misfit)


def _loss(
    parameters: Array, features: Features, distances: list[Array], values: Array, known: Array, prior: Prior
) -> tuple[float, Array]:
    """Return the negative log of the parameters' posterior density, but for a constant, and its gradient."""
    effects = features.effects
    parts, slopes = correlations(features, distances, parameters[len(effects) : -1])
    variances = np.exp(parameters[: len(effects)])
    terms = [variance * product(parts, chosen) for variance, chosen in zip(variances, effects, strict=True)]
    noise = np.exp(parameters[-1])
    covariance = np.diag(known + noise + JITTER)
    for term in terms:
        covariance = covariance + term
    lower = cholesky(covariance, lower=True)
    inverse = cho_solve((lower, True), np.eye(len(values)))
    weights = inverse @ values
    by_covariance = 0.5 * (inverse - np.outer(weights, weights))
    gradient = [float((by_covariance * term).sum()) for term in terms]
    for position, slope in zip(features.lengths, slopes, strict=True):
        total = 0.0
        for variance, chosen in zip(variances, effects, strict=True):
            if position in chosen:
                rest = [other for other in chosen if other != position]
                factor = product(parts, rest) * slope if rest else slope
                total += variance * float((by_covariance * factor).sum())
        gradient.append(total)
    gradient.append(noise * float(np.trace(by_covariance)))
    away = (parameters - prior.mean) / prior.deviation
    loss = 0.5 * float(values @ weights) + float(np.log(np.diag(lower)).sum()) + 0.5 * float(away @ away)
    return loss, np.array(gradient) + away / prior.deviation
