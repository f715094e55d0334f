"""The index of a ledger: one sealed line per record written, so that statuses need not open every record.

It is an accelerator and never the truth: each entry is checked against the record's file (size, modification time,
no newer revision) before it is believed, and an unsound index is built anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from massive_sft import files
from massive_sft.errors import Corrupt
from massive_sft.ledger.record import Record, Status, seal, unseal

NAME = "index.jsonl"


@dataclass(frozen=True, slots=True)
class Entry:
    """What the index keeps of a cell's newest record.

    Attributes:
        cell, trajectory, status: as in the record.
        revision: number in the record's file name.
        answers: what was asked of the cell and is there (``Record.answers``).
        size, mtime_ns: of the record's file, in bytes and in nanoseconds.
    """

    cell: str
    trajectory: str | None
    status: Status
    revision: int
    answers: tuple[str, ...]
    size: int
    mtime_ns: int

    def matches(self, folder: Path) -> bool:
        """Whether the record in the cell's ``folder`` is still the one this entry was made of, and the newest."""
        try:
            stat = os.stat(f"{folder}/record-{self.revision}.json")
        except FileNotFoundError:
            return False
        newer = os.access(f"{folder}/record-{self.revision + 1}.json", os.F_OK)
        return (stat.st_size, stat.st_mtime_ns) == (self.size, self.mtime_ns) and not newer


_FIELDS = {field.name for field in fields(Entry)}


def entry_of(record: Record, revision: int, path: Path) -> Entry:
    """Return the entry of the record that lies at ``path``."""
    stat = path.stat()
    return Entry(
        record.cell,
        record.trajectory,
        record.status,
        revision,
        record.answers,
        stat.st_size,
        stat.st_mtime_ns,
    )


def read_index(root: Path) -> dict[str, Entry]:
    """Return the newest entry of each cell. Raises FileNotFoundError, or ``Corrupt`` when any line is unsound."""
    path = root / NAME
    entries: dict[str, Entry] = {}
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        content = json.loads(unseal(line, f"{path}:{number}"))
        if content.keys() != _FIELDS:
            raise Corrupt(f"{path}:{number}: another version wrote it")
        content["status"] = Status(content["status"])
        content["answers"] = tuple(content["answers"])
        entry = Entry(**content)
        known = entries.get(entry.cell)
        if known is None or entry.revision >= known.revision:
            entries[entry.cell] = entry
    return entries


def append_entries(root: Path, entries: Iterable[Entry]) -> None:
    """Add entries in one write at the end, at a cost that does not grow with the index. Raises OSError."""
    handle = os.open(root / NAME, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, _lines(entries))
    finally:
        os.close(handle)


def write_index(root: Path, entries: Iterable[Entry]) -> None:
    """Replace the index. Raises OSError."""
    files.write_bytes(root / NAME, _lines(entries))


def _lines(entries: Iterable[Entry]) -> bytes:
    return b"".join(seal(asdict(entry)) for entry in entries)
