"""Numbers that are bumped when a fix changes what is computed, so that old results are not taken for new ones."""

from __future__ import annotations

TRAIN_SEMANTICS = 1
"""Of training; in every trained cell's id."""

SCORE_SEMANTICS = 1
"""Of scoring; in what is asked of a cell and in the protocol's id, once it is no longer 1."""


def scoring() -> dict[str, int]:
    """Return what of the scoring's semantics is hashed: nothing at 1, so that the ids given out before it stay."""
    return {} if SCORE_SEMANTICS == 1 else {"score_semantics": SCORE_SEMANTICS}
