"""Checks of the texts and names in a sweep file: they must fit into paths, tables and the tracker."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

from massive_sft.core.errors import UNSET, Problem
from massive_sft.sweep.schema.field_types import MAX_NAME_BYTES
from massive_sft.sweep.yaml_errors import Location, ToPlace

NAMED = ("models", "model_sets", "datasets", "mixtures", "settings")  # sections whose keys are names


def find_text_problems(raw: Mapping[str, Any], to_place: ToPlace) -> list[Problem]:
    """Return the texts that no file or path can hold, and the names that are too long, empty or cannot be printed."""
    problems = [Problem(to_place(place), rule) for place, text in _texts(raw, ()) if (rule := _unfit(text))]
    for section in NAMED:
        entries = raw.get(section)
        for name in entries if isinstance(entries, Mapping) else ():
            problems += [Problem(to_place((section,)), f"a name {rule}", value) for rule, value in _name(name)]
    blocks = raw.get("blocks")
    for index, block in enumerate(blocks if isinstance(blocks, (list, tuple)) else ()):
        name = block.get("name") if isinstance(block, Mapping) else None
        if isinstance(name, str) and name:
            problems += [Problem(to_place(("blocks", index, "name")), rule, value) for rule, value in _name(name)]
    return problems


def _texts(value: Any, place: Location) -> Iterator[tuple[Location, str]]:
    """Yield every text in a value with its place; a key with the place of its mapping."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield place, str(key)
            yield from _texts(item, (*place, str(key)) if not _unfit(str(key)) else place)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _texts(item, (*place, index))


def _unfit(text: str) -> str | None:
    if "\0" in text:
        return "holds a NUL character (\\0), which no path and no tokenizer takes"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "holds half of a character (a lone surrogate such as \\ud800), which is no text"
    return None


def _name(name: str) -> Iterator[tuple[str, Any]]:
    if _unfit(name):
        return
    if not name.strip():
        yield "must not be empty", name
    if len(name.encode()) > MAX_NAME_BYTES:
        yield f"must have at most {MAX_NAME_BYTES} characters (bytes of UTF-8), not {len(name.encode())}", UNSET
    if any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in name):
        yield "must be one line of characters that can be printed", name
