"""Adapters of one base trained at once (``resources.lora_at_once``), beside as many single trainings.

    python benchmarks/lora_at_once.py [--adapters 2 4 8] [--batch 1 8] [--hidden 256 --layers 8] [--gpu]

A randomly initialised Llama, 64 samples of 16 to 64 tokens, three epochs, adapters of ranks 4 to 32 with learning rates
of their own. Each row trains its adapters one after another with a base that is kept in memory, then at once, twice in
turn, and counts the faster of both. Printed are seconds, tokens of all adapters a second, the most memory that the
process or the GPU held in each, and the largest difference between the losses of a training at once and alone.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from made_training import make_spec
from small_llama import write_llama

from massive_sft.data.samples import Samples
from massive_sft.models import peak_memory
from massive_sft.models.kept_base import KeptBase
from massive_sft.sweep.spec import Layout, TrainingSpec
from massive_sft.training.adapter_group import AdapterGroup, GroupMember
from massive_sft.training.events import Event, StepDone
from massive_sft.training.loop import train_trajectory

VOCABULARY, SAMPLES, EPOCHS, TIMES = 2000, 64, 3, 2
Losses = dict[int, list[float]]


def make_samples() -> Samples:
    """Return samples of random words, of 16 to 64 tokens."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(16, 65, SAMPLES)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    trainable = np.ones(offsets[-1], dtype=bool)
    trainable[offsets[:-1]] = False  # nothing predicts a sample's first token
    return Samples(
        tokens=generator.integers(1, VOCABULARY, offsets[-1]).astype(np.int32),
        trainable=trainable,
        offsets=offsets,
        part=np.zeros(SAMPLES, dtype=np.int16),
        row=np.arange(SAMPLES, dtype=np.int64),
        text_bytes=np.ones((SAMPLES, 2), dtype=np.int64),
    )


def adapter_spec(base: Path, number: int, batch: int, at_once: int, gpu: bool) -> TrainingSpec:
    """Return what the ``number``-th adapter is trained by."""
    setting = {
        "method": "lora",
        "lr": 1e-4 * (1 + number),
        "batch": batch,
        "precision": "bf16" if gpu else "fp32",
        "lora": {"rank": 4 * 2 ** (number % 4), "alpha": 16},
    }
    return make_spec(base, Layout(gpus=int(gpu), lora_at_once=at_once), (EPOCHS,), **setting)


def train(
    spec: TrainingSpec,
    folder: Path,
    losses: list[float],
    bases: KeptBase | None = None,
    member: GroupMember | None = None,
) -> None:
    """Train one adapter and keep its losses."""

    def report(event: Event) -> None:
        if isinstance(event, StepDone):
            losses.append(event.loss)

    train_trajectory(spec, make_samples(), folder, report, bases=bases, member=member)


def measured(function: Callable[[Losses], None], gpu: bool) -> tuple[float, float, Losses]:
    """Return the seconds and the peak of memory, in MB, that a function takes, and the losses that it gives."""
    losses: Losses = {}
    peak_memory.begin(gpu)
    began = time.perf_counter()
    function(losses)
    return time.perf_counter() - began, (peak_memory.peak_bytes(gpu) or 0) / 1e6, losses


def main() -> None:
    """Measure each number of adapters and each batch, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--adapters", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--gpu", action="store_true")
    arguments = parser.parse_args()
    gpu, bases = arguments.gpu, KeptBase()
    tokens = EPOCHS * int(make_samples().lengths.sum())
    with tempfile.TemporaryDirectory() as name:
        base, run = Path(name) / "base", Path(name) / "run"
        size = write_llama(base, VOCABULARY, arguments.hidden, arguments.layers, heads=4)

        def alone(batch: int, adapters: int, losses: Losses) -> None:
            for number in range(adapters):
                train(
                    adapter_spec(base, number, batch, 1, gpu), run / str(number), losses.setdefault(number, []), bases
                )

        def at_once(batch: int, adapters: int, losses: Losses) -> None:
            specs = [adapter_spec(base, number, batch, adapters, gpu) for number in range(adapters)]

            def one(number: int, member: GroupMember) -> None:
                train(specs[number], run / str(number), losses.setdefault(number, []), member=member)

            errors = AdapterGroup(specs[0].layout, bases).train([partial(one, number) for number in range(adapters)])
            assert not any(errors), errors

        print(
            f"{size / 1e6:.1f}M parameters on {platform.machine()}, {'one GPU' if gpu else f'{os.cpu_count()} cores'}"
        )
        print(
            f"{'adapters':>8} {'batch':>5} {'alone, s':>9} {'at once':>9} {'times':>6} {'tokens/s':>9} {'alone, MB':>10} {'at once':>8} {'loss apart':>11}"
        )
        alone(8, 1, {})
        for adapters in arguments.adapters:
            for batch in arguments.batch:
                both = [
                    [measured(partial(how, batch, adapters), gpu) for how in (alone, at_once)] for _ in range(TIMES)
                ]
                shutil.rmtree(run)
                (one, one_mb, expected), (all_, all_mb, found) = (min(column) for column in zip(*both, strict=True))
                apart = max(
                    abs(a - b) for number in found for a, b in zip(found[number], expected[number], strict=True)
                )
                print(
                    f"{adapters:>8} {batch:>5} {one:>9.2f} {all_:>9.2f} {one / all_:>6.2f} {adapters * tokens / all_:>9.0f} {one_mb:>10.0f} {all_mb:>8.0f} {apart:>11.1e}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
