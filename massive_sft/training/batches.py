"""Which samples make which optimizer step: a pure function of seed and epoch, whatever the workers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from massive_sft.data import row_sampling

# Keeps the order of training apart from the permutation that draws a part's rows under an equal seed.
_ORDER = 0x6F72646572


@dataclass(frozen=True)
class Batch:
    """The samples of one optimizer step.

    Attributes:
        step: counted from 0 over the whole training.
        epoch: counted from 1.
        indices: of the samples, int64, shape (samples,); the last batch of an epoch may be short.
        ends_epoch: whether it is the last one of its epoch.
    """

    step: int
    epoch: int
    indices: np.ndarray
    ends_epoch: bool


def batches_between(first: int, end: int, samples: int, batch: int, seed: int) -> Iterator[Batch]:
    """Yield the batches of the steps from ``first`` up to, and without, ``end``; steps are counted from 0."""
    per_epoch = steps_per_epoch(samples, batch)
    order = np.empty(0, dtype=np.int64)
    for step in range(first, end):
        epoch, index = step // per_epoch + 1, step % per_epoch
        if index == 0 or not len(order):
            order = epoch_order(samples, seed, epoch)
        yield Batch(step, epoch, batch_of(order, batch, index), index == per_epoch - 1)


def epoch_order(samples: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order of an epoch (counted from 1): int64, shape (samples,), each index once.

    Indices are sorted by hashed keys rather than drawn from a generator, so the order never changes with the
    version of a library.
    """
    epoch_seed = int(row_sampling.keys(np.array([epoch]), seed ^ _ORDER)[0])
    return np.argsort(row_sampling.keys(np.arange(samples), epoch_seed), kind="stable")


def steps_per_epoch(samples: int, batch: int) -> int:
    """Return the optimizer steps of an epoch; the short last batch is one of them."""
    return -(-samples // batch)


def batch_of(order: np.ndarray, batch: int, step: int) -> np.ndarray:
    """Return the sample indices of a step (counted from 0 within its epoch); the last may be short."""
    return order[step * batch : (step + 1) * batch]
