"""Writes docs/sweep-file.md: every key of a sweep file, from the pydantic classes that check it.

    python docs/sweep_file.py

A test fails while the page is not what this makes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from massive_sft.sweep.identity import HASHED
from massive_sft.sweep.json_schema import json_schema
from massive_sft.sweep.schema import MixtureEntry, Mixtures, Setting, SweepFile
from massive_sft.sweep.schema.field_types import MAX_COUNT

PAGE = Path(__file__).with_name("sweep-file.md")
HEAD = """\
# Every key of the sweep file

Made from the schema by `python docs/sweep_file.py`; `massive-sft schema` prints the same as JSON Schema, and
`massive-sft init` puts that beside its file, so that editors complete, mark and explain keys. Unknown keys are
refused, as are keys without effect beside the others' values. `--overlay FILE` merges another file over this one:
mappings merge, all else replaces, a null removes the key. `${NAME}` and `${NAME:-default}` in paths and addresses are
taken from the environment.

*id* says what a change of the value makes: `cell`, another cell, which is trained and scored anew; `requirement`,
something else that is asked of the same cell, which is scored or measured anew; `no`, neither. Names and paths stand
for what they lead to: renaming changes nothing.
"""
CELL, REQUIREMENT, NEITHER = "cell", "requirement", "no"
# Classes whose fields are part of what is asked, and further such fields; what only names something is not.
REQUIRED_OF_A_CELL = frozenset({"Fewshot", "Protocol", "Task", "JudgedBenchmark", "TextSet"})
REQUIRED = frozenset(
    {("Evaluation", "suites"), ("Evaluation", "until"), ("Judge", "name"), ("Judge", "max_tokens")}
)  # names for tasks; how sure their scores must be; who judges, and for how long
NAMES = frozenset({("JudgedBenchmark", "name")})
DEFINITIONS: Mapping[str, Any] = json_schema()["$defs"]


def page() -> str:
    """Return the whole page."""
    scalar = [name for name, kinds in _sections() if not kinds]
    top = [_row(name, SweepFile, _field_of(SweepFile, name), NEITHER) for name in scalar]
    parts = [HEAD, _table("The file itself", "", top)]
    parts += [_section(name, kinds[0]) for name, kinds in _sections() if kinds]
    return "\n".join(parts)


def _sections() -> Iterator[tuple[str, list[type[BaseModel]]]]:
    for name, field in SweepFile.model_fields.items():
        kinds = [Setting] if name == "settings" else _entries_in(field.annotation)
        yield field.alias or name, kinds


def _field_of(kind: type[BaseModel], name: str) -> str:
    return next(key for key, field in kind.model_fields.items() if (field.alias or key) == name)


def _section(name: str, kind: type[BaseModel]) -> str:
    rows = list(_rows(kind, ""))
    if kind is Mixtures:
        rows += _rows(MixtureEntry, "NAME.")
    elif "additionalProperties" in (schema := json_schema()["properties"][name]) and schema["additionalProperties"]:
        rows = list(_rows(kind, "NAME."))
    described = SweepFile.model_fields[_field_of(SweepFile, name)].description or ""
    return _table(name, _markdown(described), rows)


def _rows(kind: type[BaseModel], prefix: str) -> Iterator[str]:
    """Yield a row for each field of a class, those of entries within it below its own."""
    for key, field in kind.model_fields.items():
        below = _entries_in(field.annotation)
        yield _row(f"{prefix}{field.alias or key}", kind, key, "" if below else _identity(kind, key))
        for entry in below:
            yield from _rows(entry, f"{prefix}{key}.")


def _identity(kind: type[BaseModel], key: str) -> str:
    if (kind.__name__ in REQUIRED_OF_A_CELL or (kind.__name__, key) in REQUIRED) and (kind.__name__, key) not in NAMES:
        return REQUIREMENT
    return CELL if key in HASHED.get(kind.__name__, ()) else NEITHER


def _entries_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [kind for part in get_args(annotation) for kind in _entries_in(part)]


def _row(name: str, kind: type[BaseModel], key: str, identity: str) -> str:
    field = kind.model_fields[key]
    whole = json_schema() if kind is SweepFile else DEFINITIONS[kind.__name__]
    schema = {name: value for name, value in whole["properties"][field.alias or key].items() if name != "description"}
    cells = (f"`{name}`", _values(schema), _default(field), identity, _markdown(field.description or ""))
    return "| " + " | ".join(text.replace("|", "\\|") for text in cells) + " |"


def _table(title: str, text: str, rows: list[str]) -> str:
    head = ["| key | values | default | id | what it is |", "|---|---|---|---|---|"]
    return "\n".join([f"## {title}", "", *([text, ""] if text else []), *head, *rows, ""])


def _default(field: Any) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or value is PydanticUndefined or isinstance(value, BaseModel):
        return ""
    return f"`{json.dumps(value)}`"


def _values(schema: Mapping[str, Any]) -> str:
    """Return what a value may be, from its JSON Schema."""
    if "$ref" in schema:
        return "the keys below"
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_values(one) for one in schema["anyOf"] if one.get("type") != "null"))
    if "enum" in schema or "const" in schema:
        return ", ".join(
            f"`{json.dumps(choice).strip(chr(34))}`" for choice in schema.get("enum", [schema.get("const")])
        )
    kind = schema.get("type")
    if kind == "array":
        items = schema.get("prefixItems")
        return f"list of {len(items)}, each {_values(items[0])}" if items else f"list of {_values(schema['items'])}"
    if kind in ("integer", "number"):
        return f"{kind}{_bounds(schema)}"
    plain = {"string": schema.get("description", "text"), "boolean": "`true`, `false`", "object": "mapping"}
    return plain[str(kind)]


def _bounds(schema: Mapping[str, Any]) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    found = [(sign, schema[name]) for name, sign in signs.items() if name in schema and schema[name] != MAX_COUNT]
    return (
        " " + ", ".join(f"{sign} {end:{'g' if isinstance(end, float) else ','}}" for sign, end in found)
        if found
        else ""
    )


def _markdown(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("``", "`")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
