"""Data files that hold something else than their name says: told in one sentence instead of a parser's complaints."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from pathlib import Path
from typing import Any

HEAD_BYTES = 1 << 16  # bytes that are looked at first
_LFS = b"version https://git-lfs.github.com/spec/"
_GZIP = b"\x1f\x8b"
_UNPACK = "is a {} archive or stream: unpack it"
_MAGIC = {
    _LFS: "is a Git LFS pointer, not the data: run git lfs pull",
    b"PAR1": "is a Parquet file: name it .parquet",
    b"PK\x03\x04": _UNPACK.format("zip"),
    b"BZh": _UNPACK.format("bzip2"),
    b"\xfd7zXZ\x00": _UNPACK.format("xz"),
    b"\x28\xb5\x2f\xfd": _UNPACK.format("Zstandard"),
    b"ARROW1": "is an Arrow file: write it as Parquet or JSON Lines",
    b"\xff\xfe": "is UTF-16 or UTF-32: convert it to UTF-8",
    b"\xfe\xff": "is UTF-16: convert it to UTF-8",
}
_PAGES = (b"<!doctype html", b"<html", b"<?xml", b"<head", b"<body")
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_SHOWN = 40  # characters of a line that are printed
_KEYS = 3  # keys of an object that are printed


def misnamed(file: Path, kind: str) -> str | None:
    """Return what a file is that its extension ``kind``, e.g. ``.jsonl``, does not say; None when nothing is known.

    Raises OSError when it cannot be read.
    """
    with file.open("rb") as stream:
        head = stream.read(HEAD_BYTES)
    zipped = file.name.lower().endswith(".gz")
    if head and zipped != head.startswith(_GZIP) and not head.startswith(_LFS):
        return "is no gzip file: name it without .gz" if zipped else "is a gzip file: name it so, with .gz at its end"
    if zipped and not head.startswith(_LFS):
        try:
            with gzip.open(file, "rb") as stream:
                head = stream.read(HEAD_BYTES)
        except (EOFError, zlib.error):  # the reader says so
            return None
    found = next((what for magic, what in _MAGIC.items() if head.startswith(magic)), None)
    if found is not None and not (head.startswith(b"PAR1") and kind == ".parquet"):
        return found
    if kind == ".parquet":
        return None
    if b"\x00" in head[:2]:
        return "is UTF-16 or UTF-32, or no text: convert it to UTF-8"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.lower().startswith(_PAGES):
        return "is an HTML or XML page, such as a login or an error page: fetch the data again"
    if kind == ".csv":
        holds_json = start.startswith((b'{"', b'[{"'))
        return "holds JSON: name it .json or .jsonl" if holds_json else _other_separator(head)
    return _other_json(file, kind, start) if start else None


def _other_separator(head: bytes) -> str | None:
    """Return what separates the fields of a CSV file where commas make no columns of it."""
    if _columns(head, ",") > 1:
        return None
    for separator, name in _SEPARATORS.items():
        if _columns(head, separator) > 1:
            remedy = f"write it with commas, e.g. pandas.read_csv(FILE, sep={separator!r}).to_csv(FILE, index=False)"
            return f"has its fields separated by {name}, not commas: {remedy}"
    return None


def _columns(head: bytes, separator: str) -> int:
    """Return how many fields all records of a file's beginning have; 0 where they differ or cannot be read."""
    text = head.decode("utf-8-sig", errors="ignore")
    try:
        widths = [len(fields) for fields in csv.reader(io.StringIO(text, newline=""), delimiter=separator) if fields]
    except csv.Error:
        return 0
    if len(head) >= HEAD_BYTES:
        del widths[-1:]  # cut short
    return widths[0] if len(set(widths)) == 1 else 0


def _other_json(file: Path, kind: str, start: bytes) -> str | None:
    array = start.startswith(b"[")
    if array and kind == ".json":
        return None
    try:
        with gzip.open(file, "rb") if file.name.lower().endswith(".gz") else file.open("rb") as stream:
            line = next(filter(str.strip, (raw.decode("utf-8-sig") for raw in stream)), "")
            first = _parsed(line)
            if first is not None and not (array and _of_objects(first)):
                return None
            if not start.startswith((b"{", b"[")):
                return f"is no JSON: it begins with {line[:_SHOWN].rstrip()!r}"
            value, rest = _leading(line + stream.read().decode())
    except (UnicodeDecodeError, EOFError, zlib.error):  # the reader says so
        return None
    if array:
        return None if value is None or rest else "is a JSON array, not JSON Lines: name it .json"
    if rest and value is not None:
        return "holds JSON objects over several lines each, not JSON Lines: write each on one line"
    return None if value is None else f"is one JSON object over several lines, not JSON Lines{_inside(value)}"


def _parsed(text: str) -> Any:
    """Return a text's value; None when it is no JSON. What is JSON, but cannot be read, is left to the reader."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return None
    except (ValueError, RecursionError):
        return text


def _leading(text: str) -> tuple[Any, str]:
    """Return the value that a text begins with, None when it is no JSON, and what follows it."""
    try:
        value, end = json.JSONDecoder().raw_decode(text.lstrip())
    except (ValueError, RecursionError):
        return None, ""
    return value, text.lstrip()[end:].strip()


def _of_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _inside(value: dict[str, Any]) -> str:
    layout = columns_inside(value) or rows_inside(value)
    return ": write it on one line" if layout is None else f"; {layout}"


def columns_inside(value: Any) -> str | None:
    """Return where an object has its columns, and what to do, when each is a list of cells or an object by row.

    ``pandas.DataFrame.to_json`` writes an object by row, ``datasets.Dataset.to_dict`` gives lists.
    """
    if not isinstance(value, dict) or len(value) < 2:
        return None
    sizes = {len(held) for held in value.values() if isinstance(held, (list, dict))}
    cells = all(isinstance(held, list) and not any(isinstance(cell, dict) for cell in held) for held in value.values())
    numbered = all(isinstance(held, dict) and all(key.isdigit() for key in held) for held in value.values())
    if len(sizes) != 1 or 0 in sizes or not (cells or numbered):
        return None
    remedy = "pandas.DataFrame(OBJECT).to_json(FILE, orient='records', lines=True) into a .jsonl file"
    return f"it has its columns one by one ({_listed(value)}): write one object a row, e.g. by {remedy}"


def rows_inside(value: Any) -> str | None:
    """Return where an object that is no row itself has its rows, and what to do: under a key, or one under each."""
    if not isinstance(value, dict):
        return None
    keys = [key for key, held in value.items() if _of_objects(held)]
    if keys:
        return f"the list is under {' or '.join(keys)}: write it alone into a .json file"
    numbered = all(key.isdigit() for key in value)
    if value and (len(value) > 1 or numbered) and all(isinstance(held, dict) for held in value.values()):
        return f"it has a row under each key ({_listed(value)}): write its values alone, as a list, into a .json file"
    return None


def _listed(value: dict[str, Any]) -> str:
    return ", ".join([*list(value)[:_KEYS], *(["…"] if len(value) > _KEYS else [])])
