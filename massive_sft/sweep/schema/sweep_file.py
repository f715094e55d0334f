"""The whole sweep file, and its blocks: what is crossed with what."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from massive_sft.sweep.schema.evaluation import Evaluation, Measure, TextSet
from massive_sft.sweep.schema.execution import Budget, Cluster, Resource, Storage, Tracking
from massive_sft.sweep.schema.field_types import Distinct, Epoch, Epochs, Integer, Name, Strings, Text
from massive_sft.sweep.schema.search import Search
from massive_sft.sweep.schema.sources import Dataset, Mixtures, Model
from massive_sft.sweep.schema.strict_model import StrictModel
from massive_sft.sweep.schema.training import Schedule


def as_schedules(value: Any) -> Any:
    """Return a list of schedules with their names written as fields."""
    return tuple(
        {"name": item} if isinstance(item, str) else item
        for item in (value if isinstance(value, (list, tuple)) else [value])
    )


def distinct_text_sets(measures: tuple[Measure, ...]) -> tuple[Measure, ...]:
    """Refuse two sets of texts of one name, by which their columns are told apart."""
    names = [item.title for item in measures if isinstance(item, TextSet)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"two sets of texts are named {', '.join(twice)}: give one of them another name")
    return measures


class Block(StrictModel):
    """A full cross of models × mixtures × settings × schedules × snapshots, less its excludes."""

    name: Text
    """For people, and for a search's ``over``."""
    model: Strings
    """Models or model sets; ``all``: every model."""
    mixture: Strings
    """Mixtures, or entries of ``mixtures``."""
    setting: Strings
    """Settings."""
    schedule: Annotated[tuple[Schedule, ...], BeforeValidator(as_schedules), Field(min_length=1), Distinct]
    """Learning-rate schedules: a name, or its fields."""
    horizon: Epoch
    """Epochs that the schedule is made for."""
    snapshots: Epochs
    """Epochs after which the model is a cell: one, a list, or a range such as ``1..10``. The last ends the training."""
    exclude: tuple[dict[str, Any], ...] = ()
    """Cells that are left out, each described by coordinates (``model``, ``mixture``, ``setting``, ``size``,
    ``schedule``, ``snapshot``) or fields of a setting."""
    override: dict[str, Any] = Field(default_factory=dict)
    """Fields of the settings that are replaced, such as ``seed`` or ``lora.rank``; a list is one more axis."""


class SweepFile(StrictModel):
    """The whole file. ``settings`` stays raw here: entries are merged over ``defaults`` before they are a Setting.

    That models, datasets and blocks hold something is checked in ``load``, which sets broken entries aside first.
    """

    schema_: Annotated[Literal[1], Integer, Field(alias="schema")]
    """Of sweep files: 1."""
    name: Name
    """Of the sweep: of its folder in the storage root, and of the MLflow experiment."""
    models: dict[str, Model]
    """Base models, by name."""
    model_sets: dict[str, Strings] = Field(default_factory=dict)
    """Names for several models; ``all`` is built in."""
    datasets: dict[str, Dataset]
    """Instruction data, by name."""
    mixtures: Mixtures
    """Training sets, by name: each entry a rule that yields one or several."""
    settings: dict[str, dict[str, Any]]
    """How models are trained, by name; ``defaults`` are merged under every other one."""
    blocks: tuple[Block, ...] = ()
    """What is crossed with what; their union is the sweep, and a cell of two blocks is one cell."""
    search: tuple[Search, ...] = ()
    """What decides by outcomes which cells are trained; docs/guides/search.md."""
    evaluation: Evaluation = Evaluation()
    """What is scored, and how."""
    measures: Annotated[tuple[Measure, ...], Distinct, AfterValidator(distinct_text_sets)] = ()
    """What is measured of each trained cell: ``perplexity``, ``layer_change``, ``token_length`` by name, and sets of
    texts by the keys below, of base models too; ``docs/measures.md``."""
    resources: tuple[Resource, ...] = ()
    """What runs on what; the first rule that matches a training run wins."""
    cluster: Cluster = Cluster()
    """What to expect of the cluster that ``RAY_ADDRESS`` names."""
    storage: Storage
    """Where everything lies."""
    tracking: Tracking = Tracking()
    """Where results are mirrored to."""
    budget: Budget = Budget()
    """What a sweep may take."""
