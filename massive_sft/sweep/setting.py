"""Settings: entries merged over their defaults, and a block's overrides as axes over them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import BaseModel, ValidationError

from massive_sft.errors import Problem
from massive_sft.sweep.schema import Setting
from massive_sft.sweep.yaml_errors import Location, problems_of
from massive_sft.sweep.yaml_file import merge

DEFAULTS = "defaults"
Where = Callable[[Location], str]


@dataclass(frozen=True)
class Variant:
    """A setting with a block's overrides written in.

    ``overrides`` holds the overridden fields by dotted name, e.g. ``{"seed": 1}``.
    """

    name: str
    setting: Setting
    overrides: Mapping[str, Any]


def leaf_fields(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Return the dotted names of a class's leaf fields, e.g. ``lr``, ``lora.rank``."""
    names: list[str] = []
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names += leaf_fields(field.annotation, f"{prefix}{name}.")
        else:
            names.append(f"{prefix}{name}")
    return names


FIELDS = tuple(leaf_fields(Setting))
LIST_FIELDS = ("optimizer.betas", "lora.targets")  # a plain list is one value of these, a list of lists an axis


class Settings:
    """The ``settings`` section: raw entries, validated after they are merged over ``defaults``."""

    def __init__(self, raw: Mapping[str, Mapping[str, Any]], where: Where):
        self.names = [name for name in raw if name != DEFAULTS]
        self.problems: list[Problem] = []
        self._raw, self._where = raw, where
        self._merged = {name: merge(raw.get(DEFAULTS, {}), raw[name]) for name in self.names}
        if not self.names:
            self.problems.append(Problem(where(()), "must hold at least one setting beside defaults"))
        self.valid = {
            name: setting
            for name in self.names
            if (setting := self._validate(self._merged[name], partial(self._origin, name)))
        }

    def variants(self, names: Sequence[str], override: Mapping[str, Any], where: Where) -> list[Variant]:
        """Return the named settings crossed with the override's axes; wrong values are put into ``problems``."""
        axes = self._axes(override, where)
        found: list[Variant] = []
        for name in names:
            if name in self.valid and self._accepts(name, axes, where):
                for values in itertools.product(*axes.values()):
                    chosen = dict(zip(axes, values, strict=True))
                    found.append(Variant(name, Setting.model_validate(_overridden(self._merged[name], chosen)), chosen))
        return found

    def _axes(self, override: Mapping[str, Any], where: Where) -> dict[str, tuple[Any, ...]]:
        axes: dict[str, tuple[Any, ...]] = {}
        for name, value in _flatten(override):
            if name not in FIELDS:
                self.problems.append(Problem(where(()), "unknown setting field", name, FIELDS))
                continue
            is_list = isinstance(value, (list, tuple))
            is_axis = is_list and (name not in LIST_FIELDS or any(isinstance(item, (list, tuple)) for item in value))
            if is_axis and not value:
                self.problems.append(Problem(where((name,)), "must hold at least one value", []))
            axes[name] = tuple(value) if is_axis else (value,)
        return axes

    def _accepts(self, name: str, axes: Mapping[str, tuple[Any, ...]], where: Where) -> bool:
        """Try one value at a time, so that a wrong one is named with its index."""
        accepted = True
        for field, values in axes.items():
            for index, value in enumerate(values):
                place = where((*field.split("."), *((index,) if len(values) > 1 else ())))
                raw = _overridden(self._merged[name], {field: value})
                accepted = self._validate(raw, partial(_always, place)) is not None and accepted
        return accepted

    def _validate(self, raw: Mapping[str, Any], where: Where) -> Setting | None:
        try:
            return Setting.model_validate(raw)
        except ValidationError as error:
            known = {str(problem) for problem in self.problems}  # a default's mistake shows in every setting
            self.problems += [item for item in problems_of(error, Setting, where) if str(item) not in known]
            return None

    def _origin(self, name: str, location: Location) -> str:
        """Return where a field was written: in the setting itself, or in the defaults it is merged over."""
        inherited = location and not _holds(self._raw[name], location) and _holds(self._raw.get(DEFAULTS, {}), location)
        return self._where((DEFAULTS if inherited else name, *location))


def _always(place: str, location: Location) -> str:
    return place


def _holds(value: Any, location: Location) -> bool:
    for step in location:
        if not isinstance(value, Mapping) or step not in value:
            return not isinstance(value, Mapping)
        value = value[step]
    return True


def _flatten(value: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, Mapping) and any(field.startswith(f"{name}.") for field in FIELDS):
            yield from _flatten(item, f"{name}.")
        else:
            yield name, item


def _overridden(raw: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of ``raw`` with dotted fields set."""
    result = dict(raw)
    for name, value in values.items():
        head, _, rest = name.partition(".")
        below = result.get(head)
        result[head] = _overridden(below if isinstance(below, Mapping) else {}, {rest: value}) if rest else value
    return result
