"""From pydantic's validation errors to problems that name the place, the rule, the value and the valid choices."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ValidationError

from massive_sft.core.errors import UNSET, Problem
from massive_sft.sweep.schema.field_types import PATTERN_RULES

Location = tuple[str | int, ...]
ToPlace = Callable[[Location], str]
"""Turns a location within an entry into the place to print, such as ``x.yaml: blocks[2].snapshots``."""
BOUNDS = {"greater_than": (">", "gt"), "greater_than_equal": (">=", "ge"), "less_than": ("<", "lt"),
          "less_than_equal": ("<=", "le")}  # fmt: skip


def format_location(location: Location) -> str:
    """Return ``blocks[2].snapshots`` for ``("blocks", 2, "snapshots")``; a name with a dot or bracket is quoted."""
    text = ""
    for step in location:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += ("." if text else "") + (f'"{step}"' if re.search(r"[.\[\]\s]", step) else step)
    return text


def independent_errors(error: ValidationError) -> list[Any]:
    """Return pydantic's errors less those that only follow from others: a list is too short when its items failed."""
    items = error.errors()
    return [
        item
        for item in items
        if item["type"] != "too_short"
        or not any(len(o["loc"]) > len(item["loc"]) and o["loc"][: len(item["loc"])] == item["loc"] for o in items)
    ]


def to_problems(error: ValidationError, root: type[BaseModel], to_place: ToPlace) -> list[Problem]:
    """Return one problem per field that failed; ``where`` turns a location within ``root`` into the place to print."""
    problems: dict[str, Problem] = {}
    # What may be a name or a mapping, and is a mapping, is judged as one; that it is no name is said last, if at all.
    for item in sorted(independent_errors(error), key=_is_no_name):
        location, owner = _walk(root, item["loc"])
        if _is_no_name(item) and any(place.startswith(to_place(location)) for place in problems):
            continue
        if item["type"] == "extra_forbidden":
            keys = [field.alias or key for key, field in owner.model_fields.items()] if owner else []
            # Asked of the key itself: what holds it may be merged of two mappings, of which one was written there.
            place, end = to_place(location), f".{location[-1]}"
            holder = place.removesuffix(end) if place.endswith(end) else to_place(location[:-1])
            problem = Problem(holder, "unknown key", location[-1], keys)
            problems[f"{problem.place} {problem.value}"] = problem
        else:
            problem = _problem(dict(item), to_place(location))
            problems[problem.place] = _either(problems.get(problem.place, problem), problem)
    return list(problems.values())


def _either(first: Problem, other: Problem) -> Problem:
    """Return the first of two problems of one value; where one offers choices, the other's rule is a way out too."""
    if bool(first.choices) == bool(other.choices):
        return first
    named, free = (first, other) if first.choices else (other, first)
    rule = f"{named.rule}, or {re.sub('^must (be )?', '', free.rule)}"
    return Problem(named.place, rule, free.value if named.value is UNSET else named.value, named.choices)


def _is_no_name(item: Any) -> bool:
    return item["type"] == "literal_error" and isinstance(item["input"], dict)


def _walk(root: type[BaseModel], raw: Location) -> tuple[Location, type[BaseModel] | None]:
    """Drop what pydantic adds to a location for unions; return it with the class that owns its last step."""
    location: list[str | int] = []
    current: Any = root
    owner: type[BaseModel] | None = root
    for step in raw:
        kinds = _alternatives(current)
        model = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        if model is not None and isinstance(step, str):
            owner = model
            if step == model.__name__:
                continue
            field = _field(model, step)
            if field is None and _extras(model) is None and _is_tag(step):
                continue
            current = field.annotation if field is not None else _extras(model)
        elif any(typing.get_origin(kind) is dict for kind in kinds):
            if step == "[key]":
                continue
            current = next(typing.get_args(kind)[1] for kind in kinds if typing.get_origin(kind) is dict)
            owner = None
        elif isinstance(step, int):
            sequence = next((kind for kind in kinds if typing.get_origin(kind) in (tuple, list)), None)
            current = typing.get_args(sequence)[min(step, len(typing.get_args(sequence)) - 1)] if sequence else Any
            if current is Ellipsis:
                current = typing.get_args(sequence)[0]
            owner = None
        elif current is not Any and _is_tag(step):
            continue
        location.append(step)
    return tuple(location), owner


def _alternatives(kind: Any) -> list[Any]:
    """Return the members of a union, ``Annotated`` unwrapped."""
    if typing.get_origin(kind) is typing.Annotated:
        return _alternatives(typing.get_args(kind)[0])
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return [inner for member in typing.get_args(kind) for inner in _alternatives(member)]
    return [kind]


def _is_tag(step: str | int) -> bool:
    return isinstance(step, str) and (
        step in ("int", "str", "float", "bool") or step.startswith("constrained-") or "[" in step
    )


def _field(model: type[BaseModel], name: str) -> Any:
    return next((field for key, field in model.model_fields.items() if (field.alias or key) == name), None)


def _extras(model: type[BaseModel]) -> Any:
    extras = model.__annotations__.get("__pydantic_extra__")
    if extras is None:
        return None
    return typing.get_args(typing.get_type_hints(model)["__pydantic_extra__"])[1]


def _problem(item: dict[str, Any], place: str) -> Problem:
    kind, context = item["type"], item.get("ctx", {})
    value = _printable(item["input"])
    if kind == "missing":
        return Problem(place, "is required")
    if kind == "literal_error":
        choices = [choice.strip("'") for choice in re.split(r", | or ", str(context["expected"]))]
        return Problem(place, "must be one of the valid values", value, choices)
    if kind in BOUNDS:
        sign, key = BOUNDS[kind]
        return Problem(place, f"must be {sign} {context[key]}", value)
    if kind == "value_error":
        return Problem(place, str(context["error"]), value)
    if kind == "string_pattern_mismatch":
        return Problem(place, PATTERN_RULES[context["pattern"]], value)
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        return Problem(place, "must be a mapping (key: value)", value)
    if kind == "string_too_long":
        return Problem(place, f"must have at most {context['max_length']} characters, not {len(item['input'])}")
    if kind in ("too_short", "string_too_short"):
        return Problem(place, "must not be empty")
    rule = re.sub(r"^Input should", "must", item["msg"]).replace("must be a valid tuple", "must be a list")
    return Problem(place, rule, value)


def _printable(value: Any) -> Any:
    """Return what is worth printing of a value: a scalar, unless it is a number of hundreds of digits."""
    if isinstance(value, int):
        return value if value.bit_length() < 256 else UNSET
    return value if isinstance(value, (str, float, type(None))) else UNSET
