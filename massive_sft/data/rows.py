"""How a record of a file becomes a row: columns, messages, filters. No file is opened here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from massive_sft.data.columns import conditions, lookup
from massive_sft.data.findings import Findings
from massive_sft.data.messages import (
    MESSAGE_COLUMNS,
    MISSING,
    SYSTEM_COLUMN,
    BadRecord,
    lost_columns,
    read_conversation,
)
from massive_sft.data.misnamed_files import columns_inside, rows_inside
from massive_sft.sweep import dataset_filter as filters
from massive_sft.sweep.schema import Dataset
from massive_sft.sweep.schema.field_types import ColumnPath


class Record(NamedTuple):
    """One row as it stands in a file: an object (dict) or, without a header, a list; ``line`` counts from 1."""

    value: Any
    file: str
    line: int | None


@dataclass(frozen=True, slots=True)
class Row:
    """One instruction row.

    Attributes:
        index: row of the dataset, counted from 0 in file order before any filter.
        turns: (prompt, completion) pairs, at least one.
        system: the system message, if the row has one.
        file, line: where the row stands; ``line`` is None where lines do not exist (JSON array, Parquet, hub).
        untrained: the turns whose completion is not trained, counted from 0.
    """

    index: int
    turns: tuple[tuple[str, str], ...]
    system: str | None
    file: str
    line: int | None
    untrained: tuple[int, ...] = ()

    @property
    def place(self) -> str:
        return _place(self.file, self.line, self.index)


def _place(file: str, line: int | None, index: int) -> str:
    return f"{file} row {index}" if line is None else f"{file}:{line}"


@dataclass
class Mapped:
    """A record's texts before they are judged: what is missing is None, and ``faults`` say why."""

    turns: list[tuple[str | None, str | None]]
    system: str | None = None
    untrained: tuple[int, ...] = ()
    faults: list[BadRecord] = field(default_factory=list)


class Converter:
    """Turns a dataset's records into rows: mapping, ``strip``, filter, ``limit``; notes what is wrong with them."""

    def __init__(self, dataset: Dataset, place: str, findings: Findings):
        self._dataset, self._place, self._findings = dataset, place, findings
        self._mapping = dataset.mapping
        self._conditions = conditions(dataset)
        # The longest first, so that the order of the list does not matter.
        self._strip = sorted(set(dataset.strip), key=lambda text: (-len(text), text))
        self._seen: set[ColumnPath] = set()
        self._columns: dict[str, None] = {}
        self._passed = 0
        if dataset.format == "messages" and dataset.columns is None:
            self._message_columns: tuple[ColumnPath, ...] = MESSAGE_COLUMNS
        else:
            self._message_columns = () if self._mapping.messages is None else (self._mapping.messages,)

    def rows(self, records: Iterable[Record]) -> tuple[list[Row], int]:
        """Return the rows that pass, and the number of records read.

        A record that the filter refuses may lack its texts. Problems go to the findings.
        """
        kept: list[Row] = []
        pending: list[tuple[BadRecord, str]] = []
        count = 0
        alone: dict[str, Any] = {}  # by file, its only record so far
        for index, record in enumerate(records):
            count = index + 1
            alone[record.file] = None if record.file in alone else record.value
            if not isinstance(record.value, (dict, list)):
                place = _place(record.file, record.line, index)
                self._findings.add("rows that are no objects", place, "must be an object", record.value)
                continue
            if index < 100:
                self._columns.update(dict.fromkeys(_names(record.value)))
            mapped = self._mapped(record.value)
            if not self._passes(record.value, mapped) or self._beyond_limit():
                continue
            self._passed += 1
            pending += [(fault, _place(record.file, record.line, index)) for fault in mapped.faults]
            if not mapped.faults:
                turns: Any = tuple(mapped.turns)
                kept.append(Row(index, turns, mapped.system, record.file, record.line, mapped.untrained))
        missing = self._missing_columns() if count else []
        if not kept and self._note_layouts(alone, bool(missing)):
            return [], count
        for key, column in missing:
            place = f"{self._place}.{key}"
            others = ", which the format needs (columns: {prompt: ..., completion: ...} takes others)"
            rule = "no row has this column" + (others if key == "format" else "")
            self._findings.add("missing column", place, rule, column, tuple(self._columns))
        for fault, place in pending:
            # A column that no row has was named once; repeating it for every row would say nothing.
            if not (missing and fault.kind.startswith("no ")):
                self._findings.add(fault.kind, place, fault.rule, fault.value)
        if count and not self._passed and not missing and not self._findings:
            self._findings.add("empty", f"{self._place}.filter", f"leaves none of the {count} rows")
        return kept, count

    def _beyond_limit(self) -> bool:
        return self._dataset.limit is not None and self._passed >= self._dataset.limit

    def _note_layouts(self, alone: Mapping[str, Any], missing: bool) -> bool:
        """Note files that are one object with all rows inside it, which is known once it cannot be read as a row."""
        before = bool(self._findings)
        for file, value in alone.items():
            # A row's own messages are a list, too; a column of them is a list of lists.
            is_row = not missing and any(_is_messages(lookup(value, column)) for column in self._message_columns)
            layout = None if is_row else columns_inside(value) or (rows_inside(value) if missing else None)
            if layout is not None:
                self._findings.add("files of another shape", file, f"holds one JSON object; {layout}")
        return bool(self._findings) != before

    def _missing_columns(self) -> list[tuple[str, str]]:
        """Return (key of the sweep file, column) of what the mapping and the filter name and no row has."""
        missing: list[tuple[str, str]] = []
        if self._message_columns and not self._seen.intersection(self._message_columns):
            missing.append((self._named_by("messages"), " or ".join(map(str, self._message_columns))))
        for key in ("prompt", "completion"):
            columns = getattr(self._mapping, key) or ()
            missing += [(self._named_by(key), str(column)) for column in columns if column not in self._seen]
        for condition in self._conditions:
            derived = condition.column in filters.TEXTS
            if not derived and condition.column not in self._seen:
                missing.append(("filter", str(condition.column)))
        return missing

    def _named_by(self, key: str) -> str:
        """Return the key of the sweep file by which a column is read."""
        return "format" if self._dataset.columns is None else f"columns.{key}"

    def _passes(self, record: Any, mapped: Mapped) -> bool:
        # Every condition is looked at, also after one has failed: a column counts as missing when no look found it.
        held = [
            (filters.comparable(self._filtered(record, mapped, condition.column)) in condition.values) == condition.keep
            for condition in self._conditions
        ]
        return all(held)

    def _filtered(self, record: Any, mapped: Mapped, column: ColumnPath) -> Any:
        """Return what a filter compares: the first turn's mapped text, or what stands in a column."""
        if column == "prompt":
            return mapped.turns[0][0]
        if column == "completion":
            return mapped.turns[0][1]
        value = self._lookup(record, column)
        return None if value is MISSING else value

    def _lookup(self, record: Any, column: ColumnPath) -> Any:
        value = lookup(record, column)
        if value is not MISSING:
            self._seen.add(column)
        return value

    def _mapped(self, record: Any) -> Mapped:
        if self._message_columns:
            return self._conversation(record)
        mapped = Mapped([(None, None)])
        prompt = self._joined(record, self._mapping.prompt or (), "prompt", mapped.faults)
        completion = self._joined(record, self._mapping.completion or (), "completion", mapped.faults)
        mapped.turns = [(prompt, completion)]
        return mapped

    def _joined(self, record: Any, columns: Sequence[ColumnPath], name: str, faults: list[BadRecord]) -> str | None:
        """Return the columns' texts joined by newlines, blank ones skipped; None when there is no value at all."""
        values = [self._lookup(record, column) for column in columns]
        parts = []
        for column, value in zip(columns, values, strict=True):
            if value is MISSING or value is None:
                continue
            text = self._text(value, f"column {column}", faults)
            if text is None:
                return None
            parts.append(text)
        if not parts:
            faults.append(BadRecord(f"no {name}", f"has no {name}: {_listed(columns)} is missing or null"))
            return None
        return parts[0] if len(columns) == 1 else "\n".join(part for part in parts if part.strip())

    def _text(self, value: Any, what: str, faults: list[BadRecord]) -> str | None:
        """Return a cell as text. An integer is written out; any other value that is no text is a fault."""
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str):
            faults.append(BadRecord("values that are no text", f"{what} must be text or an integer", value))
            return None
        for unwanted in self._strip:
            value = value.replace(unwanted, "")
        if not value.isascii() and not _encodable(value):
            rule = f"{what} holds half of a surrogate pair, which is no text"
            faults.append(BadRecord("broken Unicode", rule, ascii(value)))
            return None
        return str(value)

    def _conversation(self, record: Any) -> Mapped:
        mapped = Mapped([(None, None)], faults=lost_columns(record))
        messages = self._messages(record, mapped.faults)
        if messages is None:
            return mapped
        found = read_conversation(messages, self._dataset.turns == "first", self._text, mapped.faults)
        mapped.system, mapped.untrained = found.system, found.untrained
        if not mapped.faults:
            mapped.turns = list(found.turns)
            self._take_system(record, mapped)
        return mapped

    def _messages(self, record: Any, faults: list[BadRecord]) -> Any:
        """Return what stands in the first message column that has a value; None, and a fault, when none has."""
        found = {column: self._lookup(record, column) for column in self._message_columns}
        given = {column: value for column, value in found.items() if value is not MISSING and value is not None}
        full = {column: value for column, value in given.items() if value != []} or given
        if not full:
            listed = _listed(self._message_columns)
            faults.append(BadRecord("no messages", f"has no messages: {listed} is missing or null"))
        elif len(full) > 1 and len(set(map(repr, full.values()))) > 1:
            rule = f"has {' and '.join(map(str, full))}, which differ; name one under columns.messages"
            faults.append(BadRecord("two conversations", rule))
        else:
            return next(iter(full.values()))
        return None

    def _take_system(self, record: Any, mapped: Mapped) -> None:
        """Take the system message from a column beside the messages, where a record has one."""
        beside = record.get(SYSTEM_COLUMN) if isinstance(record, dict) else None
        if beside is None or beside == "":
            return
        if mapped.system is not None:
            rule = f"has a system message and a column {SYSTEM_COLUMN}; take one out of the file"
            mapped.faults.append(BadRecord("two system messages", rule, beside))
            return
        mapped.system = self._text(beside, f"column {SYSTEM_COLUMN}", mapped.faults)


def _is_messages(value: Any) -> bool:
    return isinstance(value, list) and not any(isinstance(message, list) for message in value)


def _names(value: Any) -> list[str]:
    return list(map(str, value)) if isinstance(value, dict) else [str(number) for number in range(len(value))]


def _listed(columns: Sequence[ColumnPath]) -> str:
    return " or ".join(f"column {column}" for column in columns)


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
