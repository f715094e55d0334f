"""What transformers raises when it cannot load something, as the refusal of a model with its reason."""

from __future__ import annotations

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.models.location import place_of
from massive_sft.sweep.schema import Model


def load_error(model: Model, what: str, error: Exception) -> InvalidInput:
    """Return the refusal of a model, by the first sentence of what was raised when its ``what`` was loaded."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    said = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    if not model.trust_remote_code and "trust_remote_code" in str(error):
        rule = f"needs code of its own to load its {what}: read it, and allow it with trust_remote_code: true"
        return InvalidInput(Problem(place_of(model), rule))
    return InvalidInput(Problem(place_of(model), f"is no model that transformers can load: {what}: {said}"))
