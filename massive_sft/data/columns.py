"""Columns of a dataset's records: what stands at a path or number, what a mapping names, what a filter asks of them."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, NamedTuple

from massive_sft.data.messages import MISSING
from massive_sft.sweep import dataset_filter as filters
from massive_sft.sweep.schema import Columns, Dataset
from massive_sft.sweep.schema.field_types import ColumnPath

_STEP = r"\[\d+\]|[^.\[\]]+"
_PATH = re.compile(rf"({_STEP})(\[\d+\]|\.[^.\[\]]+)*")


@lru_cache(maxsize=1024)
def parse_path(column: str) -> tuple[str | int, ...]:
    """Split a column path: ``instances[0].output`` gives ``("instances", 0, "output")``; what is none is one name."""
    if not _PATH.fullmatch(column):
        return (column,)
    return tuple(int(part[1:-1]) if part.startswith("[") else part for part in re.findall(_STEP, column))


def lookup(value: Any, column: ColumnPath) -> Any:
    """Return what stands at a column path or number; ``MISSING`` when nothing does.

    A column whose very name is the path wins over the path.
    """
    if isinstance(column, str) and isinstance(value, dict) and column in value:
        return value[column]
    for step in (column,) if isinstance(column, int) else parse_path(column):
        if isinstance(step, int):
            present = isinstance(value, list) and step < len(value)
        else:
            present = isinstance(value, dict) and step in value
        if not present:
            return MISSING
        value = value[step]
    return value


class Condition(NamedTuple):
    column: ColumnPath
    values: frozenset[str | None]
    keep: bool


def conditions(dataset: Dataset) -> list[Condition]:
    """Return a dataset's filter as conditions that all must hold."""
    numbered = headerless(dataset.mapping)
    return [
        Condition(int(column) if numbered and column.isdigit() else column, values, keep)
        for (column, keep), values in filters.parse(dataset.filter).items()
    ]


def named_columns(mapping: Columns) -> tuple[ColumnPath, ...]:
    """Return every column that a mapping names."""
    messages = () if mapping.messages is None else (mapping.messages,)
    return (*(mapping.prompt or ()), *(mapping.completion or ()), *messages)


def headerless(mapping: Columns) -> bool:
    """Column numbers mean that the file has no header."""
    return any(isinstance(column, int) for column in named_columns(mapping))
