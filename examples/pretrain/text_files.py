"""The texts in data files: what datasets are read from (JSON, JSON Lines, CSV, Parquet), and plain text."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.data.file_readers import READERS
from massive_sft.data.findings import Findings

KINDS = (*READERS, ".txt")


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

    A folder stands for its files of a known kind, in name order. Data files are read as datasets are.

    Raises:
        InvalidInput: the file is missing, of an unknown kind or broken.
    """
    if path.is_dir():
        return [row for file in sorted(path.rglob("*")) if _kind(file) in KINDS for row in texts_of(file)]
    if _kind(path) not in KINDS:
        raise InvalidInput(Problem("text file", "has an extension that cannot be read", str(path), KINDS))
    findings = Findings()
    try:
        if _kind(path) == ".txt":
            data = gzip.decompress(path.read_bytes()) if path.name.endswith(".gz") else path.read_bytes()
            return [[paragraph] for paragraph in data.decode("utf-8-sig").split("\n\n")]
        rows = [list(_strings(record.value)) for record in READERS[_kind(path)](path, True, findings)]
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InvalidInput(Problem("text file", f"cannot be read ({error})", str(path))) from error
    findings.raise_if_any()
    return rows


def _kind(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)
