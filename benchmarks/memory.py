"""Memory of a lane: one process that trains many trajectories, at each ZeRO stage, full tuning and LoRA.

    python benchmarks/memory.py [--trajectories N]

Each trains a Llama of 5M parameters (20 MB of weights; 80 MB with gradients and AdamW's moments) for two steps and
writes its snapshot, as a lane's worker does between two orders. One trajectory that leaves its engine behind would
show as 80 MB. Printed is the resident memory after the 10th trajectory, at the end, and the growth in between.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
FIRST = 10


def resident() -> float:
    """Return this process's resident memory in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def serve(zero: int, method: str, trajectories: int) -> list[float]:
    """Train so many trajectories one after another; return the resident memory after each, in MB."""
    from made_training import make_samples, make_spec
    from small_llama import write_llama

    from massive_sft.sweep.spec import Layout
    from massive_sft.training.loop import train_trajectory

    vocabulary, layout = 2000, Layout.model_validate({"zero": zero})
    samples = make_samples(16, 64, vocabulary)
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_llama(folder / "base", vocabulary, hidden=256, layers=6, heads=4)
        for seed in range(trajectories):
            setting = {"method": method, "lr": 1e-4, "batch": 8, "precision": "fp32", "seed": seed}
            spec = make_spec(folder / "base", layout, **setting)
            train_trajectory(spec, samples, folder / "run", lambda event: None)
            shutil.rmtree(folder / "run")
            found.append(resident())
    return found


def main() -> None:
    """Measure each stage in a process of its own and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trajectories", type=int, default=50)
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.trajectories <= FIRST:
        parser.error(f"--trajectories: must be more than {FIRST}, got {arguments.trajectories}")
    if arguments.serve:
        zero, method = arguments.serve
        print("MEMORY", json.dumps(serve(int(zero), method, arguments.trajectories)))
        return
    print(f"{arguments.trajectories} trajectories in one process on {platform.machine()}, {os.cpu_count()} cores; MB")
    print(f"{'':16}{f'after {FIRST}':>10}{'at the end':>12}{'growth':>10}{'a trajectory':>14}")
    for method in ("full", "lora"):
        for zero in range(4):
            command = [
                sys.executable,
                __file__,
                "--trajectories",
                str(arguments.trajectories),
                "--serve",
                str(zero),
                method,
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(done.stderr)
            found = json.loads(done.stdout.partition("MEMORY ")[2])
            growth = found[-1] - found[FIRST - 1]
            each = growth / (len(found) - FIRST)
            print(f"ZeRO-{zero} {method:9}{found[FIRST - 1]:10.1f}{found[-1]:12.1f}{growth:10.1f}{each:14.2f}")


if __name__ == "__main__":
    main()
