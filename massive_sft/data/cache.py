"""Tokenised mixtures on disk: built once, read by every trajectory that trains on them.

Two files for a key: ``<key>.npz``, the arrays, and ``<key>.json``, the counts and the arrays' SHA-256, sealed and
written last. Both are a pure function of the key, so two writers at once do no harm.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from massive_sft.core.checksummed_json import read_sealed, seal
from massive_sft.core.errors import Corrupt
from massive_sft.core.files import write_bytes
from massive_sft.data.mixture import Counts
from massive_sft.data.samples import Samples, padded_width

# 2: the counts tell of answers that a token joins to their prompts. 3: bytes that a sample's first token covers are not
# among those of all its predicted tokens.
SCHEMA = 3
_ARRAYS = ("tokens", "trainable", "offsets", "part", "row", "text_bytes")
_log = logging.getLogger(__name__)


def load_or_build(cache_dir: Path, key: str, build: Callable[[], tuple[Samples, Counts]]) -> tuple[Samples, Counts]:
    """Return what is cached under ``key``, or build it and cache it.

    A damaged entry is logged and built again. ``key`` must cover everything that decides the samples: the parts with
    their files' hashes, ``sample_seed``, template, ``max_length``, truncation, ``loss_on``, the tokenizer's hash.

    Raises:
        OSError: when the cache cannot be written.
    """
    try:
        return _load(cache_dir, key)
    except FileNotFoundError:
        pass
    except Corrupt as error:
        _log.warning("%s; it is built again", error)
    samples, counts = build()
    buffer = io.BytesIO()
    # Keyword by keyword, in a fixed order: numpy dates no member, so equal samples give equal bytes.
    np.savez(buffer, **{name: getattr(samples, name) for name in _ARRAYS})  # type: ignore[arg-type]
    data = buffer.getvalue()
    write_bytes(_arrays_path(cache_dir, key), data)
    value = {
        "schema": SCHEMA,
        "sha256": hashlib.sha256(data).hexdigest(),
        "counts": counts.model_dump(mode="json"),
        "widths": _widths(samples),
    }
    write_bytes(_counts_path(cache_dir, key), seal(value))
    return samples, counts


def _widths(samples: Samples) -> list[list[int]]:
    """Return (tokens, rounded up as micro-batches are; samples) of all samples, for estimates."""
    widths: Counter[int] = Counter()
    for length, count in zip(*np.unique(samples.lengths, return_counts=True), strict=True):  # far fewer than samples
        widths[padded_width(int(length))] += int(count)
    return [[width, count] for width, count in sorted(widths.items())]


def _arrays_path(cache_dir: Path, key: str) -> Path:
    return cache_dir / f"{key}.npz"


def _counts_path(cache_dir: Path, key: str) -> Path:
    return cache_dir / f"{key}.json"


def _read_counts(cache_dir: Path, key: str) -> tuple[Counts, str]:
    """Return the counts and the arrays' SHA-256. Raises FileNotFoundError, ``Corrupt``."""
    path = _counts_path(cache_dir, key)
    value = read_sealed(path)
    if value.get("schema") != SCHEMA:
        raise Corrupt(f"{path}: is no cache entry of schema {SCHEMA}")
    try:
        return Counts.model_validate(value.get("counts")), str(value.get("sha256"))
    except ValidationError as error:
        raise Corrupt(f"{path}: has no readable counts") from error


def _load(cache_dir: Path, key: str) -> tuple[Samples, Counts]:
    counts, expected = _read_counts(cache_dir, key)
    path = _arrays_path(cache_dir, key)
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != expected:
        raise Corrupt(f"{path}: does not match its checksum")
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return Samples(**{name: arrays[name] for name in _ARRAYS}), counts
