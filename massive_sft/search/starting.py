"""Where a search begins: with what was best for other models, and around a learning rate where nothing is known."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TypeVar

from massive_sft.core.errors import InvalidInput, Problem

Choice = TypeVar("Choice", bound=Hashable)
LEARNING_RATES = {"full": 3e-5, "lora": 3e-4}
"""Where nothing is known; an adapter learns at ten times the rate of full tuning."""
SPREAD = 3.0
"""The factor up and down within which the best rate is expected."""


def portfolio(results: Mapping[str, Mapping[Choice, float]], count: int) -> list[Choice]:
    """Return the choices that, together, hold something good for each model.

    One after another, that choice is taken which adds most to the sum over the models of the best value taken so far,
    each model's values being scaled to 0 for its worst and 1 for its best. A choice that a model does not have gives it
    nothing.

    Args:
        results: values by model and choice, larger is better.
        count: how many choices; fewer are returned where there are fewer.
    """
    scaled = {model: _scaled(values) for model, values in results.items() if values}
    choices = sorted({choice for values in scaled.values() for choice in values}, key=repr)
    covered = dict.fromkeys(scaled, 0.0)
    found: list[Choice] = []
    while choices and len(found) < count:
        best = max(choices, key=lambda choice: sum(max(scaled[m].get(choice, 0.0), covered[m]) for m in covered))
        choices.remove(best)
        found.append(best)
        covered = {model: max(scaled[model].get(best, 0.0), value) for model, value in covered.items()}
    return found


def learning_rate(method: str) -> float:
    """Return the learning rate to begin around. Raises InvalidInput for an unknown method."""
    if method not in LEARNING_RATES:
        raise InvalidInput(Problem("method", "must be known", method, sorted(LEARNING_RATES)))
    return LEARNING_RATES[method]


def _scaled(values: Mapping[Choice, float]) -> dict[Choice, float]:
    low, high = min(values.values()), max(values.values())
    return {choice: (value - low) / (high - low) if high > low else 1.0 for choice, value in values.items()}
