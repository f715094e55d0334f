"""From pydantic's validation errors to problems that name the place, the rule, the value and the valid choices."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ValidationError

from massive_sft.core.errors import UNSET, Problem
from massive_sft.sweep.hints import hint_of_key, hint_of_list, hint_of_mapping, hint_of_several
from massive_sft.sweep.schema.field_types import PATTERN_RULES, VARIABLE

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


def as_written(location: Location, raw: Any) -> Location:
    """Return a location as the file has it: without the list and the mapping that one value may stand for.

    ``schedule: cosine`` is read as ``[{name: cosine}]``; the location of its name is that of ``schedule``.
    """
    written: list[str | int] = []
    for number, step in enumerate(location):
        if isinstance(raw, Mapping) and isinstance(step, int):
            continue
        if not isinstance(raw, Mapping | list | tuple):
            break
        inner: Any = raw
        try:
            raw = inner[step]
        except (KeyError, IndexError, TypeError):  # it is required
            return (*written, *location[number:])
        written.append(step)
    return tuple(written)


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
    # What may be a name, a list or a mapping is judged as what it is; that it is none of the others is said last, if
    # at all.
    for item in sorted(independent_errors(error), key=_is_other_form):
        location, owner = _walk(root, item["loc"], is_key=item["type"] == "extra_forbidden")
        if _is_other_form(item) and any(_is_within(one.place, to_place, location) for one in problems.values()):
            continue
        if item["type"] == "extra_forbidden":
            keys = [field.alias or key for key, field in owner.model_fields.items()] if owner else []
            # Asked of the key itself: what holds it may be merged of two mappings, of which one was written there.
            place, ends = to_place(location), (f".{location[-1]}", f": {location[-1]}")
            holder = next((place.removesuffix(end) for end in ends if place.endswith(end)), to_place(location[:-1]))
            problem = Problem(
                holder, "unknown key", location[-1], keys, hint_of_key(location[-1], item["input"], owner)
            )
            problems[f"{problem.place} {problem.value}"] = problem
        else:
            problem = _problem(dict(item), to_place(location))
            problem = replace(problem, hint=_hint(item, location, owner, root))
            problems[problem.place] = _either(problems.get(problem.place, problem), problem)
    return list(problems.values())


def _either(first: Problem, other: Problem) -> Problem:
    """Return the first of two problems of one value; where one offers choices, the other's rule is a way out too."""
    if bool(first.choices) == bool(other.choices):
        return first
    named, free = (first, other) if first.choices else (other, first)
    rule = f"{named.rule}, or {re.sub('^must (be )?', '', free.rule)}"
    return Problem(named.place, rule, free.value if named.value is UNSET else named.value, named.choices)


def _is_other_form(item: Any) -> int:
    """Return 0 unless a value failed as what it was not meant to be; what is of an entry comes before its list."""
    kind, value = item["type"], item["input"]
    if kind in ("literal_error", "string_type") and isinstance(value, dict):
        return 1
    is_list, is_mapping = isinstance(value, list | tuple), isinstance(value, dict)
    return 2 if (kind == "model_type" and is_list) or (kind == "tuple_type" and is_mapping) else 0


def _is_within(place: str, to_place: ToPlace, location: Location) -> bool:
    """Whether a place is at a location or in it."""
    whole = to_place(location)
    return place == whole or place.startswith((f"{whole}.", f"{whole}["))


def _walk(root: type[BaseModel], raw: Location, is_key: bool) -> tuple[Location, type[BaseModel] | None]:
    """Drop what pydantic adds to a location for unions; return it with the class that owns its last step.

    Args:
        is_key: whether the last step is a key of the file, whatever it looks like.
    """
    location: list[str | int] = []
    current: Any = root
    owner: type[BaseModel] | None = root
    for number, step in enumerate(raw, start=1):
        kinds = _alternatives(current)
        model = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        if model is not None and isinstance(step, str):
            owner = model
            if step == model.__name__:
                continue
            field = _field(model, step)
            if field is None and _extras(model) is None and _is_tag(step) and not (is_key and number == len(raw)):
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
        more = "; a file that only changes another one goes with it, as --overlay" if item["loc"] == ("schema",) else ""
        return Problem(place, f"is required{more}")
    if kind == "literal_error":
        choices = [choice.strip("'") for choice in re.split(r", | or ", str(context["expected"]))]
        return Problem(place, "must be one of the valid values", value, choices)
    if kind in BOUNDS:
        sign, key = BOUNDS[kind]
        return Problem(place, f"must be {sign} {context[key]}", value)
    if kind == "value_error":
        return Problem(place, str(context["error"]), value)
    if kind == "string_pattern_mismatch":
        # Who takes a key's variable for the key itself finds it in no log.
        return Problem(place, PATTERN_RULES[context["pattern"]], UNSET if context["pattern"] == VARIABLE else value)
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        other = ", not a list" if isinstance(item["input"], list | tuple) else ""
        return Problem(place, f"must be a mapping (key: value){other}", value)
    if kind == "tuple_type":
        return Problem(place, "must be a list" + (", not a mapping" if isinstance(item["input"], dict) else ""), value)
    if kind == "too_long":
        return Problem(place, f"must have at most {context['max_length']} entries, not {context['actual_length']}")
    if kind == "string_too_long":
        return Problem(place, f"must have at most {context['max_length']} characters, not {len(item['input'])}")
    if kind == "too_short" and context["min_length"] > 1:
        return Problem(place, f"must have at least {context['min_length']} entries, not {context['actual_length']}")
    if kind in ("too_short", "string_too_short"):
        return Problem(place, "must not be empty")
    rule = re.sub(r"^Input should", "must", item["msg"])
    return Problem(place, rule, value)


def _hint(item: Any, location: Location, owner: type[BaseModel] | None, root: type[BaseModel]) -> str:
    """Return what to write instead of a value of the wrong kind; an empty text where that cannot be told."""
    kind, value = item["type"], item["input"]
    if kind in ("model_type", "dict_type"):
        return hint_of_mapping(str(item.get("ctx", {}).get("class_name", "")), value)
    if kind == "tuple_type":
        return hint_of_list(_entry_kind(owner, location[-1]), value)
    if kind in ("float_type", "int_type", "literal_error") and isinstance(value, list) and root.__name__ == "Setting":
        return hint_of_several(format_location(location), value)
    return ""


def _entry_kind(owner: type[BaseModel] | None, name: str | int) -> str:
    """Return the class that the entries of a list must be of, such as float; an empty text where they may be texts."""
    field = _field(owner, str(name)) if owner is not None else None
    lists = _alternatives(field.annotation) if field is not None else []
    kinds = [kind for each in lists for entry in typing.get_args(each)[:1] for kind in _alternatives(entry)]
    takes_texts = any(kind is str or typing.get_origin(kind) is typing.Literal for kind in kinds)
    return "" if takes_texts or not kinds else str(kinds[0].__name__)


def _printable(value: Any) -> Any:
    """Return what is worth printing of a value: a scalar, unless it is a number of hundreds of digits."""
    if isinstance(value, int):
        return value if value.bit_length() < 256 else UNSET
    return value if isinstance(value, (str, float, type(None))) else UNSET
