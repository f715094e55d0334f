"""Requests as tokens, kept in files beside the requests: all that is scored with one tokenizer encodes them once.

A file ``<tokenizer>-<requests>.npz`` is named by the content of both, with a SHA-256 before its arrays. It is a pure
function of them, so two writers at once do no harm; one that is damaged is made again.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from massive_sft.core import files
from massive_sft.core.errors import Corrupt
from massive_sft.core.fingerprint import digest
from massive_sft.evaluation.encoding import RequestEncoder
from massive_sft.evaluation.requests import Likelihood, Rolling, to_line

log = logging.getLogger(__name__)
Pair = tuple[list[int], list[int]]
_SEAL = hashlib.sha256().digest_size


def encode(requests: Sequence[Likelihood | Rolling], encoder: RequestEncoder, folder: Path | None) -> list[Pair]:
    """Return each request's tokens, as ``RequestEncoder.request`` does.

    Args:
        folder: where they are kept; None: they are not.

    Raises:
        Unsupported: a text has a token that the model has no embedding for.
        OSError: the disk takes no more.
    """
    if folder is None or not requests:
        return [encoder.request(request) for request in requests]
    path = folder / f"{encoder.fingerprint}-{digest(chr(10).join(map(to_line, requests)))}.npz"
    try:
        pairs = _read(path, len(requests))
    except FileNotFoundError:
        pass
    except Corrupt as error:
        log.warning("%s; it is made again", error)
    else:
        encoder.require_known(max((max(part, default=0) for pair in pairs for part in pair), default=0))
        return pairs
    pairs = [encoder.request(request) for request in requests]
    _write(path, pairs)
    return pairs


def _write(path: Path, pairs: Iterable[Pair]) -> None:
    parts = [part for pair in pairs for part in pair]
    tokens = np.fromiter((token for part in parts for token in part), dtype=np.int32)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, tokens=tokens, lengths=np.array([len(part) for part in parts], dtype=np.int32))
    data = buffer.getvalue()
    files.write_bytes(path, hashlib.sha256(data).digest() + data)


def _read(path: Path, count: int) -> list[Pair]:
    """Raises FileNotFoundError, ``Corrupt``."""
    content = path.read_bytes()
    data = content[_SEAL:]
    if hashlib.sha256(data).digest() != content[:_SEAL]:
        raise Corrupt(f"{path}: does not match its checksum")
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        tokens, lengths = arrays["tokens"].tolist(), arrays["lengths"]
    if len(lengths) != 2 * count:
        raise Corrupt(f"{path}: holds other requests")
    bounds = [0, *np.cumsum(lengths).tolist()]
    parts = [tokens[start:end] for start, end in pairwise(bounds)]
    return list(zip(parts[::2], parts[1::2], strict=True))
