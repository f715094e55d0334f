"""The sealed form in which JSON lies on disk: its content with the content's checksum, so that damage is seen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from massive_sft.core.errors import Corrupt
from massive_sft.core.fingerprint import canonical_json

_HEAD = '{{"sha256":"{}","content":'
_HEAD_LENGTH = len(_HEAD.format("0" * 64))
_TAIL = b"}\n"


def seal(content: Mapping[str, Any]) -> bytes:
    """Return ``{"sha256": ..., "content": ...}`` with the SHA-256 of the canonical content, as one line of JSON.

    Raises ValueError for NaN or an infinity, TypeError for a value without a stable text.
    """
    body = canonical_json(content).encode()
    return _HEAD.format(hashlib.sha256(body).hexdigest()).encode() + body + _TAIL


def unseal(data: bytes, place: str) -> bytes:
    """Return the canonical JSON of the content of ``seal``. Raises ``Corrupt`` naming ``place`` on any change."""
    body = data[_HEAD_LENGTH : -len(_TAIL)]
    if data != _HEAD.format(hashlib.sha256(body).hexdigest()).encode() + body + _TAIL:
        raise Corrupt(f"{place}: the content does not match its checksum")
    return body


def read_sealed(path: Path) -> Any:
    """Return the content of a file that holds what ``seal`` returned. Raises ``Corrupt``, OSError."""
    return json.loads(unseal(path.read_bytes(), str(path)))
