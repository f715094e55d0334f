"""The layout of one optimizer step: which rank sees which samples in which micro-batch, as tensors.

A layout changes speed and memory only. Samples of a step are sorted by length, so padding is small; packed samples
stand one after another in one row, and position ids that restart keep them apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from massive_sft.cost.memory import activation_bytes, bytes_per_number, chunk_targets, head_bytes, logit_bytes
from massive_sft.cost.padding import samples_per_micro_batch
from massive_sft.cost.rank_loads import deal_longest_first, deal_padded
from massive_sft.data.samples import Samples, padded_width
from massive_sft.sweep.schema import Setting
from massive_sft.sweep.spec import Layout

# The target of a position that only fills up; cross-entropy ignores it.
NO_TARGET = -100


@dataclass(frozen=True)
class Limit:
    """The most that one micro-batch holds: a number of samples, or of tokens with padding. One of them is set."""

    samples: int | None = None
    tokens: int | None = None

    def halved(self, longest: int) -> Limit | None:
        """Return half this limit, or None when a micro-batch already holds a single sample.

        Args:
            longest: tokens of the longest sample; a micro-batch always holds at least one sample.
        """
        if self.samples is not None:
            return replace(self, samples=(self.samples + 1) // 2) if self.samples > 1 else None
        assert self.tokens is not None
        return replace(self, tokens=max(longest, self.tokens // 2)) if self.tokens > longest else None


def fitting_tokens(free_bytes: int, layers: int, hidden: int, vocabulary: int, setting: Setting, layout: Layout) -> int:
    """Estimate how many tokens of a micro-batch fit into memory; at least 1.

    By the formulas of ``cost.memory``; a fifth of the memory is left for fragments.
    """
    number, room = bytes_per_number(setting.precision), int(0.8 * free_bytes)
    each = activation_bytes(layers, hidden, number, layout.gradient_checkpointing)
    at_once = max(1, room // (each + logit_bytes(vocabulary, number)))
    chunk = chunk_targets(vocabulary, layout)
    if chunk is None:
        return at_once
    held = head_bytes(at_once, vocabulary, hidden, number, setting.method == "full", layout)
    return max(at_once, (room - held) // each)


@dataclass(frozen=True)
class MicroBatch:
    """What one forward pass reads.

    Attributes:
        input_ids: int64, shape (rows, width). Padding stands on the right.
        position_ids: int64, same shape, restarting at each sample; None where the model counts columns itself.
        keep: int64, shape (targets,); positions in the flattened input whose next token is a target.
        targets: int64, shape (targets,); token ids, ``NO_TARGET`` where ``keep`` only fills up.
        counted: False for the stand-in of a rank without samples: it takes part and adds nothing.
        tokens: tokens without padding.
        borders: int32, shape (samples + 1,); where each sample of a packed row begins, the padding as one more, and
            where the last ends. None where samples are not packed.
        longest: tokens of the longest of these.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor | None
    keep: torch.Tensor
    targets: torch.Tensor
    counted: bool
    tokens: int
    borders: torch.Tensor | None = None
    longest: int = 0

    def to(self, device: torch.device) -> MicroBatch:
        """Return the same on a device."""
        if device.type == "cpu":
            return self
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, torch.Tensor)
        }
        return replace(self, **moved)

    def within(self, positions: int | None) -> MicroBatch:
        """Return the same without the padding beyond a model's positions, which samples fit; None where it has any."""
        width = self.input_ids.shape[1]
        if positions is None or width <= positions or self.position_ids is not None:
            return self
        keep = self.keep // width * positions + self.keep % width
        return replace(self, input_ids=self.input_ids[:, :positions], keep=keep)


def plan_step(
    batch: np.ndarray, lengths: np.ndarray, ranks: int, limit: Limit, packing: bool, borders: Sequence[int] = ()
) -> list[list[np.ndarray]]:
    """Deal a batch's samples to ranks and cut each share into micro-batches.

    Packed samples, and those of a number in a micro-batch, go one by one to the rank that has least, the longest first.
    Where micro-batches are of a number of tokens, they are cut first, by what they cost, and dealt likewise.

    Args:
        batch: sample indices of the optimizer step.
        lengths: tokens of every sample of the training set.
        ranks: number of data-parallel ranks.
        limit: the most that a micro-batch holds.
        packing: True when samples stand one after another in one row.
        borders: of the model (``configuration.length_borders``): no micro-batch has samples on both sides of one.

    Returns:
        Sample indices by rank and micro-batch. Every rank has equally many micro-batches, as collective operations
        need; a rank with fewer samples ends with empty ones.
    """
    by_length = batch[np.argsort(-lengths[batch], kind="stable")]
    plans: list[list[np.ndarray]] = [[] for _ in range(ranks)]
    for alike in np.split(by_length, np.flatnonzero(np.diff(np.searchsorted(borders, lengths[by_length]))) + 1):
        for plan, more in zip(plans, _plan_alike(alike, lengths, ranks, limit, packing), strict=True):
            plan += more
    rounds = max(map(len, plans))
    empty = np.empty(0, dtype=np.int64)
    return [plan + [empty] * (rounds - len(plan)) for plan in plans]


def _plan_alike(
    by_length: np.ndarray, lengths: np.ndarray, ranks: int, limit: Limit, packing: bool
) -> list[list[np.ndarray]]:
    """Return the micro-batches of each rank of samples that may share one, from long to short."""
    if packing or limit.tokens is None:
        shares = deal_longest_first(lengths[by_length].tolist(), ranks)
        cut = _cut_packed if packing else _cut_padded
        return [cut(by_length[share], lengths, limit) for share in shares]
    widths = [padded_width(int(length)) for length in lengths[by_length]]
    dealt = deal_padded(widths, ranks, limit.tokens)
    return [[by_length[micro_batch] for micro_batch in micro_batches] for micro_batches in dealt]


def fullest(batch: int, lengths: np.ndarray, limit: Limit, packing: bool) -> np.ndarray:
    """Return the samples of the micro-batch that takes most memory of all that steps of ``batch`` samples may have."""
    longest = np.argsort(-lengths, kind="stable")[:batch]
    return (_cut_packed if packing else _cut_padded)(longest, lengths, limit)[0]


def _cut_padded(share: np.ndarray, lengths: np.ndarray, limit: Limit) -> list[np.ndarray]:
    """Cut samples sorted from long to short into as few micro-batches as hold them; the first gives the width."""
    widths = [padded_width(int(length)) for length in lengths[share]]
    sizes = list(samples_per_micro_batch(widths, limit.samples, limit.tokens))
    return np.split(share, np.cumsum(sizes)[:-1]) if sizes else []


def _cut_packed(share: np.ndarray, lengths: np.ndarray, limit: Limit) -> list[np.ndarray]:
    """Put each sample, from long to short, into the first row that has room (first-fit decreasing)."""
    if limit.samples is not None:
        return _cut_padded(share, lengths, limit)
    rows: list[list[int]] = []
    room: list[int] = []
    for index in share:
        length = int(lengths[index])
        row = next((row for row, left in enumerate(room) if left >= length), None)
        if row is None:
            rows.append([])
            room.append(max(limit.tokens or 0, length))
            row = len(rows) - 1
        rows[row].append(int(index))
        room[row] -= length
    return [np.array(row, dtype=np.int64) for row in rows]


def collate(samples: Samples, indices: np.ndarray, packing: bool) -> MicroBatch:
    """Return the tensors of one micro-batch; of a stand-in when there are no indices.

    Rows are padded on the right and read without an attention mask: under causal attention no token sees the
    padding after it. No position of the padding is a target.
    """
    if len(indices) == 0:
        zero = torch.zeros(1, dtype=torch.int64)
        return MicroBatch(torch.zeros((1, 2), dtype=torch.int64), None, zero, zero, counted=False, tokens=0)
    parts = [samples[int(index)] for index in indices]
    tokens = np.concatenate([part[0] for part in parts]).astype(np.int64)
    trainable = np.concatenate([part[1] for part in parts])
    lengths = np.array([len(part[0]) for part in parts])
    positions = borders = None
    longest = int(lengths.max())
    if packing:
        width = padded_width(len(tokens))
        starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
        # The padding counts from 0 again: it is one more sample that nothing else sees.
        row = np.concatenate([np.arange(len(tokens)) - starts, np.arange(width - len(tokens))])
        positions = torch.from_numpy(row[None])
        spans = np.append(lengths, [width - len(tokens)] if width > len(tokens) else [])
        borders = torch.from_numpy(np.append([0], np.cumsum(spans)).astype(np.int32))
        longest = int(spans.max())
        inside = (np.arange(width) < len(tokens))[None]
    else:
        inside = np.arange(padded_width(int(lengths.max()))) < lengths[:, None]
    grid = np.zeros(inside.shape, dtype=np.int64)
    grid[inside] = tokens
    wanted = np.zeros(inside.shape, dtype=bool)
    wanted[inside] = trainable
    where = np.flatnonzero(wanted)
    spare = padded_width(len(where)) - len(where)
    # A sample's first token is never a target, so the position before a target lies in the same sample.
    return MicroBatch(
        torch.from_numpy(grid),
        positions,
        torch.from_numpy(np.concatenate([where - 1, np.zeros(spare, dtype=np.int64)])),
        torch.from_numpy(np.concatenate([grid.reshape(-1)[where], np.full(spare, NO_TARGET)])),
        counted=True,
        tokens=len(tokens),
        borders=borders,
        longest=longest,
    )
