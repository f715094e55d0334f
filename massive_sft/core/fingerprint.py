"""Content hashes: the same content gives the same id on every machine and in every session."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from massive_sft.core.files import user_cache_file

ID_LENGTH = 16


def canonical_json(value: Any) -> str:
    """Return canonical JSON: sorted keys, no spaces, shortest round-trip floats.

    Raises:
        TypeError: for a value whose text could differ between runs (sets, objects, non-string keys).
        ValueError: for NaN or an infinity.
    """
    return json.dumps(_stable(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _stable(value: Any) -> Any:
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"cannot fingerprint a non-finite number: {value!r}")
        return value + 0.0  # -0.0 becomes 0.0
    if isinstance(value, Mapping):
        unstable = [key for key in value if not isinstance(key, str)]
        if unstable:
            raise TypeError(f"cannot fingerprint a mapping with keys {unstable!r}: keys must be strings")
        return {key: _stable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_stable(item) for item in value]
    raise TypeError(f"cannot fingerprint {type(value).__name__}: {value!r}")


def flatten(value: Any, place: str = "") -> dict[str, Any]:
    """Return nested mappings and lists as one level: ``optimizer.betas[0]``."""
    if isinstance(value, Mapping) and value:
        parts = [flatten(item, f"{place}.{key}" if place else str(key)) for key, item in value.items()]
    elif isinstance(value, list) and value:
        parts = [flatten(item, f"{place}[{index}]") for index, item in enumerate(value)]
    else:
        return {place: value}
    return {key: item for part in parts for key, item in part.items()}


def join_canonical(parts: Mapping[str, str]) -> str:
    """Return the canonical JSON of a mapping whose values are canonical JSON already.

    Equal to ``canonical_json`` of the whole, but a part shared by many wholes is serialised once.
    """
    return "{" + ",".join(f"{_quoted(key)}:{parts[key]}" for key in sorted(parts)) + "}"


@cache
def _quoted(key: str) -> str:
    return json.dumps(key)


def digest(text: str) -> str:
    """Return the id of canonical JSON text: the first 16 hex digits of its SHA-256."""
    # A path of the machine's may hold bytes that are no text; within the sweep file they are refused.
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:ID_LENGTH]


def fingerprint(value: Any) -> str:
    """Return the id of a value: ``digest(canonical(value))``."""
    return digest(canonical_json(value))


def hash_file(path: Path) -> str:
    """Return the SHA-256 (64 hex digits) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


SETTLED_NS = 2_000_000_000  # how old a change must be for a file's times to tell it from the next one
MAX_STATES = 8  # remembered of one path: what nodes with disks of their own, or other mounts, have there


class FileHashes:
    """SHA-256 of local files, remembered by path, device, inode, size and times of modification and change.

    Time and size alone would not do: weights of one shape have one size, and ``cp -p``, ``rsync -t`` and ``tar`` keep
    modification times; the time of change cannot be set. A path has several states, for the memory, in the user's cache
    folder, may be shared by machines on which one path leads to different files. It holds a checksum, then JSON. Losing
    it, or having no home, costs time, never correctness.
    """

    def __init__(self, memory: Path | None = None):
        self._memory = memory or user_cache_file("file-hashes-2")
        self._known: dict[str, dict[str, str]] = {}
        self._fresh = False
        if self._memory is None:
            return
        try:
            text = self._memory.read_text()
        except (OSError, ValueError):
            return
        seal, _, body = text.partition("\n")
        if hashlib.sha256(body.encode()).hexdigest() == seal:  # a wrong hash in it would make another cell
            self._known = json.loads(body)

    def of(self, path: Path) -> str:
        """Return the SHA-256 of the file at ``path``. Raises OSError when it cannot be read."""
        path = path.resolve()
        stat, began = path.stat(), time.time_ns()
        states = self._known.get(str(path), {})
        if known := states.get(_state(stat)):
            return known
        value = hash_file(path)
        # A file that changed while it was read, or so lately that its times may hide the next change, is read again.
        if _state(path.stat()) == _state(stat) and began - stat.st_ctime_ns > SETTLED_NS:
            kept = list(states.items())[-(MAX_STATES - 1) :]
            self._known[str(path)] = {**dict(kept), _state(stat): value}
            self._fresh = True
        return value

    def save(self) -> None:
        """Write what was learnt. A cache folder that cannot be written is no error."""
        if self._memory is None or not self._fresh:
            return
        try:
            self._memory.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=self._memory.parent, delete=False) as file:
                body = json.dumps(self._known)
                file.write(f"{hashlib.sha256(body.encode()).hexdigest()}\n{body}")
            os.replace(file.name, self._memory)
        except OSError:
            pass
        self._fresh = False


def _state(stat: os.stat_result) -> str:
    return f"{stat.st_dev} {stat.st_ino} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"
