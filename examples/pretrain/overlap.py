"""Whether a text holds a piece of another: shared windows of 50 normalised characters."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

WINDOW = 50  # characters, after normalisation
# Odd, so that it has an inverse modulo 2**64.
_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 2**64)


def normalised(text: str) -> str:
    """Return the text in lower case, with whatever is no letter or digit as one space."""
    return re.sub(r"[\W_]+", " ", text.casefold()).strip()


class Windows:
    """All windows of ``WINDOW`` normalised characters of some texts; texts shorter than that have none.

    Windows are kept as 64-bit polynomial hashes (Karp & Rabin 1987): an equal hash of different windows is possible,
    at about one in 10**12 here, and only drops a document too many.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        found = [_hashes(text) for text in texts]
        self.hashes = np.unique(np.concatenate(found)) if found else np.empty(0, np.uint64)

    def overlap(self, text: str) -> bool:
        """Whether ``text`` holds one of the windows."""
        hashes = _hashes(text)
        if not len(self.hashes) or not len(hashes):
            return False
        places = np.minimum(np.searchsorted(self.hashes, hashes), len(self.hashes) - 1)
        return bool((self.hashes[places] == hashes).any())


def _powers(base: int, count: int) -> np.ndarray:
    steps = np.full(count, base, dtype=np.uint64)
    steps[:1] = 1
    return np.multiply.accumulate(steps)


def _hashes(text: str) -> np.ndarray:
    """Return the hash of every window, uint64 of shape (characters - WINDOW + 1,); arithmetic wraps around 2**64."""
    codes = np.frombuffer(normalised(text).encode("utf-32-le"), dtype=np.uint32).astype(np.uint64) + np.uint64(1)
    count = len(codes) - WINDOW + 1
    if count < 1:
        return np.empty(0, np.uint64)
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(codes * _powers(_BASE, len(codes)), dtype=np.uint64)])
    return (sums[WINDOW:] - sums[:-WINDOW]) * _powers(_INVERSE, count)
