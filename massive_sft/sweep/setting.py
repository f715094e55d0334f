"""Settings: entries merged over their defaults, and a block's overrides as axes over them."""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from massive_sft.core.errors import Problem
from massive_sft.core.fingerprint import canonical_json
from massive_sft.sweep.schema import Setting
from massive_sft.sweep.yaml_errors import Location, ToPlace, to_problems

DEFAULTS = "defaults"


@dataclass(frozen=True)
class Variant:
    """A setting with a block's overrides written in.

    ``label`` says what is overridden beside the seed, e.g. ``lr=1e-05,lora.rank=8``; LoRA's fields only for LoRA.
    """

    name: str
    setting: Setting
    label: str


@functools.cache
def takes_numbers(field: str) -> bool:
    """Whether a dotted field takes numbers."""
    return not field_values(field, 8, "")[1] or not field_values(field, 0.5, "")[1]


@functools.cache
def takes_whole_numbers(field: str) -> bool:
    """Whether a dotted field takes whole numbers alone."""
    return bool(field_values(field, 0.5, "")[1]) and not field_values(field, 8, "")[1]


def make_variant(name: str, setting: Setting, values: Mapping[str, Any]) -> Variant:
    """Return a setting with dotted fields replaced. Raises pydantic's ValidationError."""
    changed = Setting.model_validate(_overridden(setting.model_dump(), values))
    return Variant(name, changed, _label(changed, sorted(values)))


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


def field_value(setting: Setting, field: str) -> Any:
    """Return the value of a dotted field; None for a field of LoRA when it is not used."""
    if field.startswith("lora.") and setting.method != "lora":
        return None
    return functools.reduce(getattr, field.split("."), setting)


def field_values(field: str, written: Any, place: str) -> tuple[tuple[Any, ...], list[Problem]]:
    """Return the values of a field that ``written`` (one, or a list) stands for, and what is wrong with them."""
    accepted: list[Any] = []
    problems: list[Problem] = []
    for value in _axis(field, written):
        raw = _overridden({"method": "lora", "lr": 1.0, "batch": 1}, {field: value})
        try:
            accepted.append(functools.reduce(getattr, field.split("."), Setting.model_validate(raw)))
        except ValidationError as error:
            problems += to_problems(error, Setting, functools.partial(_always, place))
    return tuple(accepted), problems


class Settings:
    """The ``settings`` section: raw entries, validated after they are merged over ``defaults``."""

    def __init__(self, raw: Mapping[str, Mapping[str, Any]], to_place: ToPlace):
        self.names = [name for name in raw if name != DEFAULTS]
        self.problems: list[Problem] = []
        self._raw, self._where = raw, to_place
        self._merged = {name: _over(raw.get(DEFAULTS, {}), raw[name]) for name in self.names}
        if not self.names:
            self.problems.append(Problem(to_place(()), "must hold at least one setting beside defaults"))
        self.valid = {
            name: setting
            for name in self.names
            if (setting := self._validate(self._merged[name], functools.partial(self._origin, name)))
        }

    def variants(self, names: Sequence[str], override: Mapping[str, Any], to_place: ToPlace) -> list[Variant]:
        """Return the named settings crossed with the override's axes; wrong values are put into ``problems``."""
        axes = self._axes(override, to_place)
        unique: dict[Any, Variant] = {}
        for name in names:
            if name in self.valid and self._accepts(name, axes, to_place):
                used = self._used(name, axes)
                for values in itertools.product(*used.values()):
                    chosen = dict(zip(used, values, strict=True))
                    setting = Setting.model_validate(_overridden(self._merged[name], chosen))
                    variant = Variant(name, setting, _label(setting, sorted(axes)))
                    unique.setdefault((name, variant.label, setting.seed), variant)
        return list(unique.values())

    def check(self, names: Sequence[str], override: Mapping[str, Any], to_place: ToPlace) -> None:
        """Put the override's wrong fields, and values that the named settings do not accept, into ``problems``."""
        axes = self._axes(override, to_place)
        for name in filter(self.valid.__contains__, names):
            self._accepts(name, axes, to_place)

    def count(self, names: Sequence[str], override: Mapping[str, Any]) -> int:
        """Return how many variants ``variants`` goes through, in an instant however many they are."""
        axes = {field: _axis(field, value) for field, value in flatten_fields(override)}
        return sum(math.prod(map(len, self._used(name, axes).values())) for name in names)

    def _used(self, name: str, axes: Mapping[str, tuple[Any, ...]]) -> Mapping[str, tuple[Any, ...]]:
        """Return a setting's axes: full tuning under an axis of LoRA is one variant, not one for every value."""
        if "method" in axes or self._merged.get(name, {}).get("method") == "lora":
            return axes
        return {field: values[:1] if field.startswith("lora.") else values for field, values in axes.items()}

    def _axes(self, override: Mapping[str, Any], to_place: ToPlace) -> dict[str, tuple[Any, ...]]:
        axes: dict[str, tuple[Any, ...]] = {}
        for name, value in flatten_fields(override):
            if name not in FIELDS:
                self.problems.append(Problem(to_place(()), "unknown setting field", name, FIELDS))
                continue
            if name in axes:
                self.problems.append(Problem(to_place(()), "a field is given twice", name))
            axes[name] = _axis(name, value)
            if not axes[name]:
                self.problems.append(Problem(to_place((name,)), "must hold at least one value", []))
            twice = [item for item, count in Counter(map(str, axes[name])).items() if count > 1]
            if twice:
                self.problems.append(
                    Problem(to_place((name,)), "must hold each value once, but one is there twice", twice[0])
                )
        return axes

    def _accepts(self, name: str, axes: Mapping[str, tuple[Any, ...]], to_place: ToPlace) -> bool:
        """Try one value at a time, so that a wrong one is named with its index."""
        accepted = True
        for field, values in axes.items():
            for index, value in enumerate(values):
                place = to_place((*field.split("."), *((index,) if len(values) > 1 else ())))
                raw = _overridden(self._merged[name], {field: value})
                accepted = self._validate(raw, functools.partial(_always, place)) is not None and accepted
        return accepted

    def _validate(self, raw: Mapping[str, Any], to_place: ToPlace) -> Setting | None:
        try:
            return Setting.model_validate(raw)
        except ValidationError as error:
            known = {str(problem) for problem in self.problems}  # a default's mistake shows in every setting
            self.problems += [item for item in to_problems(error, Setting, to_place) if str(item) not in known]
            return None

    def _origin(self, name: str, location: Location) -> str:
        return self._where((written_in(self._raw, name, location), *location))


def _axis(field: str, value: Any) -> tuple[Any, ...]:
    """Return a field's values: those of a list, or the value itself, which for some fields is a list."""
    is_list = isinstance(value, (list, tuple))
    is_axis = is_list and (field not in LIST_FIELDS or any(isinstance(item, (list, tuple)) for item in value))
    return tuple(value) if is_axis else (value,)


def _label(setting: Setting, fields: Iterable[str]) -> str:
    shown = (
        field for field in fields if field != "seed" and (not field.startswith("lora.") or setting.method == "lora")
    )
    return ",".join(f"{field}={_text(field_value(setting, field))}" for field in shown)


def _text(value: Any) -> str:
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return value if isinstance(value, str) else "none" if value is None else canonical_json(value)


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``above`` over the defaults ``below``: mappings merge, all else replaces; null is a value like others."""
    merged = dict(below)
    for key, value in above.items():
        lower = merged.get(key)
        merged[key] = _over(lower, value) if isinstance(value, Mapping) and isinstance(lower, Mapping) else value
    return merged


def _always(place: str, location: Location) -> str:
    return place


def written_in(raw: Mapping[str, Mapping[str, Any]], name: str, location: Location) -> str:
    """Return which entry of ``settings`` has a setting's field: its own, or the defaults that it is merged over."""
    inherited = location and not _holds(raw[name], location) and _holds(raw.get(DEFAULTS, {}), location)
    return DEFAULTS if inherited else name


def _holds(value: Any, location: Location) -> bool:
    """Whether a place within raw mappings is written there; a place in a list is where the list is."""
    for step in location:
        if not isinstance(value, Mapping) or step not in value:
            return not isinstance(value, Mapping) and isinstance(step, int)
        value = value[step]
    return True


def flatten_fields(value: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Yield a raw setting's or override's fields by dotted name, e.g. ``lora.rank``."""
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, Mapping) and any(field.startswith(f"{name}.") for field in FIELDS):
            yield from flatten_fields(item, f"{name}.")
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
