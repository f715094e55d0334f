"""The paper's released table, and any other of its form: a CSV file read with every oddity of its text, and back.

One row is a cell: six key columns (``KEYS``), one column a benchmark, perhaps an unnamed one that numbers the rows.
Values keep the table's scale. A text that the value alone does not give back (``10000.0``, ``None``) is kept beside it,
so that ``write_table`` gives every field back as it was.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files as package_files
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.sweep.cell import Coordinates
from massive_sft.sweep.schema.field_types import MAX_COUNT

KEYS = ("model_name", "data_name", "data_size", "lora", "lr_strategy", "epoch")
INDEX = ("", "Unnamed: 0")
"""Names of a column that numbers the rows."""
PRETRAIN = "pretrain"
"""The ``data_name`` of a base model's row."""
_BASE_ROW = f"; a base model's row has {PRETRAIN} as its data_name, 0 as data_size and epoch, the other keys empty"
LIMITS = {"percent": (0.0, 100.0), "fraction": (0.0, 1.0), "rating": (1.0, 10.0)}
_ABSENT = frozenset({"", "nan", "none", "null", "na", "n/a"})
_SHOWN = 5  # rows listed of one problem that many rows have


class ScoreColumn(BaseModel):
    """What a benchmark's column holds: declared, never guessed.

    Attributes:
        metric: its name, without the scale.
        scale: ``percent`` (0 to 100), ``fraction`` (0 to 1) or ``rating`` (1 to 10).
        tasks: further names of the benchmark, as sweeps may have it.
        own_shots: the shots at which a sweep has it, where its task cannot have the column's own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str = Field(pattern=r"^[\w@.-]+$")
    scale: Literal["percent", "fraction", "rating"]
    shots: int = Field(0, ge=0)
    higher_is_better: bool = True
    tasks: tuple[str, ...] = ()
    own_shots: int | None = Field(None, ge=0)

    @property
    def recorded(self) -> str:
        """The metric's name in a record, where a value is in its metric's own unit."""
        return f"{self.metric}_percent" if self.scale == "percent" else self.metric


class _Columns(BaseModel):
    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[1] = Field(alias="schema")
    columns: dict[str, ScoreColumn]


@dataclass(frozen=True)
class ReleasedRow:
    """One row: ``scores`` by column (None where the table has none), ``texts`` of the fields that need them."""

    coordinates: Coordinates
    scores: Mapping[str, float | None]
    texts: Mapping[str, str]


@dataclass(frozen=True)
class ReleasedTable:
    """A table as read.

    Attributes:
        file, sha256: the file's name and the checksum of its bytes.
        header: the columns' names in their order.
        newline: what ends a line.
    """

    file: str
    sha256: str
    header: tuple[str, ...]
    newline: str
    columns: Mapping[str, ScoreColumn]
    rows: tuple[ReleasedRow, ...]


def task_of(name: str, column: ScoreColumn) -> str:
    """Return a column's name without its shots: ``mbpp`` for ``mbpp_4shot``."""
    return re.sub(rf"[-_]{column.shots}shot$", "", name)


def known_columns(scales: Path | None = None) -> dict[str, ScoreColumn]:
    """Return the released table's benchmarks and those declared in a file of the form of ``released_columns.json``.

    Raises InvalidInput with every problem of the file.
    """
    text = (package_files("massive_sft.study") / "released_columns.json").read_text()
    known = _Columns.model_validate_json(text).columns
    if scales is None:
        return known
    try:
        return known | _Columns.model_validate_json(scales.read_bytes()).columns
    except OSError as error:
        raise InvalidInput(Problem("--scales", f"cannot be read ({error.strerror})", str(scales))) from None
    except ValidationError as error:
        raise InvalidInput(
            Problem(f"{scales}: {'.'.join(map(str, item['loc']))}".removesuffix(": "), item["msg"])
            for item in error.errors()
        ) from None


def read_table(path: Path, columns: Mapping[str, ScoreColumn]) -> ReleasedTable:
    """Read and check a table.

    Args:
        path: a CSV file in UTF-8.
        columns: what is declared, of ``known_columns``.

    Raises InvalidInput with every problem, by row and column; of one that many rows have, the first rows.
    """
    try:
        data = path.read_bytes()
        text = data.decode()
        newline = "\r\n" if "\r\n" in text else "\n"
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        header = tuple(next(reader, ()))
        rows = [(reader.line_num, fields) for fields in reader]
    except OSError as error:
        raise InvalidInput(Problem(str(path), f"cannot be read ({error.strerror})")) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InvalidInput(Problem(str(path), f"is no CSV file in UTF-8 ({error})")) from None
    if text.startswith("\ufeff"):
        raise InvalidInput(Problem(str(path), "begins with a byte order mark; save it as plain UTF-8"))
    problems = [*_header_problems(path, header, columns)]
    if not rows:
        problems.append(Problem(str(path), "has no rows"))
    if problems:
        raise InvalidInput(problems)
    parser = _Parser(header, columns)
    read = [parser.row(number, line, fields) for number, (line, fields) in enumerate(rows)]
    problems += _told(path, parser.wrong)
    if problems:
        raise InvalidInput(problems)
    used = {name: columns[name] for name in header if name in columns}
    kept = tuple(row for row in read if row is not None)
    return ReleasedTable(path.name, hashlib.sha256(data).hexdigest(), header, newline, used, kept)


def write_table(header: Sequence[str], newline: str, rows: Iterable[ReleasedRow]) -> bytes:
    """Return rows as the CSV file they were read from; fields are quoted only where they must be."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator=newline)
    writer.writerow(header)
    for number, row in enumerate(rows):
        plain = _plain(number, row.coordinates, row.scores)
        writer.writerow(row.texts.get(name, plain.get(name, "")) for name in header)
    return text.getvalue().encode()


def _plain(number: int, coordinates: Coordinates, scores: Mapping[str, float | None]) -> dict[str, str]:
    """Return a row's fields as its values alone give them."""
    base = coordinates.method == "none"
    fields = {name: "" if value is None else repr(value) for name, value in scores.items()}
    fields |= dict.fromkeys(INDEX, str(number))
    fields |= {"model_name": coordinates.model, "data_name": PRETRAIN if base else coordinates.data}
    fields |= {"data_size": str(coordinates.size), "epoch": str(coordinates.epoch)}
    fields |= {"lora": "" if base else str(coordinates.method == "lora").lower()}
    return fields | {"lr_strategy": "" if base else coordinates.schedule}


def _header_problems(path: Path, header: Sequence[str], columns: Mapping[str, ScoreColumn]) -> Iterable[Problem]:
    place = f"{path}: header"
    for name, times in Counter(header).items():
        if times > 1:
            yield Problem(place, f"has {times} columns of one name", name)
    missing = [name for name in KEYS if name not in header]
    if missing:
        yield Problem(place, f"lacks the key columns {', '.join(missing)}")
    for name in dict.fromkeys(header):
        if name not in (*KEYS, *INDEX, *columns):
            rule = "unknown column: declare its metric and scale in a file and name it by --scales"
            yield Problem(place, rule, name, tuple(columns))
    if not missing and not any(name in columns for name in header):
        yield Problem(place, "has no benchmark's column", list(header), tuple(columns))


@dataclass(frozen=True)
class _Wrong:
    """What is wrong on a line; an empty ``column`` means the whole row."""

    line: int
    column: str
    rule: str
    value: object


@dataclass
class _Parser:
    """Reads rows one by one; ``wrong`` collects what is not as it must be."""

    header: tuple[str, ...]
    columns: Mapping[str, ScoreColumn]
    wrong: list[_Wrong] = field(default_factory=list)
    _seen: dict[Coordinates, int] = field(default_factory=dict)

    def row(self, number: int, line: int, fields: Sequence[str]) -> ReleasedRow | None:
        """Return a row, or None when anything of it is wrong."""
        before = len(self.wrong)

        def refuse(column: str, rule: str, value: object) -> None:
            self.wrong.append(_Wrong(line, column, rule, value))

        if len(fields) != len(self.header):
            refuse("", f"must have {len(self.header)} fields as the header has", len(fields))
            return None
        texts = dict(zip(self.header, fields, strict=True))
        coordinates = _coordinates(texts, refuse)
        scores = {name: _score(name, texts[name], column, refuse) for name, column in self._used(texts)}
        if coordinates is not None and (first := self._seen.setdefault(coordinates, line)) != line:
            refuse("", "must have keys of its own", f"{coordinates}, as line {first}")
        if coordinates is None or len(self.wrong) > before:
            return None
        plain = _plain(number, coordinates, scores)
        return ReleasedRow(coordinates, scores, {name: text for name, text in texts.items() if text != plain[name]})

    def _used(self, texts: Mapping[str, str]) -> Iterable[tuple[str, ScoreColumn]]:
        return ((name, self.columns[name]) for name in texts if name in self.columns)


_Refuse = Callable[[str, str, object], None]


def _coordinates(texts: Mapping[str, str], refuse: _Refuse) -> Coordinates | None:
    """Return what a row is about, a base model's by the names that a sweep gives it; None when it is not clear."""
    model, data, schedule = (texts[name].strip() for name in ("model_name", "data_name", "lr_strategy"))
    for name, text in (("model_name", model), ("data_name", data)):
        if not text:
            refuse(name, "must not be empty" + (_BASE_ROW if name == "data_name" else ""), text)
    base = data == PRETRAIN
    size, epoch = (_whole(name, texts[name], base, refuse) for name in ("data_size", "epoch"))
    lora = texts["lora"].strip().lower()
    if base:
        if lora not in _ABSENT | {"false"}:
            refuse("lora", "must be empty or false in a base model's row", texts["lora"])
        if schedule.lower() not in _ABSENT:
            refuse("lr_strategy", "must be empty in a base model's row", texts["lr_strategy"])
        return Coordinates(model, "none", "none", "none", 0, "none", None, 0, None, "") if model else None
    if lora not in ("true", "false"):
        refuse("lora", "must be true or false", texts["lora"])
    if schedule.lower() in _ABSENT:
        refuse("lr_strategy", "must name a schedule", texts["lr_strategy"])
    if not model or not data or size is None or epoch is None:
        return None
    method = "lora" if lora == "true" else "full"
    return Coordinates(model, data, method, method, size, schedule, None, epoch, None, "")


def _whole(name: str, text: str, base: bool, refuse: _Refuse) -> int | None:
    number = _number(text)
    if number is None or number != int(number) or (number != 0 if base else not 1 <= number <= MAX_COUNT):
        rule = "must be 0 in a base model's row" if base else f"must be a whole number from 1 to {MAX_COUNT:,}"
        rule += _BASE_ROW if number == 0 else ""
        refuse(name, rule, text)
        return None
    return int(number)


def _score(name: str, text: str, column: ScoreColumn, refuse: _Refuse) -> float | None:
    if text.strip().lower() in _ABSENT:
        return None
    number = _number(text)
    low, high = LIMITS[column.scale]
    if number is None:
        refuse(name, "must be a number, or empty where there is no score", text)
    elif not low <= number <= high:
        refuse(name, f"must be within {low:g} and {high:g}, as a {column.scale} is", text)
    else:
        return number + 0.0  # a record holds no negative zero
    return None


def _number(text: str) -> float | None:
    # float() also takes `1_0` and other scripts' digits, which no table means.
    if not re.fullmatch(r"\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\s*", text):
        return None
    number = float(text)
    return number if math.isfinite(number) else None


def _told(path: Path, wrong: Iterable[_Wrong]) -> Iterable[Problem]:
    """Yield problems by column; of one that many rows have, the first few and how many more there are."""
    alike: dict[tuple[str, str], list[_Wrong]] = {}
    for item in wrong:
        alike.setdefault((item.column, item.rule), []).append(item)
    for (name, rule), rows in alike.items():
        column = f", column {name}" if name else ""
        for item in rows[:_SHOWN]:
            yield Problem(f"{path}:{item.line}{column}", rule, item.value)
        if len(rows) > _SHOWN:
            lines = f"and on {len(rows) - _SHOWN} more lines, the next is {rows[_SHOWN].line}"
            yield Problem(f"{path}{column}", f"{rule}, {lines}")
