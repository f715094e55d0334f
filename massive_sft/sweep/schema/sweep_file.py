"""The whole sweep file, and its blocks: what is crossed with what."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from massive_sft.sweep.schema.evaluation import Evaluation, Measure
from massive_sft.sweep.schema.execution import Budget, Resource, Storage, Tracking
from massive_sft.sweep.schema.field_types import MAX_NAME_BYTES, Distinct, Epoch, Epochs, Integer, Strings, Text
from massive_sft.sweep.schema.sources import Dataset, Mixtures, Model
from massive_sft.sweep.schema.strict_model import StrictModel
from massive_sft.sweep.schema.training import Schedule


def as_schedules(value: Any) -> Any:
    """Return a list of schedules with their names written as fields."""
    return tuple(
        {"name": item} if isinstance(item, str) else item
        for item in (value if isinstance(value, (list, tuple)) else [value])
    )


class Block(StrictModel):
    """A full cross of models × mixtures × settings × schedules × snapshots, less its excludes."""

    name: Text
    model: Strings
    mixture: Strings
    setting: Strings
    schedule: Annotated[tuple[Schedule, ...], BeforeValidator(as_schedules), Field(min_length=1), Distinct]
    horizon: Epoch
    snapshots: Epochs
    exclude: tuple[dict[str, Any], ...] = ()
    override: dict[str, Any] = Field(default_factory=dict)


class SweepFile(StrictModel):
    """The whole file. ``settings`` stays raw here: entries are merged over ``defaults`` before they are a Setting.

    That models, datasets and blocks hold something is checked in ``load``, which sets broken entries aside first.
    """

    schema_: Annotated[Literal[1], Integer, Field(alias="schema")]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=MAX_NAME_BYTES)]
    models: dict[str, Model]
    model_sets: dict[str, Strings] = Field(default_factory=dict)
    datasets: dict[str, Dataset]
    mixtures: Mixtures
    settings: dict[str, dict[str, Any]]
    blocks: tuple[Block, ...]
    evaluation: Evaluation = Evaluation()
    measures: Annotated[tuple[Measure, ...], Distinct] = ()
    resources: tuple[Resource, ...] = ()
    storage: Storage
    tracking: Tracking = Tracking()
    budget: Budget = Budget()
