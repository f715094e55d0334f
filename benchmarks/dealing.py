"""Padding and unequal shares: the tokens that a step computes over its real ones, and its slowest rank over the mean.

    python benchmarks/dealing.py [--steps 50]

Lengths are log-normal (deviation 0.9 of their logarithm), cut at 2,048 tokens (4,096 for the longest), from a fixed seed;
``limit`` is the most tokens of a micro-batch. ``sorted`` deals every n-th of the sorted samples to a rank and fills
micro-batches up, as before 2026-11-28; ``planned`` is ``training.packing.plan_step``; ``packed`` has no padding. ``bound``
is what no dealing can be below, whatever it pads: a rank has the longest sample, or more.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np

from massive_sft.cost.padding import samples_per_micro_batch
from massive_sft.data.samples import padded_width
from massive_sft.training.packing import Limit, plan_step

DEVIATION = 0.9
CASES = [  # mean length, the most, batch, ranks, limit
    (174, 2048, 32, 1, 65_536), (174, 2048, 32, 2, 5_000), (174, 2048, 32, 4, 5_000), (174, 2048, 32, 8, 5_000),
    (174, 2048, 128, 8, 5_000), (479, 2048, 32, 1, 65_536), (479, 2048, 32, 8, 21_000),
    (479, 2048, 128, 1, 16_384), (479, 2048, 128, 8, 16_384), (479, 2048, 32, 2, 2_048), (1479, 4096, 32, 8, 21_000),
]  # fmt: skip
Plan = Sequence[Sequence[np.ndarray]]


def sorted_plan(batch: np.ndarray, lengths: np.ndarray, ranks: int, tokens: int) -> Plan:
    """Deal and cut as plan_step did before."""
    by_length = batch[np.argsort(-lengths[batch], kind="stable")]
    plans = []
    for rank in range(ranks):
        share = by_length[rank::ranks]
        widths = [padded_width(int(length)) for length in lengths[share]]
        plans.append(np.split(share, np.cumsum(list(samples_per_micro_batch(widths, tokens=tokens)))[:-1]))
    return plans


def figures(plan: Plan, lengths: np.ndarray, packed: bool) -> tuple[float, float]:
    """Return padded over real tokens of a step, and its slowest rank over the mean."""

    def tokens(cut: np.ndarray) -> int:
        return int(lengths[cut].sum()) if packed else len(cut) * padded_width(int(lengths[cut].max()))

    loads = [sum(tokens(cut) for cut in cuts if len(cut)) for cuts in plan]
    real = sum(int(lengths[cut].sum()) for cuts in plan for cut in cuts)
    return sum(loads) / real, max(loads) * len(loads) / sum(loads)


def measure(case: tuple[int, int, int, int, int], steps: int) -> str:
    """Return a line of the table: means over the steps."""
    mean, most, batch, ranks, limit = case
    rng = np.random.default_rng(0)
    drawn = rng.lognormal(np.log(mean) - DEVIATION**2 / 2, DEVIATION, steps * batch)
    lengths = np.clip(drawn, 8, most).astype(np.int64)
    plans: list[tuple[Callable[[np.ndarray], Plan], bool]] = [
        (lambda indices: sorted_plan(indices, lengths, ranks, limit), False),
        (lambda indices: plan_step(indices, lengths, ranks, Limit(tokens=limit), packing=False), False),
        (lambda indices: plan_step(indices, lengths, ranks, Limit(tokens=limit), packing=True), True),
    ]
    columns, seconds = [], 0.0
    for make, packed in plans:
        began = time.process_time()
        made = [make(np.arange(start, start + batch)) for start in range(0, steps * batch, batch)]
        seconds = time.process_time() - began if not packed else seconds
        columns += [np.mean([figures(plan, lengths, packed) for plan in made], axis=0)]
    sums = lengths.reshape(steps, batch).sum(axis=1)
    bound = np.mean(np.maximum(1, lengths.reshape(steps, batch).max(axis=1) * ranks / sums))
    shown = "".join(f"{padded:>9.2f}{slowest:>8.2f}" for padded, slowest in columns)
    return f"{mean:>6,}{batch:>7}{ranks:>7}{limit:>8,}{shown}{bound:>8.2f}{1e3 * seconds / steps:>9.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50)
    options = parser.parse_args()
    heads = "".join(f"{name:>9}{'slowest':>8}" for name in ("sorted", "planned", "packed"))
    lines = [f"{'mean':>6}{'batch':>7}{'ranks':>7}{'limit':>8}{heads}{'bound':>8}{'plan ms':>9}"]
    lines += [measure(case, options.steps) for case in CASES]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
