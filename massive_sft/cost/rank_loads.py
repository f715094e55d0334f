"""How a step's samples are dealt to ranks and cut into micro-batches: what its slowest rank computes is least.

Everything here is of widths, in tokens, from wide to narrow; a place is a sample's place among them.
"""

from __future__ import annotations

from collections.abc import Sequence

# What a micro-batch costs beside its tokens, in tokens: kernels to start, layers to walk through. At 120 µs a token (7B
# on an H100) 10 ms are 80; small models take more tokens in that time, a CPU fewer.
MICRO_BATCH_TOKENS = 96


def deal_longest_first(widths: Sequence[int], ranks: int) -> list[list[int]]:
    """Return the places of each rank's samples: from the widest on, each goes to the rank that has least."""
    loads, places = [0] * ranks, [list[int]() for _ in range(ranks)]
    for place, width in enumerate(widths):
        least = loads.index(min(loads))
        loads[least] += width
        places[least].append(place)
    return places


def deal_padded(widths: Sequence[int], ranks: int, tokens: int) -> list[list[range]]:
    """Return the places of each rank's micro-batches, each of samples that are next to each other.

    Tried are the cheapest cuts into micro-batches of at most ``tokens``, and into smaller ones that share better among
    ranks; taken are those by which the rank with most has least.

    Args:
        widths: each sample's own, rounded up as micro-batches are; the first of a micro-batch gives that of its rows.
        ranks: how many share the step.
        tokens: of a micro-batch with its padding, at most; a sample that is longer stands alone.
    """
    share = sum(widths) // ranks
    most = [tokens, *(share // parts for parts in (1, 2, 4, 8) if ranks > 1 and share // parts < tokens)]
    return min(
        (_deal(cut_by_cost(widths, limit), widths, ranks) for limit in most), key=lambda dealt: slowest(dealt, widths)
    )


def cut_by_cost(widths: Sequence[int], tokens: int) -> list[range]:
    """Return the micro-batches whose padded tokens, and ``MICRO_BATCH_TOKENS`` for each, are least: a shortest path."""
    best, begins = [0], [0]
    for end in range(1, len(widths) + 1):
        cost, begin = best[end - 1] + widths[end - 1], end - 1
        for start in range(end - 2, -1, -1):
            padded = (end - start) * widths[start]
            if padded > tokens:
                break
            if best[start] + padded < cost:
                cost, begin = best[start] + padded, start
        best.append(cost + MICRO_BATCH_TOKENS)
        begins.append(begin)
    cuts, end = [], len(widths)
    while end:
        cuts.append(range(begins[end], end))
        end = begins[end]
    return cuts[::-1]


def padded_tokens(micro_batch: range, widths: Sequence[int]) -> int:
    """Return the tokens of a micro-batch with its padding."""
    return len(micro_batch) * widths[micro_batch.start]


def slowest(dealt: Sequence[Sequence[range]], widths: Sequence[int]) -> int:
    """Return what a step takes, in tokens: those of the rank with most, in as many micro-batches as any rank has."""
    most = max(sum(padded_tokens(cut, widths) for cut in cuts) for cuts in dealt)
    return most + MICRO_BATCH_TOKENS * max(map(len, dealt))


def _deal(cuts: Sequence[range], widths: Sequence[int], ranks: int) -> list[list[range]]:
    ordered = sorted(cuts, key=lambda cut: -padded_tokens(cut, widths))
    costs = [padded_tokens(cut, widths) + MICRO_BATCH_TOKENS for cut in ordered]
    return [[ordered[place] for place in places] for places in deal_longest_first(costs, ranks)]
