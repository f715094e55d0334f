"""Tokens that a step really computes: padding included, which tells more of its time than its tokens do."""

from __future__ import annotations

from collections.abc import Iterator

from massive_sft.cost.memory import CPU_TOKENS
from massive_sft.cost.workload import TrainingWorkload
from massive_sft.sweep.schema import Setting
from massive_sft.sweep.spec import Layout

USUAL = 1.15  # computed tokens a token, where lengths were not counted
GPU_MICRO_BATCH = 16384  # tokens taken for what is free decides, which only the run finds out


def computed_tokens(amount: TrainingWorkload, setting: Setting, layout: Layout) -> float:
    """Return the tokens of an epoch with their padding, as ``training.packing`` cuts a typical batch."""
    if layout.packing:
        return amount.tokens
    if not amount.widths:
        return USUAL * amount.tokens
    batch = min(setting.batch, amount.samples)
    share = max(1, -(-batch // layout.workers))
    widths = list(_typical(amount.widths, share))
    return amount.samples / share * _padded(widths, layout)


def _typical(counts: tuple[tuple[int, int], ...], size: int) -> Iterator[int]:
    """Yield the widths of a typical batch, from wide to narrow: evenly spaced quantiles."""
    total = sum(count for _, count in counts)
    ordered = sorted(counts, reverse=True)
    place, passed = 0, ordered[0][1]
    for index in range(size):
        while passed < (index + 0.5) / size * total:
            place += 1
            passed += ordered[place][1]
        yield ordered[place][0]


def _padded(widths: list[int], layout: Layout) -> int:
    total = start = 0
    limit = max(GPU_MICRO_BATCH if layout.gpus else CPU_TOKENS, widths[0])
    while start < len(widths):
        rows = limit // widths[start] if layout.micro_batch == "auto" else layout.micro_batch
        rows = min(max(rows, 1), len(widths) - start)
        total += rows * widths[start]
        start += rows
    return total
