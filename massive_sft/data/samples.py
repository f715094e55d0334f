"""Tokenised training samples: the one form that training and perplexity read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Widths and numbers of targets are rounded up to this: a new shape can mean a new kernel (bf16 on a CPU spent half its
# time on that), and tensor cores want multiples of 8.
_MULTIPLE = 16


def padded_width(tokens: int) -> int:
    """Return the width that so many tokens, or targets, take in a micro-batch."""
    return -(-tokens // _MULTIPLE) * _MULTIPLE


@dataclass(frozen=True)
class Samples:
    """Ragged token arrays.

    Attributes:
        tokens: int32, shape (total tokens,).
        trainable: bool, same shape; True where the token is a target of the loss. A sample's first token never is.
        offsets: int64, shape (samples + 1,); sample i is ``tokens[offsets[i]:offsets[i + 1]]``.
        part: int16, shape (samples,); index of the mixture's part.
        row: int64, shape (samples,); row of that part's dataset, counted from 0 in file order before any filter.
        text_bytes: int64, shape (samples, 2); UTF-8 bytes of text that all tokens but the sample's first cover,
            and that the trainable ones do (EOS and BOS count nothing), for bits per byte.
    """

    tokens: np.ndarray
    trainable: np.ndarray
    offsets: np.ndarray
    part: np.ndarray
    row: np.ndarray
    text_bytes: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (tokens, trainable) of one sample, as views."""
        span = slice(self.offsets[index], self.offsets[index + 1])
        return self.tokens[span], self.trainable[span]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per sample, int64."""
        return np.diff(self.offsets)

    @property
    def trainable_lengths(self) -> np.ndarray:
        """Trainable tokens per sample, int64."""
        until = np.concatenate([[0], np.cumsum(self.trainable, dtype=np.int64)])
        return np.diff(until[self.offsets])
