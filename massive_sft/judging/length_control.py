"""The length-controlled win rate of AlpacaEval 2: what it would be if answers were as long as the baseline's.

The published regression (Dubois et al. 2024; alpaca-eval 0.6.6, ``length_controlled_v1``): a logistic one without an
intercept on three features of each pair of answers, tanh(difference of lengths over its standard deviation), the
instruction's difficulty, and 1; L1, liblinear, its strength by 5-fold cross-validation over pairs. Annotations of two
gamed baselines, of which the file ``df_gamed.csv`` has the features, count a tenth each (0.2 / 2) and hold the weights
in place. The rate is the mean prediction where the difference of lengths is 0. Without that file there are neither
difficulties nor baselines (``length_controlled_minimal`` there).

The interval is ours, by the delta method: it counts what each pair does to the fit and to the mean, and takes as given
the gamed baselines, the strength of the regression, the scale of the lengths and which weights L1 has made 0. The
published standard error is that of the predictions around their mean, as if the fit were known.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.evaluation.intervals import Interval, Z

FOLDS = 5
STRENGTHS = np.logspace(-4, 4, 10)
SEED = 123
GAMED_WEIGHT = 0.2 / 2  # there are two gamed baselines
_SMALLEST = 1e-15


@dataclass(frozen=True)
class Gamed:
    """AlpacaEval's ``df_gamed.csv``.

    Attributes:
        difficulty: of each instruction, by its position.
        features: float64, shape (pairs, 3), as the regression takes them.
        preferences: float64, shape (pairs,): from 0 to 1.
    """

    difficulty: Mapping[int, float]
    features: np.ndarray
    preferences: np.ndarray


def read_gamed(path: str, place: str) -> Gamed:
    """Read ``df_gamed.csv``. Raises InvalidInput."""
    difficulty: dict[int, float] = {}
    features, preferences = [], []
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                hard = float(row["instruction_difficulty"])
                difficulty.setdefault(int(float(row["index"])), hard)
                own = row["not_gamed_baseline"].strip().lower() in ("true", "1", "1.0")
                if row["preference"]:
                    features.append([math.tanh(float(row["std_delta_len"])), hard, float(own)])
                    preferences.append(float(row["preference"]))
    except OSError as error:
        raise InvalidInput(Problem(place, f"cannot be read ({error.strerror})", path)) from None
    except (KeyError, TypeError, ValueError) as error:
        rule = f"must have index, preference, std_delta_len, instruction_difficulty and not_gamed_baseline ({error})"
        raise InvalidInput(Problem(place, rule, path)) from None
    return Gamed(difficulty, np.array(features, dtype=np.float64), np.array(preferences, dtype=np.float64))


def length_controlled(
    preferences: Sequence[float | None],
    lengths: Sequence[tuple[int, int]],
    numbers: Sequence[int],
    gamed: Gamed | None = None,
) -> tuple[float, Interval] | None:
    """Return the win rate at equal lengths, from 0 to 1, and its interval.

    None where lengths never differ or fewer than 5 pairs count.

    Args:
        preferences: for the model's answer, from 0 to 1; None where there is none.
        lengths: in characters, of the baseline's answer and of the model's.
        numbers: positions of the instructions, by which ``gamed`` knows them.
    """
    differences = np.array([first - second for first, second in lengths], dtype=np.float64)
    known = np.array([value is not None for value in preferences])
    if known.sum() < FOLDS or float(differences.std()) == 0.0:
        return None
    lengthy = np.tanh(differences / differences.std(ddof=1))
    ones = np.ones(len(lengthy))
    wanted = np.array([value for value in preferences if value is not None], dtype=np.float64)
    if gamed is None:
        features, weights = np.column_stack([lengthy, ones])[known], np.ones(int(known.sum()))
        equal = np.column_stack([np.zeros(len(lengthy)), ones])
    else:
        hard = np.array([gamed.difficulty.get(number, np.nan) for number in numbers])
        if np.isnan(hard).any():
            return None
        own = np.column_stack([lengthy, hard, ones])[known]
        features = np.concatenate([gamed.features, own])
        gamed_weights = np.where(gamed.features[:, 2] > 0, 1.0, GAMED_WEIGHT)
        weights = np.concatenate([gamed_weights, np.ones(int(known.sum()))])
        wanted = np.concatenate([gamed.preferences, wanted])
        equal = np.column_stack([np.zeros(len(lengthy)), hard, ones])
    fit = _fit(features, wanted, weights)
    rate = float(_predict(fit, equal).mean())
    return rate, _interval(fit, rate, features, wanted, weights, equal, np.flatnonzero(known))


def _interval(
    fit: np.ndarray,
    rate: float,
    features: np.ndarray,
    wanted: np.ndarray,
    weights: np.ndarray,
    equal: np.ndarray,
    own: np.ndarray,
) -> Interval:
    """Return the interval of the mean prediction over ``equal``, as if pairs were drawn anew.

    Args:
        fit: the regression's coefficients.
        features, wanted, weights: of all pairs, the model's own ones last.
        equal: the model's pairs with their lengths made equal.
        own: of which of these there is a preference.
    """
    used = fit != 0
    chances, at_equal = _predict(fit, features), _predict(fit, equal)
    moved = np.zeros(len(equal))
    if used.any():
        inner = features[:, used]
        curvature = inner.T @ (inner * (weights * chances * (1 - chances))[:, None])
        slope = (equal[:, used] * (at_equal * (1 - at_equal))[:, None]).mean(axis=0)
        pulls = (inner * (weights * (wanted - chances))[:, None])[len(features) - len(own) :]
        moved[own] = pulls @ np.linalg.pinv(curvature) @ slope
    moved += (at_equal - rate) / len(equal)
    stderr = math.sqrt(len(moved) / (len(moved) - 1) * float(moved @ moved))
    return Interval(max(0.0, rate - Z * stderr), min(1.0, rate + Z * stderr), stderr, "delta")


def _fit(features: np.ndarray, wanted: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the coefficients, shape (features,): of the strength with the least loss on pairs left out."""
    losses = np.zeros(len(STRENGTHS))
    for train, test in GroupKFold(n_splits=FOLDS).split(features, groups=np.arange(len(features))):
        for number, strength in enumerate(STRENGTHS):
            chances = _predict(_coefficients(features[train], wanted[train], weights[train], strength), features[test])
            losses[number] += float(np.mean(weights[test] * _loss(wanted[test], chances))) / FOLDS
    return _coefficients(features, wanted, weights, float(STRENGTHS[int(losses.argmin())]))


def _coefficients(features: np.ndarray, wanted: np.ndarray, weights: np.ndarray, strength: float) -> np.ndarray:
    """Fit to preferences that are chances: each pair counts once as won and once as lost, by its chance."""
    model = LogisticRegression(
        l1_ratio=1, solver="liblinear", C=strength, fit_intercept=False, dual=False, random_state=SEED
    )
    labels = np.concatenate([np.ones(len(wanted)), np.zeros(len(wanted))])
    chances = np.concatenate([wanted, 1 - wanted]) * np.concatenate([weights, weights])
    model.fit(np.concatenate([features, features]), labels, sample_weight=chances)
    coefficients: np.ndarray = model.coef_[0]
    return coefficients


def _predict(coefficients: np.ndarray, features: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-(features @ coefficients)))


def _loss(wanted: np.ndarray, chances: np.ndarray) -> np.ndarray:
    clipped = np.clip(chances, _SMALLEST, 1 - _SMALLEST)
    return -(wanted * np.log(clipped) + (1 - wanted) * np.log(1 - clipped))
