"""A point of a search: one training that it chose, as one combination of what blocks cross."""

from __future__ import annotations

from dataclasses import dataclass

from massive_sft.sweep.schema import Schedule
from massive_sft.sweep.setting import Variant
from massive_sft.sweep.spec import Mixture


@dataclass(frozen=True)
class Point:
    """One training and the epochs at which it is a cell.

    Attributes:
        search: the search's name, which is that of a block.
        model: the model's name.
        parks: whether its training is to keep what it can go on from, for it may be promoted.
    """

    search: str
    model: str
    mixture: Mixture
    variant: Variant
    schedule: Schedule
    horizon: int
    snapshots: tuple[int, ...]
    parks: bool = False
