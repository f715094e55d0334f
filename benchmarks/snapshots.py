"""How long a training stands still for its snapshots: ten epochs of a Llama of 30M parameters, each published.

    python benchmarks/snapshots.py [--method full|lora] [--samples 64]

Each epoch's snapshot is copied between two steps, then written, hashed and published by hard links, as that of a sweep,
while the next steps are taken. Printed are the seconds of the steps, those between them, in which the training stands
still, and their share of all. Where processors are few, steps also take longer while a snapshot is written: so those that
are taken beside one and those that are not are told apart.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")

from made_training import make_samples, make_spec
from small_llama import write_llama

from massive_sft.sweep.spec import Layout
from massive_sft.training.checkpoints.disk import link_folder
from massive_sft.training.events import Event, SnapshotWritten, StepDone
from massive_sft.training.loop import train_trajectory
from massive_sft.training.summary import TrainingSummary

VOCABULARY, LENGTH, EPOCHS, BATCH = 8000, 64, 10, 8


def main() -> None:
    """Train and print what the steps and the snapshots took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", choices=["full", "lora"], default="full")
    parser.add_argument("--samples", type=int, default=64)
    arguments = parser.parse_args()
    steps: list[float] = []
    is_beside: list[bool] = []  # a snapshot, by step
    written_mb: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = write_llama(folder / "base", VOCABULARY, hidden=512, layers=8, heads=8)

        def report(event: Event) -> None:
            if isinstance(event, StepDone):
                steps.append(event.seconds)
                is_beside.append(len(written_mb) < (event.step - 1) // (len(samples) // BATCH))
            elif isinstance(event, SnapshotWritten):
                written_mb.append(sum(path.stat().st_size for path in event.folder.iterdir()) / 1e6)

        def publish(epoch: int, summary: TrainingSummary) -> bool:
            link_folder(summary.snapshots[epoch], folder / "published" / f"epoch-{epoch}")
            return True

        (folder / "published").mkdir()
        samples, began = make_samples(arguments.samples, LENGTH, VOCABULARY), time.perf_counter()
        setting = {"method": arguments.method, "batch": BATCH, "precision": "fp32"}
        spec = make_spec(folder / "base", Layout(), tuple(range(1, EPOCHS + 1)), **setting)
        summary = train_trajectory(spec, samples, folder / "run", report, publish=publish)
    stall = summary.seconds - sum(steps)
    print(
        f"{size / 1e6:.0f}M parameters, {arguments.method}, {len(steps)} steps, {EPOCHS} snapshots of {written_mb[0]:.0f} MB,"
    )
    print(f"on {platform.machine()}, one thread, load {os.getloadavg()[0]:.1f}: steps {sum(steps):.1f} s, ", end="")
    print(
        f"snapshots {stall:.1f} s, {stall / summary.seconds:.1%} of all; with loading {time.perf_counter() - began:.1f} s"
    )
    for beside, when in ((True, "while a snapshot is written"), (False, "else")):
        taken = [seconds for seconds, also in zip(steps, is_beside, strict=True) if also is beside]
        print(f"a step {when}: {median(taken):.2f} s (median of {len(taken)})" if taken else f"no step {when}")


if __name__ == "__main__":
    main()
