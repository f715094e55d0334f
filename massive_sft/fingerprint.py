"""Content hashes: the same content gives the same id on every machine and in every session."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ID_LENGTH = 16


def canonical(value: Any) -> str:
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


def join(parts: Mapping[str, str]) -> str:
    """Return the canonical JSON of a mapping whose values are canonical JSON already.

    Equal to ``canonical`` of the whole, but a part shared by many wholes is serialised once.
    """
    return "{" + ",".join(f"{json.dumps(key)}:{parts[key]}" for key in sorted(parts)) + "}"


def digest(text: str) -> str:
    """Return the id of canonical JSON text: the first 16 hex digits of its SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:ID_LENGTH]


def fingerprint(value: Any) -> str:
    """Return the id of a value: ``digest(canonical(value))``."""
    return digest(canonical(value))


def hash_file(path: Path) -> str:
    """Return the SHA-256 (64 hex digits) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class FileHashes:
    """SHA-256 of local files, remembered by path, size and modification time.

    The memory is in the user's cache folder: a checksum, then JSON. Losing it, or having no home, costs time, never
    correctness.
    """

    def __init__(self, memory: Path | None = None):
        self._memory = memory or _default_memory()
        self._known: dict[str, list[Any]] = {}
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
        stat = path.stat()
        known = self._known.get(str(path))
        if known and known[:2] == [stat.st_size, stat.st_mtime_ns]:
            return str(known[2])
        value = hash_file(path)
        self._known[str(path)] = [stat.st_size, stat.st_mtime_ns, value]
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


def _default_memory() -> Path | None:
    """Return where hashes are remembered; None for a user without a home folder."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "massive-sft" / "file-hashes"
    except RuntimeError:
        return None
