"""Memory of a run's processes, by kind: private megabytes, and what comes with each lane on the head node.

    python benchmarks/head.py [--lanes 2]

A sweep of as many LoRA trainings of the tiny Llama as there are lanes, one CPU each, on a Ray of this machine, with its
defaults. What a lane costs the run's own process, ``the run`` below, is told by runs with more and fewer lanes. Private: what would be free again, were the process gone (``smaps_rollup``); the most that each process had.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import tempfile
import threading
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import ray
from lanes import make_sweep

from massive_sft.planning.plan import make_plan
from massive_sft.scheduling.run_on_ray import run_on_ray
from massive_sft.sweep.load import load_sweep

# One each for a lane: a trial of Tune, and what Ray Train, but for ``scheduling/lane_trainer.py``, would start.
ON_THE_HEAD = ("Trial", "TrainController", "SynchronizationActor", "PlacementGroupCleaner", "DatasetManager")


def children_of(process: int) -> list[int]:
    """Return all processes below one."""
    parents: dict[int, list[int]] = defaultdict(list)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.read_text().rpartition(")")[2].split()[1])].append(int(stat.parent.name))
        except OSError:
            continue
    found = [process]
    for each in found:
        found += parents.get(each, [])
    return found[1:]


def private_mb(process: int) -> float:
    """Return a process's private memory."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean", "Private_Dirty"))) / 1000


def kind_of(process: int) -> str:
    """Return what a process of Ray is, by its title; for an actor its class."""
    title = Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    actor = re.match(r"ray::([A-Za-z]+)", title)
    return actor.group(1) if actor else Path(title.split(" ")[0]).name


class Sampler(threading.Thread):
    """Keeps the most that each process below this one had."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most: dict[tuple[str, int], float] = defaultdict(float)
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.5):
            for process in (os.getpid(), *children_of(os.getpid())):
                try:
                    kind = "the run" if process == os.getpid() else kind_of(process)
                    size = private_mb(process)
                except OSError:
                    continue
                self.most[kind, process] = max(size, self.most[kind, process])


def measure(lanes: int) -> Mapping[str, list[float]]:
    """Run a sweep on so many lanes; return the private memory of each process by its kind."""
    sampler = Sampler()
    with tempfile.TemporaryDirectory(prefix="massive-sft-bench-") as folder:
        plan = make_plan(load_sweep(make_sweep(Path(folder), lanes, evaluate=False)))
        # Half of the CPUs are the lanes'.
        ray.init("local", num_cpus=2 * lanes, include_dashboard=False, log_to_driver=False)
        sampler.start()
        run_on_ray(plan, lambda event: None, lambda text: None)
        sampler.over.set()
        sampler.join()
        ray.shutdown()
    found: dict[str, list[float]] = defaultdict(list)
    for (kind, _), size in sorted(sampler.most.items()):
        found[kind].append(size)
    return found


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lanes", type=int, default=2)
    arguments = parser.parse_args()
    found = measure(arguments.lanes)
    print(f"{arguments.lanes} lanes on {platform.machine()}, {os.cpu_count()} cores; private MB")
    print(f"{'':28}{'processes':>10}{'mean':>8}{'most':>8}")
    for kind, sizes in sorted(found.items(), key=lambda item: -max(item[1])):
        note = "  of a lane" if kind in ON_THE_HEAD else ""
        print(f"{kind:28}{len(sizes):10}{sum(sizes) / len(sizes):8.1f}{max(sizes):8.1f}{note}")
    total = sum(sum(found[kind]) / max(1, len(found[kind])) for kind in ON_THE_HEAD)
    print(f"a lane: {total:.0f} MB on the head")


if __name__ == "__main__":
    main()
