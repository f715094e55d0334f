"""Batches that are a pure function of lengths, and what happens when one does not fit into memory."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from massive_sft.core.errors import Unsupported
from massive_sft.models.out_of_memory import is_out_of_memory

T = TypeVar("T")
# Tokens of a batch of scoring, padding included. On a CPU one that stays in the caches is a quarter faster than 8192
# tokens on two cores; on a GPU enough to fill a large one, which was not measured.
CPU_BATCH_TOKENS = 2048
GPU_BATCH_TOKENS = 16384


def default_budget(device: torch.device) -> int:
    """Return the tokens of a batch, padding included, for a kind of device."""
    return CPU_BATCH_TOKENS if device.type == "cpu" else GPU_BATCH_TOKENS


def plan(lengths: Sequence[int], budget: int, borders: Sequence[int] = ()) -> list[list[int]]:
    """Group indices into batches of at most ``budget`` tokens with padding (a longer one is alone), longest first.

    Ties keep their order, so equal lengths give equal batches.

    Args:
        borders: of the model (``configuration.length_borders``): no batch has lengths on both sides of one.
    """
    sides = [bisect_left(borders, length) for length in lengths]
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        first = batches[-1][0] if batches else index
        if batches and sides[first] == sides[index] and (len(batches[-1]) + 1) * lengths[first] <= budget:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def run_split(batch: list[int], compute: Callable[[list[int]], list[T]]) -> tuple[list[T], int]:
    """Compute a batch; when memory runs out, each half of it. Returns the results in order, and the splits made.

    Raises:
        Unsupported: when a single sequence does not fit.
    """
    try:
        return compute(batch), 0
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    # Outside the handler: the exception holds the frames, and they hold the tensors that did not fit.
    if len(batch) == 1:
        raise Unsupported("a single sequence does not fit into memory; score on a device with more of it")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    middle = len(batch) // 2
    left, left_splits = run_split(batch[:middle], compute)
    right, right_splits = run_split(batch[middle:], compute)
    return left + right, left_splits + right_splits + 1


def right_padded(sequences: Sequence[Sequence[int]], device: torch.device) -> torch.Tensor:
    """Return int64 tokens of shape (sequences, longest), zeros behind the shorter ones."""
    longest = max(map(len, sequences))
    return torch.tensor([[*sequence, *[0] * (longest - len(sequence))] for sequence in sequences], device=device)
