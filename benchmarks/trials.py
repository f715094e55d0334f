"""What a trial costs beside its training: Ray Tune, the product's trials, queues and scorers, and lanes that train nothing.

    python benchmarks/trials.py [--trajectories 1000] [--trials 1000]

A run of the product on two CPUs of a local Ray. Its lanes say at once that each order is done, so that nothing is
trained or published, and the scorers, which come after, fail each cell with that reason. ``--trials`` of the
trajectories are done, then the run is stopped. What a trial takes is told by the difference between the moments at which
a tenth of them and all have ended: seconds, and seconds of the processor by the kind of process. ``the run`` is the
process that plans and decides, and its memory what it holds of all trajectories.
"""

from __future__ import annotations

import argparse
import os
import pickle
import platform
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import ray
from head import children_of, kind_of
from lanes import make_sweep

from massive_sft.core.stop import StopSignal
from massive_sft.planning.plan import make_plan
from massive_sft.running.events import RunEvent, TrainingEnded
from massive_sft.scheduling import lanes
from massive_sft.scheduling.orders import Message
from massive_sft.scheduling.run_on_ray import run_on_ray
from massive_sft.sweep.load import load_sweep


def empty_loop(config: dict[str, Any]) -> None:
    """Say of each order that it is done: in place of a lane's loop."""
    pool, lane, shape = config["pool"], config["lane"], config["shape"]
    ray.get(pool.ready.remote(lane, 0))
    while ray.get(pool.next.remote(lane, shape)) is not None:
        ray.get(pool.tell.remote(lane, Message("done", pickle.dumps([("", False)]))))


def processor_s() -> Counter[str]:
    """Return the seconds of the processor that this process and all below it took so far, by their kinds."""
    used = Counter[str]()
    for process in (os.getpid(), *children_of(os.getpid())):
        try:
            ticks = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
            kind = "the run" if process == os.getpid() else kind_of(process)
        except OSError:
            continue
        used[kind] += sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
    return used


def resident_mb() -> float:
    """Return the most memory that this process had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1000


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trajectories", type=int, default=1000)
    parser.add_argument("--trials", type=int, default=1000)
    arguments = parser.parse_args()
    trajectories, last = arguments.trajectories, min(arguments.trials, arguments.trajectories)
    first, stop = last // 10, StopSignal()
    lanes.lane_loop = empty_loop
    seen: dict[int, tuple[float, Counter[str], float]] = {}  # by trials: moment, seconds of processors, memory
    ended = 0

    def listen(event: RunEvent) -> None:
        nonlocal ended
        if isinstance(event, TrainingEnded):
            ended += 1
            if ended in (first, last):
                seen[ended] = time.perf_counter(), processor_s(), resident_mb()
            if ended == last:
                stop.request("it was measured")

    with tempfile.TemporaryDirectory(prefix="massive-sft-bench-") as folder:
        plan = make_plan(load_sweep(make_sweep(Path(folder), trajectories, evaluate=False)))
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        run_on_ray(plan, listen, lambda text: None, stop=stop)
        ray.shutdown()
    (began_s, before, before_mb), (ended_s, after, after_mb) = seen[first], seen[last]
    trials = last - first
    print(f"{trajectories:,} trajectories on {platform.machine()}, {os.cpu_count()} cores, Ray {ray.__version__}")
    print(f"a trial: {1000 * (ended_s - began_s) / trials:.1f} ms")
    for kind, used_s in (after - before).most_common(10):
        print(f"  {kind:24}{1000 * used_s / trials:8.1f} ms of the processor")
    print(f"the run: {before_mb:.0f} MB after {first:,} trials, {after_mb:.0f} MB after {last:,}")


if __name__ == "__main__":
    main()
