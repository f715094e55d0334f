"""Reading instruction datasets: hub ids through ``datasets``, local JSON, JSON Lines, CSV and Parquet files.

The only module that knows ``datasets`` and ``pyarrow``; both are imported where they are used, because a local
JSON file needs neither and they take seconds.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO

import numpy as np

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.data.columns import headerless
from massive_sft.data.findings import Findings
from massive_sft.data.hub_data import hub_records
from massive_sft.data.misnamed_files import misnamed
from massive_sft.data.rows import Converter, Record, Row
from massive_sft.sweep.schema import Dataset

_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Rows:
    """A dataset's rows after its filter and limit, in file order.

    Attributes:
        rows: the rows, ascending by ``index``.
        source_rows: how many rows the source has before any filter.
    """

    rows: list[Row]
    source_rows: int

    @cached_property
    def indices(self) -> np.ndarray:
        """The rows' source indices, int64, ascending."""
        return np.fromiter((row.index for row in self.rows), dtype=np.int64, count=len(self.rows))

    def at(self, indices: np.ndarray) -> list[Row]:
        """Return the rows with these source indices, in their order."""
        return [self.rows[position] for position in np.searchsorted(self.indices, indices)]


def load_rows(dataset: Dataset, place: str) -> Rows:
    """Read a dataset whole and return the rows that pass its filter.

    ``place`` names the dataset in messages, e.g. ``sweeps/x.yaml: datasets.lima``; problems inside a file name the
    file and the line (or the row, counted from 0). Rows are held in memory.

    Raises:
        InvalidInput: with all problems at once, at most ten of a kind listed: a missing, empty or unreadable file,
            broken JSON, a column that no row has, a missing completion, a value that is no text, a filter that
            leaves nothing.
    """
    findings = Findings()
    converter = Converter(dataset, place, findings)
    records = _local_records(dataset, place, findings) if dataset.path is not None else hub_records(dataset, place)
    rows, count = converter.rows(records)
    if not count and not findings:
        findings.add("empty", f"{place}.split", "has no rows", dataset.split)
    findings.raise_if_any()
    return Rows(rows, count)


def local_files(dataset: Dataset, place: str) -> list[Path]:
    """Return the files of a local dataset in reading order: the file itself, or ``files`` inside the folder.

    Raises:
        InvalidInput: for a path that is neither, a folder without ``files``, an unknown extension.
    """
    path = Path(str(dataset.path))
    problems = []
    if path.is_dir() and dataset.files is None:
        problems.append(Problem(f"{place}.path", "is a folder: name its files under files", str(path)))
    if path.is_file() and dataset.files is not None:
        problems.append(Problem(f"{place}.files", "goes with a folder, but path is a file", list(dataset.files)))
    files = [path / name for name in dataset.files] if dataset.files and path.is_dir() else [path]
    for file in files:
        if not file.exists():
            problems.append(Problem(f"{place}.path", "does not exist", str(file)))
        elif file.is_file() and _kind(file) not in READERS:
            rule = "has an extension that cannot be read"
            problems.append(Problem(f"{place}.path", rule, file.name, (*READERS, ".jsonl.gz", ".json.gz", ".csv.gz")))
    if problems:
        raise InvalidInput(problems)
    return files


def _kind(file: Path) -> str:
    name = file.name.lower()
    return Path(name.removesuffix(".gz")).suffix if not name.endswith(".parquet.gz") else ".parquet.gz"


def _local_records(dataset: Dataset, place: str, findings: Findings) -> Iterator[Record]:
    numbered = headerless(dataset.mapping)
    for file in local_files(dataset, place):
        read = 0
        before = bool(findings)
        try:
            other = misnamed(file, _kind(file))
            if other is not None:
                findings.add("files of another shape", str(file), other)
                continue
            for record in READERS[_kind(file)](file, numbered, findings):
                read += 1
                yield record
        except (OSError, EOFError, zlib.error) as error:
            findings.add("unreadable", str(file), f"cannot be read: {error}")
        if not read and bool(findings) == before:
            findings.add("empty", str(file), "is empty: it has no rows")


def _open(file: Path) -> IO[bytes]:
    return gzip.open(file, "rb") if file.name.lower().endswith(".gz") else file.open("rb")  # type: ignore[return-value]


def _text(file: Path, findings: Findings) -> str:
    """Return a whole file's text without its byte-order mark; nothing when it is not UTF-8, which is noted."""
    with _open(file) as stream:
        data = stream.read()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        findings.add("encoding", f"{file}:{line}", f"is not UTF-8: {error.reason}")
        return ""


def _read_json_lines(file: Path, numbered: bool, findings: Findings) -> Iterator[Record]:
    name = str(file)
    with _open(file) as stream:
        for number, line in enumerate(stream, start=1):
            if number == 1:
                line = line.removeprefix(_BOM)
            if not line.strip():
                continue
            try:
                value = json.loads(line.rstrip(b"\r\n").decode())
            except json.JSONDecodeError as error:
                rule = f"is not valid JSON: {error.msg} at column {error.colno}"
                findings.add("broken JSON", f"{name}:{number}", rule)
                continue
            except UnicodeDecodeError as error:
                findings.add("encoding", f"{name}:{number}", f"is not UTF-8: {error.reason}")
                continue
            except (ValueError, RecursionError) as error:  # a number of thousands of digits, a list too deep
                findings.add("broken JSON", f"{name}:{number}", f"is JSON that cannot be read: {error}")
                continue
            yield Record(value, name, number)


def _read_json(file: Path, numbered: bool, findings: Findings) -> Iterator[Record]:
    """A JSON array of objects. A file that starts with an object holds JSON Lines, as many ``.json`` files do."""
    with _open(file) as stream:
        start = stream.read(4096).removeprefix(_BOM).lstrip()
    if start.startswith(b"{"):
        yield from _read_json_lines(file, numbered, findings)
        return
    text = _text(file, findings)
    if not text.strip():
        return
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        rule = f"is not valid JSON: {error.msg} at column {error.colno}"
        findings.add("broken JSON", f"{file}:{error.lineno}", rule)
        return
    except (ValueError, RecursionError) as error:
        findings.add("broken JSON", str(file), f"is JSON that cannot be read: {error}")
        return
    if not isinstance(values, list):
        findings.add("no list", str(file), "must hold a list of objects", values)
        return
    for value in values:
        yield Record(value, str(file), None)


def _read_csv(file: Path, numbered: bool, findings: Findings) -> Iterator[Record]:
    """Comma-separated values, quoted as in RFC 4180. ``numbered``: the file has no header, a record is a list."""
    name = str(file)
    csv.field_size_limit(2**31 - 1)  # the default of 128 KiB is shorter than some documents
    reader = csv.reader(io.StringIO(_text(file, findings), newline=""), strict=True)
    header: list[str] | None = None
    width = 0
    try:
        for fields in filter(None, reader):  # a blank line has no fields
            width = width or len(fields)
            if len(fields) != width:
                rule = f"must have {width} fields, as the first line has"
                findings.add("rows of another width", f"{name}:{reader.line_num}", rule, len(fields))
            elif header is None and not numbered:
                header = fields
                twice = sorted({column for column in fields if column and fields.count(column) > 1})
                if twice:
                    findings.add("columns of one name", f"{name}:1", "must name each column once", ", ".join(twice))
                    return
            else:
                yield Record(dict(zip(header, fields, strict=True)) if header else fields, name, reader.line_num)
    except csv.Error as error:
        findings.add("broken CSV", f"{name}:{reader.line_num}", f"is not valid CSV: {error}")


def _read_parquet(file: Path, numbered: bool, findings: Findings) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=1024):
                for value in batch.to_pylist():
                    yield Record(value, str(file), None)
    except pyarrow.ArrowException as error:
        findings.add("broken Parquet", str(file), f"is not valid Parquet: {str(error).splitlines()[0]}")


Reader = Callable[[Path, bool, Findings], Iterator[Record]]
READERS: dict[str, Reader] = {
    ".jsonl": _read_json_lines,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
