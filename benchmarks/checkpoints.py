"""What resume checkpoints cost: a Llama of 28M parameters, trained on this machine with one every few seconds.

    python benchmarks/checkpoints.py [--steps N] [--every SECONDS] [--threads N]

For each layout it prints what a checkpoint takes on the disk and in time (median of the run's), the interval that
``storage.resume_every: auto`` chooses, and the share of training time it costs at that interval: seconds of a save
over interval and save. Beside it the share measured in this run, with its far shorter interval. A save ends when every
file is hashed and flushed to the disk.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import torch
from made_training import make_samples, make_spec
from small_llama import write_llama

from massive_sft.ledger.attempt import Attempt
from massive_sft.ledger.lease import LeaseWatch
from massive_sft.ledger.storage import Folder
from massive_sft.sweep.spec import Layout, TrainingSpec
from massive_sft.training.checkpoints.disk import CheckpointStore
from massive_sft.training.checkpoints.policy import SHORTEST_INTERVAL_S, TIMES_COST
from massive_sft.training.events import CheckpointWritten, Event, StepDone
from massive_sft.training.loop import train_trajectory

VOCABULARY, LENGTH, BATCH = 4096, 64, 4
LAYOUTS: list[tuple[int, str, str]] = [
    (0, "fp32", "full"),
    (1, "fp32", "full"),
    (1, "bf16", "full"),
    (2, "bf16", "full"),
    (3, "fp32", "full"),
    (1, "fp32", "lora"),
]


def measure(spec: TrainingSpec, steps: int, every: float, home: Path) -> tuple[list[CheckpointWritten], float, float]:
    """Train; return the checkpoints, the seconds of all steps, and those from the first step's begin to the end."""
    events: list[Event] = []
    ends: list[float] = []

    def report(event: Event) -> None:
        events.append(event)
        ends.append(time.perf_counter())

    home.mkdir()
    attempt = Attempt.begin(home.name, Folder(home), "benchmark", LeaseWatch())
    assert attempt is not None
    with attempt:
        train_trajectory(
            spec,
            make_samples(steps * BATCH, LENGTH, VOCABULARY),
            attempt.folder,
            report,
            CheckpointStore(attempt.storage, attempt.claim, every),
        )
    trained = [event.seconds for event in events if isinstance(event, StepDone)]
    last = max(index for index, event in enumerate(events) if isinstance(event, StepDone | CheckpointWritten))
    written = [event for event in events if isinstance(event, CheckpointWritten)]
    return written, sum(trained), ends[last] - ends[0] + trained[0]


def rows(steps: int, every: float, folder: Path) -> Iterator[str]:
    """Yield the table's lines."""
    parameters = write_llama(folder / "base", VOCABULARY, hidden=512, layers=8, heads=8, max_position_embeddings=LENGTH)
    yield f"{parameters:,} parameters, {steps} steps of {BATCH} x {LENGTH} tokens, a checkpoint every {every:g} s"
    yield "zero precision method |  saves    MB   save s   slowest | interval s  share | measured share  s/step"
    for zero, precision, method in LAYOUTS:
        setting = {"method": method, "lr": 1e-4, "batch": BATCH, "precision": precision}
        spec = make_spec(folder / "base", Layout.model_validate({"zero": zero}), **setting)
        written, trained, whole = measure(spec, steps, every, folder / f"{zero}-{precision}-{method}")
        cost = median(event.seconds for event in written)
        interval = max(SHORTEST_INTERVAL_S, TIMES_COST * cost)
        yield (
            f"{zero:4} {precision:9} {method:6} | {len(written):6} {written[-1].bytes / 1e6:5.0f} {cost:8.2f} "
            f"{max(event.seconds for event in written):9.2f} | {interval:10.0f} {cost / (interval + cost):6.2%} | "
            f"{1 - trained / whole:14.1%} {trained / steps:7.2f}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--every", type=float, default=5.0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as made:
        for row in rows(arguments.steps, arguments.every, Path(made)):
            print(row, flush=True)
