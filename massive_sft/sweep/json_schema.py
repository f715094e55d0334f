"""The sweep file's JSON Schema, by which editors complete and mark: written from the pydantic classes that check it.

It accepts every file that loads. What spans several entries (names, horizons) and the rules that tie fields together
are for ``sweep.load`` alone, so a file that it accepts may still be wrong.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

from massive_sft.sweep.schema import SCHEDULES, Setting, SweepFile
from massive_sft.sweep.schema.field_types import as_epochs, as_half_width, as_tuple
from massive_sft.sweep.schema.search import as_axis, as_mean, as_schedule, as_share
from massive_sft.sweep.schema.sweep_file import as_schedules
from massive_sft.sweep.schema.training import none_is_null

Schema = dict[str, Any]


def json_schema() -> Schema:
    """Return the JSON Schema (2020-12) of a sweep file, as JSON values."""
    schema = SweepFile.model_json_schema(by_alias=True, schema_generator=_Generator)
    schema["$schema"] = GenerateJsonSchema.schema_dialect
    schema["title"] = "massive-sft sweep file"
    schema["properties"]["settings"] = _settings(schema["$defs"])
    return schema


def _settings(definitions: Schema) -> Schema:
    """Return the schema of ``settings``: each entry is merged over ``defaults`` before it is a whole setting."""
    setting = Setting.model_json_schema(by_alias=True, schema_generator=_Generator)
    definitions |= setting.pop("$defs")
    partial = copy.deepcopy(setting) | {"title": "Setting"}
    partial.pop("required")
    for name in ("Optimizer", "Lora"):
        definitions[name].pop("required", None)
    definitions["Setting"] = partial
    return {"type": "object", "additionalProperties": {"$ref": "#/$defs/Setting"}}


def _one_or_more(inner: Schema) -> Schema:
    return {"anyOf": [inner["items"], inner]}


def _epochs(inner: Schema) -> Schema:
    ranges = {"type": "string", "pattern": r"^\d+\.\.\d+$", "description": "a range of epochs such as 1..10"}
    return {"anyOf": [inner["items"], ranges, inner]}


def _half_width(inner: Schema) -> Schema:
    signed = {"type": "string", "pattern": r"^± ?\d+(\.\d+)?$", "description": "points such as ±2"}
    return {"anyOf": [inner, signed]}


def _schedules(inner: Schema) -> Schema:
    one = {"anyOf": [{"enum": list(SCHEDULES)}, inner["items"]]}
    return {"anyOf": [one, inner | {"items": one}]}


def _or_none(inner: Schema) -> Schema:
    return {"anyOf": [{"const": "none"}, inner]}


def _schedule(inner: Schema) -> Schema:
    return {"anyOf": [{"enum": list(SCHEDULES)}, inner]}


def _share(inner: Schema) -> Schema:
    written = {"type": "string", "pattern": r"^(\d+/\d+|\d+(\.\d+)? ?%)$", "description": "such as 1/3 or 5%"}
    return {"anyOf": [inner, written]}


def _one_or_list_or_mapping(inner: Schema) -> Schema:
    """Return the schema of a mapping, or of a list which one of its items may stand for."""
    lists = [one for one in inner["anyOf"] if one.get("type") == "array"]
    return {"anyOf": [*inner["anyOf"], *(one["items"] for one in lists)]}


# What a file may say in place of what a field holds, by the validator that turns the one into the other.
_WRITTEN: Mapping[Any, Callable[[Schema], Schema]] = {
    as_tuple: _one_or_more,
    as_epochs: _epochs,
    as_half_width: _half_width,
    as_schedules: _schedules,
    none_is_null: _or_none,
    as_schedule: _schedule,
    as_share: _share,
    as_mean: _one_or_list_or_mapping,
    as_axis: _one_or_list_or_mapping,
}


class _Generator(GenerateJsonSchema):
    """Describes what is written in the file, not what it is turned into."""

    def function_before_schema(self, schema: core_schema.BeforeValidatorFunctionSchema) -> Schema:
        """Return the schema of a value before its validator."""
        inner = super().function_before_schema(schema)
        written = _WRITTEN.get(schema["function"]["function"])
        return inner if written is None else written(inner)
