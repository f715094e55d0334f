"""YAML files and overlays."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from massive_sft.core.errors import UNSET, InvalidInput, Problem
from massive_sft.core.files import name_beside


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML 1.2 mapping. Raises InvalidInput with file and line; a key given twice is an error."""
    try:
        value = copy.deepcopy(_parse(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise InvalidInput(Problem(str(path), f"there is no such file{name_beside(path)}")) from None
    except OSError as error:
        raise InvalidInput(Problem(str(path), f"cannot be read ({error.strerror})")) from None
    except (YAMLError, ValueError) as error:
        raise InvalidInput(yaml_problem(path, error)) from None
    if not isinstance(value, dict):
        raise InvalidInput(Problem(str(path), "must be a mapping (key: value)", value))
    count = _values(value, {})
    if count > MAX_VALUES:
        rule = f"holds {count:,} values once its anchors are replaced, more than {MAX_VALUES:,}"
        raise InvalidInput(Problem(str(path), rule))
    return value


def yaml_problem(path: Path, error: YAMLError | ValueError) -> Problem:
    """Return what is wrong with a YAML file by the error that reading it raised, with its line where that is known."""
    if isinstance(error, UnicodeDecodeError):
        return Problem(str(path), f"is not UTF-8 text ({error.reason})")
    if isinstance(error, DuplicateKeyError):
        key = _DUPLICATE.search(str(error.problem))
        rule = "a key is there a second time in one mapping"
        return Problem(f"{path}:{error.problem_mark.line + 1}", rule, key[1] if key else UNSET)
    if isinstance(error, MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        return Problem(f"{path}:{mark.line + 1}" if mark else str(path), f"is not valid YAML: {error.problem}")
    if isinstance(error, YAMLError):
        return Problem(str(path), f"is not valid YAML: {error}")
    # Such as of a date like 2024-13-01, of a number of thousands of digits.
    return Problem(str(path), f"holds a value that cannot be read: {error}")


def _values(value: Any, known: dict[int, int]) -> int:
    """Return how many values a value holds, in time that hangs on what is written, not on what anchors make of it."""
    if not isinstance(value, (dict, list)):
        return 1
    if id(value) not in known:
        known[id(value)] = 1 + sum(
            _values(item, known) for item in (value.values() if isinstance(value, dict) else value)
        )
    return known[id(value)]


MAX_VALUES = 5_000_000
_DUPLICATE = re.compile('found duplicate key "(.*?)" with value')

__all__ = ["YAMLError", "merge_overlay", "read_tagged", "read_yaml", "with_text_keys", "yaml_problem"]


class _AnyTag(SafeConstructor):
    """Reads a tag it does not know, such as lm-eval's ``!function module.name``, as its text."""


_AnyTag.add_multi_constructor("!", lambda constructor, suffix, node: f"!{suffix} {node.value}")


def read_tagged(path: Path) -> Any:
    """Read a YAML file of another program, tags kept as text. Raises OSError, or YAMLError when it does not parse."""
    return copy.deepcopy(_parse_tagged(path.read_text(encoding="utf-8")))


# Planning reads the same files several times, and a tenth of a second a hundred lines is what each parse takes.
@functools.lru_cache(maxsize=8)
def _parse(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(text)


@functools.lru_cache(maxsize=1024)
def _parse_tagged(text: str) -> Any:
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _AnyTag
    return yaml.load(text)


def merge_overlay(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``below`` with ``above`` over it: mappings merge, all else replaces, a None removes the key."""
    merged = dict(below)
    for key, value in above.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping):
            lower = merged.get(key)
            merged[key] = merge_overlay(lower if isinstance(lower, Mapping) else {}, value)
        else:
            merged[key] = value
    return merged


def with_text_keys(
    value: Any, place: tuple[str | int, ...] = ()
) -> tuple[Any, list[tuple[tuple[str | int, ...], Any]]]:
    """Return a copy in which every key is text, and the keys that were not, each with the place of its mapping."""
    if isinstance(value, Mapping):
        odd_keys = [(place, key) for key in value if not isinstance(key, str)]
        items = [(str(key), with_text_keys(item, (*place, str(key)))) for key, item in value.items()]
        return {key: copy for key, (copy, _) in items}, odd_keys + [
            odd_key for _, (_, below) in items for odd_key in below
        ]
    if isinstance(value, (list, tuple)):
        copies = [with_text_keys(item, (*place, index)) for index, item in enumerate(value)]
        return [copy for copy, _ in copies], [odd_key for _, below in copies for odd_key in below]
    return value, []
