"""Tables of the report: the first page as HTML, all rows as data that the page's script sorts, filters and pages."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup


@dataclass(frozen=True)
class Column:
    """A column: its header, a smaller second line of the header, and how its cells are read.

    ``kind``: ``text``; ``long`` (text that wraps); ``number`` (sorted as one, aligned right); ``facet`` (text that
    people choose from a list).
    """

    label: str
    kind: str = "text"
    note: str = ""


@dataclass(frozen=True)
class Heat:
    """A coloured cell: a number with its interval below it.

    Attributes:
        text, note: the number and, smaller, its interval.
        tone: ``good``, ``bad``, ``flat`` or ``missing`` (hatched).
        strength: of the colour, 0 to 1.
        sure: whether the interval excludes 0.
        title: the whole story, as a tooltip.
    """

    text: str
    note: str
    tone: str
    strength: float
    sure: bool
    title: str


Value = str | Heat


@dataclass(frozen=True)
class Table:
    """Rows of the same length as ``columns``; ``caption`` says what it is."""

    key: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Value]]
    page: int = 25
    levels: dict[int, list[str]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        for index, column in enumerate(self.columns):
            if column.kind == "facet":
                self.levels[index] = list(dict.fromkeys(str(row[index]) for row in self.rows))

    @property
    def first(self) -> Sequence[Sequence[Value]]:
        return self.rows[: self.page]

    @property
    def data(self) -> Markup:
        """The rows for the script, as JSON that is safe inside a ``script`` element."""
        codes = {index: {name: code for code, name in enumerate(names)} for index, names in self.levels.items()}
        columns = [
            {"label": column.label, "kind": column.kind, "levels": self.levels.get(index, [])}
            for index, column in enumerate(self.columns)
        ]
        rows = [
            [codes[index][str(value)] if index in codes else _packed(value) for index, value in enumerate(row)]
            for row in self.rows
        ]
        return safe_json({"page": self.page, "columns": columns, "rows": rows})


def without(index: int, items: Sequence[Any]) -> list[Any]:
    """Return a row or a head without one of its columns."""
    return [*items[:index], *items[index + 1 :]]


def _packed(value: Value) -> Any:
    if isinstance(value, Heat):
        return [value.text, value.note, value.tone, value.strength, int(value.sure), value.title]
    return value


def safe_json(value: Any) -> Markup:
    """Return JSON that cannot end the ``script`` element it stands in, whatever texts it holds."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def of_texts(key: str, caption: str, columns: Sequence[Column], rows: Iterable[Sequence[Any]], page: int = 25) -> Table:
    """Return a table of texts; every value is turned into text, and a column that is empty throughout is left out."""
    texts = [[str(value) for value in row] for row in rows]
    used = [not texts or any(row[index] for row in texts) for index in range(len(columns))]
    kept = [list(itertools.compress(row, used)) for row in texts]
    return Table(key, caption, list(itertools.compress(columns, used)), kept, page)
