"""The index of the task files that lm-eval ships: read off 14,000 files in seconds of the processor, then remembered.

It lies in the user's cache folder, sealed, with a digest of the names, sizes and times of all files in lm-eval's folder
of tasks. A file that is added, changed or removed there makes it anew, as damage does.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import lm_eval.tasks
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Entry, Kind

from massive_sft.core.checksummed_json import read_sealed, seal
from massive_sft.core.errors import Corrupt
from massive_sft.core.files import user_cache_file, write_bytes
from massive_sft.core.fingerprint import digest

Index = dict[str, Entry]
FOLDER = Path(lm_eval.tasks.__file__).parent


def shipped_tasks(memory: Path | None = None) -> Index:
    """Return lm-eval's entries of the tasks, groups and tags that it ships, by name.

    Args:
        memory: the file that remembers them; one in the user's cache folder when None.
    """
    memory = memory or user_cache_file("task-index.json")
    key = _key()
    if (known := _remembered(memory, key)) is not None:
        return known
    index = TaskManager().task_index
    if memory is not None:
        # A task file may hold what is no JSON, the folder may be read-only: then it is read again the next time.
        with contextlib.suppress(OSError, TypeError, ValueError):
            sealed = seal({"key": key, "tasks": {name: _plain(entry) for name, entry in index.items()}})
            memory.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(memory, sealed)
    return index


def _key() -> str:
    """Return what tells one state of an installation from another."""
    files = sorted(_files(str(FOLDER)))
    return digest(repr((metadata.version("lm_eval"), str(FOLDER), files)))


def _files(folder: str) -> Iterator[tuple[str, int, int]]:
    """Yield path, size in bytes and time of modification in ns of each file below a folder, but for compiled ones."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                if entry.name != "__pycache__":
                    yield from _files(entry.path)
            else:
                stat = entry.stat()
                yield entry.path, stat.st_size, stat.st_mtime_ns


def _plain(entry: Entry) -> dict[str, Any]:
    path = None if entry.yaml_path is None else str(entry.yaml_path)
    return {"kind": entry.kind.name, "path": path, "config": entry.cfg, "tags": sorted(entry.tags)}


def _remembered(memory: Path | None, key: str) -> Index | None:
    """Return what a file remembers of this state of the installation, None where it does not."""
    try:
        read = read_sealed(memory) if memory is not None else {}
        return {name: _entry(name, **plain) for name, plain in read["tasks"].items()} if read["key"] == key else None
    except (OSError, Corrupt, ValueError, KeyError):
        return None


def _entry(name: str, kind: str, path: str | None, config: dict[str, Any] | None, tags: list[str]) -> Entry:
    return Entry(name, Kind[kind], None if path is None else Path(path), config, set(tags))
