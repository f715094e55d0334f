"""Excludes: which cells of a block's full cross are left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from massive_sft.core.errors import Problem
from massive_sft.sweep.schema import Schedule, StrictModel
from massive_sft.sweep.schema.field_types import Epochs, OneOrMore, Positive, Strings
from massive_sft.sweep.setting import FIELDS, Variant, field_value, field_values
from massive_sft.sweep.spec import Mixture
from massive_sft.sweep.yaml_errors import ToPlace, to_problems


class ExcludeKeys(StrictModel):
    """What an exclude may name beside the fields of a setting: one value or several.

    ``size`` is ``all`` for a mixture of all rows; ``schedule`` a schedule's name or its label.
    """

    model: Strings | None = None
    mixture: Strings | None = None
    setting: Strings | None = None
    size: Annotated[tuple[Positive | Literal["all"], ...], OneOrMore, Field(min_length=1)] | None = None
    schedule: Strings | None = None
    snapshot: Epochs | None = None


EXCLUDE_KEYS = tuple(ExcludeKeys.model_fields)


@dataclass(frozen=True)
class Exclude:
    """One exclude: a cell that has one of the values of everything it names is left out.

    Attributes:
        written: as it stands in the file.
        coordinates: parsed; ``models`` and ``mixtures`` are the names in it expanded, None where it names none.
        fields: the accepted values of a setting's dotted fields.
    """

    written: Mapping[str, Any]
    coordinates: ExcludeKeys
    fields: Mapping[str, tuple[Any, ...]]
    models: frozenset[str] | None = None
    mixtures: frozenset[tuple[str, int | None]] | None = None

    def matches(self, model: str, mixture: Mixture, variant: Variant, schedule: Schedule) -> bool:
        """Whether it matches a training run, snapshots aside."""
        wanted = self.coordinates
        return (
            (self.models is None or model in self.models)
            and (self.mixtures is None or mixture.key in self.mixtures)
            and (wanted.setting is None or variant.name in wanted.setting)
            and (wanted.size is None or (mixture.size or "all") in wanted.size)
            and (wanted.schedule is None or not {schedule.name, schedule.label}.isdisjoint(wanted.schedule))
            and all(field_value(variant.setting, field) in values for field, values in self.fields.items())
        )

    def has_epoch(self, epoch: int) -> bool:
        return self.coordinates.snapshot is None or epoch in self.coordinates.snapshot


def parse_exclude(written: Mapping[str, Any], to_place: ToPlace) -> tuple[Exclude, list[Problem]]:
    """Return an exclude, its names not expanded yet, and what is wrong with it. Values have their field's own type."""
    problems: list[Problem] = []
    fields: dict[str, tuple[Any, ...]] = {}
    if not written:
        problems.append(Problem(to_place(()), "must name at least one coordinate", {}, (*EXCLUDE_KEYS, *FIELDS)))
    for key, value in written.items():
        if key in FIELDS:
            fields[key], wrong = field_values(key, value, to_place((key,)))
            problems += wrong if wrong or fields[key] else [Problem(to_place((key,)), "must not be empty")]
        elif key not in EXCLUDE_KEYS:
            problems.append(Problem(to_place(()), "unknown coordinate", key, (*EXCLUDE_KEYS, *FIELDS)))
    named = {key: value for key, value in written.items() if key in EXCLUDE_KEYS}
    coordinates = ExcludeKeys()
    try:
        # None is what is not named: written out, it is a value, and a wrong one.
        coordinates = ExcludeKeys.model_validate(
            {key: value if value is not None else [None] for key, value in named.items()}
        )
    except ValidationError as error:
        problems += to_problems(error, ExcludeKeys, to_place)
    return Exclude(written, coordinates, fields), problems
