"""Tokens that a step really computes: padding included, which tells more of its time than its tokens do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

from massive_sft.cost.memory import CPU_TOKENS, TYPICAL_GPU_TOKENS
from massive_sft.cost.rank_loads import deal_longest_first, deal_padded, padded_tokens
from massive_sft.cost.workload import TrainingWorkload
from massive_sft.sweep.schema import Setting
from massive_sft.sweep.spec import Layout

USUAL = 1.15  # computed tokens a token, where lengths were not counted


def computed_tokens(workload: TrainingWorkload, setting: Setting, layout: Layout) -> float:
    """Return the tokens of an epoch with their padding, as ``training.packing`` cuts a typical batch."""
    if layout.packing:
        return workload.tokens
    if not workload.widths:
        return USUAL * workload.tokens
    batch = min(setting.batch, workload.samples)
    widths = tuple(typical_widths(workload.widths, batch))
    return workload.samples / batch * sum(map(sum, dealt_tokens(widths, layout)))


@lru_cache(maxsize=1024)  # the trainings of a sweep have few typical steps
def dealt_tokens(widths: tuple[int, ...], layout: Layout) -> Sequence[Sequence[int]]:
    """Return the tokens of each rank's micro-batches with their padding, of a step's samples from wide to narrow."""
    if layout.packing:
        return [[sum(widths[place] for place in share)] for share in deal_longest_first(widths, layout.workers)]
    if layout.micro_batch == "auto":
        tokens = TYPICAL_GPU_TOKENS if layout.gpus else CPU_TOKENS
        dealt = deal_padded(widths, layout.workers, tokens)
        return [[padded_tokens(micro_batch, widths) for micro_batch in share] for share in dealt]
    return [
        _padded([widths[place] for place in share], layout.micro_batch)
        for share in deal_longest_first(widths, layout.workers)
    ]


def _padded(widths: Sequence[int], samples: int) -> list[int]:
    """Return the tokens of micro-batches of so many samples of these widths, from wide to narrow."""
    return [widths[start] * len(widths[start : start + samples]) for start in range(0, len(widths), samples)]


def typical_widths(counts: tuple[tuple[int, int], ...], size: int) -> Iterator[int]:
    """Yield the widths of ``size`` samples, from wide to narrow: evenly spaced quantiles of (width, samples)."""
    total = sum(count for _, count in counts)
    ordered = sorted(counts, reverse=True)
    place, passed = 0, ordered[0][1]
    for index in range(size):
        while passed < (index + 0.5) / size * total:
            place += 1
            passed += ordered[place][1]
        yield ordered[place][0]


def samples_per_micro_batch(
    widths: Sequence[int], samples: int | None = None, tokens: int | None = None
) -> Iterator[int]:
    """Yield how many samples each padded micro-batch takes, as training cuts them; the first one gives its width.

    Args:
        widths: padded ones in tokens, from wide to narrow.
        samples, tokens: the most that a micro-batch holds, but one sample at least; one of the two is given.
    """
    start = 0
    while start < len(widths):
        most = samples if samples is not None else (tokens or 1) // widths[start]
        rows = min(max(most, 1), len(widths) - start)
        yield rows
        start += rows
