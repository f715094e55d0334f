"""Searches: a space, an objective and a sampler that decides which of its cells are trained."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from massive_sft.sweep.schema.field_types import (
    AGAINST_BASE,
    PATTERN_RULES,
    AboveZero,
    Distinct,
    Epoch,
    Epochs,
    Flag,
    Name,
    NotNegative,
    Number,
    OneOrMore,
    Positive,
    Seed,
    Size,
    Strings,
    Text,
)
from massive_sft.sweep.schema.strict_model import StrictModel
from massive_sft.sweep.schema.training import Schedule


def as_share(value: Any) -> Any:
    """Return the number behind a fraction such as ``1/3`` or a percentage such as ``5%``. Raises ValueError."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})|(\d{1,2}(?:\.\d{1,6})?) ?%", value)
    if not match or (match[2] is not None and int(match[2]) == 0):
        raise ValueError("must be a number between 0 and 1, a fraction such as 1/3 or a percentage such as 5%")
    return float(match[3]) / 100 if match[3] is not None else int(match[1]) / int(match[2])


def as_limit(value: Any) -> Any:
    """Return a limit as it is. Raises ValueError for a text that is none."""
    if isinstance(value, str) and not re.fullmatch(AGAINST_BASE, value):
        raise ValueError(PATTERN_RULES[AGAINST_BASE])
    return value


def as_schedule(value: Any) -> Any:
    """Return a schedule with its name written as a field."""
    return {"name": value} if isinstance(value, str) else value


def as_mean(value: Any) -> Any:
    """Return benchmarks as a list, where one stands for it; a mean as it is."""
    return value if isinstance(value, dict | Mean | tuple) else tuple(value) if isinstance(value, list) else (value,)


def as_axis(value: Any) -> Any:
    """Return the values of an axis as a list, where one stands for it; a range as it is. Raises ValueError."""
    if value in ([], {}):
        raise ValueError("must not be empty: give a list of values, or a range")
    return value if isinstance(value, dict | Range | tuple) else tuple(value) if isinstance(value, list) else (value,)


Share = Annotated[float, Field(strict=True, gt=0, lt=1), BeforeValidator(as_share)]
Value = Annotated[int, Field(strict=True)] | Number | Text
OneSchedule = Annotated[Schedule, BeforeValidator(as_schedule)]
Limit = Annotated[Number | Annotated[str, Field(pattern=AGAINST_BASE)], BeforeValidator(as_limit)]


class Range(StrictModel):
    """An axis of a space that is no list: exactly one of ``log``, ``linear``, ``powers_of_2`` and ``times``."""

    log: tuple[AboveZero, AboveZero] | None = None
    """The ends of a range whose ratios matter, such as those of a learning rate; tried to 3 digits."""
    linear: tuple[Number, Number] | None = None
    """The ends of a range whose differences matter; tried to 3 digits."""
    powers_of_2: tuple[Positive, Positive] | None = None
    """The first and the last power of 2."""
    times: Text | None = None
    """A numeric field of the setting, by whose value the value is a multiple; with ``by``."""
    by: Annotated[tuple[AboveZero, ...], OneOrMore, Field(min_length=1), Distinct] | None = None
    """The factors of ``times``."""


Axis = Annotated[Range | Annotated[tuple[Value, ...], Field(min_length=1), Distinct], BeforeValidator(as_axis)]


class Mean(StrictModel):
    """One objective out of several benchmarks."""

    mean: Strings
    """Benchmarks or measures."""
    scale: Literal["z", "none"] = "none"
    """What each is divided by before: ``z``, the spread of its scores so far, around their mean, or nothing."""


Benchmarks = Annotated[Mean | Strings, BeforeValidator(as_mean)]


class Objective(StrictModel):
    """What a search wants: benchmarks or measures, one or several, to be as high, or as low, as can be."""

    maximize: Benchmarks | None = None
    """Names of benchmarks (several: several objectives), or a ``mean`` of them."""
    minimize: Benchmarks | None = None
    """Likewise, for what is better when low, such as ``perplexity``."""
    for_each: Literal["model"] | None = None
    """One answer for each model, instead of one for all."""


class Bound(StrictModel):
    """What a benchmark must be for a cell to be feasible."""

    at_least: Limit | None = None
    """A number in the unit people read, or one against the base model's: ``base - 1.0``."""
    at_most: Limit | None = None
    """Likewise."""


class Start(StrictModel):
    """The first decisions, before the sampler has anything to go by."""

    portfolio: NotNegative = 0
    """So many of what was best for other models in the ledger."""
    qmc: NotNegative | None = None
    """So many points spread evenly over the space; left out: what is usual for its size."""
    singles: Flag = False
    """Of weights: each dataset alone, as far as the bounds allow."""
    all: Flag = False
    """Of weights: all datasets in equal shares."""
    leave_one_out: Flag = False
    """Of weights: all but one."""
    pairs: NotNegative = 0
    """Of weights: so many pairs in equal shares."""


class Parked(StrictModel):
    """What trainings that wait for a promotion may take."""

    at_most: Size | None = None
    """Of the disk, for their checkpoints; beyond it the least promising is dropped, which is a decision."""


class Rungs(StrictModel):
    """Epochs at which the better part of the trainings is promoted: the others are parked, not stopped."""

    at: Epochs
    """Epochs, ascending; needs a constant schedule."""
    keep: Share = 1 / 3
    """The part that is promoted, such as ``1/3``."""
    parked: Parked = Parked()
    """What waits."""


class Weights(StrictModel):
    """A mixture whose weights are searched: they are not negative and add up to 1."""

    samples: Positive
    """In total."""
    weights: dict[Text, tuple[Number, Number]] = Field(min_length=2)
    """The least and the greatest share of each dataset."""
    max_repeats: Positive = 1
    """How often a row may be taken where a dataset has fewer than are asked for."""
    at_most: Positive | None = None
    """Datasets with a weight above 0."""


class Stop(StrictModel):
    """When a search ends by itself."""

    regret: Share
    """How much better than the best that was found what was not tried may still be, such as ``5%``."""
    probability: Share = 0.9
    """With which it is not better than that."""


class SearchBudget(StrictModel):
    """What a search may take."""

    gpu_hours: AboveZero | None = None
    """Of training and scoring, as measured, of what the ledger did not have."""


class SearchEvaluation(StrictModel):
    """How much of a benchmark is asked of what a search tries."""

    shards: Literal["all", "adaptive"] = "all"
    """``adaptive``: a cell is dropped as soon as it is beaten."""


class Proxy(StrictModel):
    """What ranks candidates before any of them is trained."""

    merge: Literal["singles"]
    """Adapters that were trained on each dataset alone, merged with the weights of a mixture."""


class Confirm(StrictModel):
    """What is done with the best before the search ends."""

    top: Positive = 1
    """So many of the best."""
    seeds: Annotated[tuple[Seed, ...], OneOrMore, Field(min_length=1), Distinct]
    """Are trained with these seeds too."""


class Search(StrictModel):
    """A search: decides one after another which cells of a space are trained, by the outcomes of those before."""

    name: Name
    """For people, for ``show``, and for another search's ``from``."""
    from_: Annotated[Text | None, Field(alias="from")] = None
    """Another search, of which this one has everything that it does not say itself."""
    over: Strings | None = None
    """Blocks whose cells are the space; they are then not run in full. In place of what follows up to ``space``."""
    model: Strings | None = None
    """Models or model sets; several need ``objective.for_each`` or a place in the space."""
    mixture: Annotated[Weights | Strings | None, BeforeValidator(as_mean)] = None
    """A mixture or an entry of ``mixtures``; several need a place in the space. Or ``weights``, to be searched."""
    setting: Text | None = None
    """A setting: what of it is not in the space."""
    schedule: OneSchedule = Schedule(name="constant")
    """A learning-rate schedule: a name, or its fields."""
    horizon: Epoch = 1
    """Epochs that the schedule is made for."""
    snapshots: Epochs | None = None
    """Epochs after which the model is a cell; the last one's scores count. Left out: the horizon."""
    space: dict[str, Axis] = Field(default_factory=dict)
    """What is searched: fields of the setting, ``model`` and ``mixture``, each a list (of numbers: in their order) or a
    range."""
    objective: Objective
    """What it wants."""
    constraints: dict[str, Bound] = Field(default_factory=dict)
    """What a benchmark or measure must be, too."""
    rungs: Rungs | None = None
    """Early looks, by which only the better part is trained on."""
    sampler: Literal["auto", "tpe", "gp", "qmc", "random"] = "auto"
    """What proposes: Optuna's TPE or Gaussian process, points spread evenly, or at random. ``auto``: ``tpe`` where the
    space has names, else ``gp``."""
    trials: Positive | None = None
    """Cells that are tried in all, not further ones: raised, the search goes on where it was."""
    at_once: Annotated[Positive, Field(le=1000)] = 8
    """How far ahead it may decide: decision n rests on the outcomes of those up to n - at_once."""
    seed: Seed = 0
    """Draws whatever is drawn."""
    retries: NotNegative = 2
    """How often a cell that FAILED is tried again before it is given up."""
    start: Start = Start()
    """The first decisions."""
    order: Literal["strict", "arrival"] = "strict"
    """``strict``: the same decisions on any cluster, however often it is killed. ``arrival``: each rests on all
    outcomes that are there by then."""
    stop: Stop | None = None
    """When it ends by itself."""
    budget: SearchBudget = SearchBudget()
    """What it may take."""
    evaluate: SearchEvaluation = SearchEvaluation()
    """How much is asked of what it tries."""
    proxy: Proxy | None = None
    """What ranks candidates before they are trained."""
    confirm: Confirm | None = None
    """What is done with the best."""
