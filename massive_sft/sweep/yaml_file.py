"""YAML files and overlays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from massive_sft.errors import InvalidInput, Problem


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML 1.2 mapping. Raises InvalidInput with file and line; a key given twice is an error."""
    try:
        value = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInput(Problem(str(path), f"cannot be read ({error.strerror})")) from None
    except UnicodeDecodeError as error:
        raise InvalidInput(Problem(str(path), f"is not UTF-8 text ({error.reason})")) from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise InvalidInput(Problem(where, f"is not valid YAML: {error.problem}")) from None
    except YAMLError as error:
        raise InvalidInput(Problem(str(path), f"is not valid YAML: {error}")) from None
    if not isinstance(value, dict):
        raise InvalidInput(Problem(str(path), "must be a mapping (key: value)", value))
    return value


class _AnyTag(SafeConstructor):
    """Reads a tag it does not know, such as lm-eval's ``!function module.name``, as its text."""


_AnyTag.add_multi_constructor("!", lambda constructor, suffix, node: f"!{suffix} {node.value}")


def read_tagged(path: Path) -> Any:
    """Read a YAML file of another program, tags kept as text. Raises OSError, or YAMLError when it does not parse."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _AnyTag
    return yaml.load(path.read_text(encoding="utf-8"))


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``below`` with ``above`` over it: mappings merge, all else replaces, a None removes the key."""
    merged = dict(below)
    for key, value in above.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    return merged
