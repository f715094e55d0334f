"""Which samples make which optimizer step: a pure function of seed and epoch, whatever the workers."""

from __future__ import annotations

import numpy as np

from massive_sft.data import sampling

# Keeps the order of training apart from the permutation that draws a part's rows under an equal seed.
_ORDER = 0x6F72646572


def epoch_order(samples: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order of an epoch (counted from 1): int64, shape (samples,), each index once.

    Indices are sorted by hashed keys rather than drawn from a generator, so the order never changes with the
    version of a library.
    """
    epoch_seed = int(sampling.keys(np.array([epoch]), seed ^ _ORDER)[0])
    return np.argsort(sampling.keys(np.arange(samples), epoch_seed), kind="stable")


def steps_per_epoch(samples: int, batch: int) -> int:
    """Return the optimizer steps of an epoch; the short last batch is one of them."""
    return -(-samples // batch)


def batch_of(order: np.ndarray, batch: int, step: int) -> np.ndarray:
    """Return the sample indices of a step (counted from 0 within its epoch); the last may be short."""
    return order[step * batch : (step + 1) * batch]
