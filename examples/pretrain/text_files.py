"""The texts in data files: JSON, JSON Lines (also gzipped), CSV and plain text."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from massive_sft.core.errors import InvalidInput, Problem

KINDS = (".json", ".jsonl", ".csv", ".txt")


@dataclass(frozen=True)
class Source:
    """A file to train on, and how many of its first rows (``None``: all); the rest is somebody's benchmark."""

    path: Path
    rows: int | None = None

    @classmethod
    def parse(cls, text: str) -> Source:
        """Read ``FILE`` or ``FILE:ROWS``."""
        path, colon, rows = text.rpartition(":")
        return cls(Path(path), int(rows)) if colon and rows.isdigit() else cls(Path(text))


def documents(rows: Iterable[list[str]], strip: Iterable[str] = ()) -> list[str]:
    """Return one document a row, its texts joined by newlines, without the ``strip`` strings; empty ones left out."""
    found = []
    for row in rows:
        text = "\n".join(row)
        for token in strip:
            text = text.replace(token, "")
        if text.strip():
            found.append(text.strip())
    return found


def texts_of(path: Path) -> list[list[str]]:
    """Return every row's texts: all strings in a JSON value, a CSV line's cells, a paragraph of plain text.

    A folder stands for its files of a known kind, in name order.

    Raises:
        InvalidInput: the file is missing, of an unknown kind or broken.
    """
    if path.is_dir():
        return [row for file in sorted(path.rglob("*")) if _kind(file) in KINDS for row in texts_of(file)]
    if _kind(path) not in KINDS:
        raise InvalidInput(Problem("text file", "has an extension that cannot be read", str(path), KINDS))
    try:
        data = gzip.decompress(path.read_bytes()) if path.name.endswith(".gz") else path.read_bytes()
        return list(_rows(_kind(path), data.decode("utf-8-sig")))
    except (OSError, EOFError, ValueError) as error:
        raise InvalidInput(Problem("text file", f"cannot be read ({error})", str(path))) from error


def _kind(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix


def _rows(kind: str, text: str) -> Iterator[list[str]]:
    if kind == ".txt":
        yield from ([paragraph] for paragraph in text.split("\n\n"))
    elif kind == ".csv":
        yield from csv.reader(io.StringIO(text, newline=""))
    elif text.lstrip().startswith("["):
        yield from (list(_strings(row)) for row in json.loads(text))
    else:
        yield from (list(_strings(json.loads(line))) for line in text.split("\n") if line.strip())


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)
