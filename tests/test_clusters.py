"""Clusters other than this machine's CPUs: two nodes, a GPU that Ray counts, workers that cannot start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import pytest
import ray
from commands import Fault, call, end, forked_workers, print_to, run_command, start, start_hiding
from counted_gpu import HOOK, on_gpus
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2
from ray_heads import end_session, node_environment, node_options, start_ray, wait_for
from s3_server import BUCKET, S3Server, s3
from small_sweep import one_training, small_sweep

from massive_sft.ledger.record import Status
from massive_sft.ledger.store import Ledger
from massive_sft.planning.plan import make_plan
from massive_sft.running.events import RunEvent, TrainingProgressed
from massive_sft.scheduling import allocation, lanes, run_on_ray
from massive_sft.scheduling.cluster import what_was_lost
from massive_sft.scheduling.demand import make_demand
from massive_sft.scheduling.live_nodes import usable_nodes
from massive_sft.scheduling.process_group import ProcessGroupConfig
from massive_sft.scheduling.scoring_actor import MachineUnfit
from massive_sft.sweep.load import load_sweep
from massive_sft.training.events import Resumed, StepDone

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]
__all__ = ["s3"]  # a fixture


def run_on_two_nodes(folder: Path) -> None:
    """Run the sweep in a folder on a head and a second node, each with a working folder of its own."""
    for name in ("head", "second", "driver"):
        (folder / name).mkdir()
    os.chdir(folder / "head")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    os.chdir(folder / "second")
    cluster.add_node(num_cpus=1)
    os.chdir(folder / "driver")
    ray.init(address=cluster.address, log_to_driver=False)

    @ray.remote(num_cpus=1, scheduling_strategy="SPREAD")
    def where() -> tuple[str, str]:
        time.sleep(2)
        return ray.get_runtime_context().get_node_id(), os.getcwd()

    seen = ray.get([where.remote(), where.remote()])
    run_on_ray.run_on_ray(make_plan(load_sweep(folder / "sweep.yaml")), lambda _: None, print)
    print("NODES", json.dumps(seen), flush=True)  # noqa: T201
    ray.shutdown()
    cluster.shutdown()


def statuses(folder: Path) -> dict[str, Status]:
    found = Ledger.open(folder / "ledger", create=False).records()
    return {f"{record.coordinates['setting']}-{record.coordinates['epoch']}": record.status for record in found}


def test_two_nodes_with_different_working_folders_finish_together(tmp_path: Path) -> None:
    """A lane of two workers, which one node has no room for, and one of a single worker."""
    small_sweep(tmp_path, resources=[{"when": {"setting": "full"}, "workers": 2, "zero": 2}], measures=[])
    code, printed = call(run_on_two_nodes, tmp_path, out=tmp_path / "printed")
    assert code == 0, printed[-2000:]
    told = next(line for line in printed.splitlines() if line.startswith("NODES "))
    nodes, folders = zip(*json.loads(told.removeprefix("NODES ")), strict=True)
    assert len(set(nodes)) == 2
    assert {Path(name).name for name in folders} == {"head", "second"}, "each worker starts in its own node's folder"
    assert set(statuses(tmp_path).values()) == {Status.COMPLETE}
    assert len(statuses(tmp_path)) == 5


def run_beside_a_node_without_the_ledger(folder: Path) -> None:
    """Run the sweep in a folder on two nodes; the second, which is filled first, sees an empty folder as the ledger."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "include_dashboard": False})
    ray.init(address=cluster.address, log_to_driver=False)
    with tempfile.TemporaryDirectory(prefix="msft-", dir="/tmp") as session:  # short, for the paths of sockets
        options = [*node_options(), f"--address={cluster.address}", f"--temp-dir={session}"]
        node = start_hiding((folder / "ledger",), start_ray, options, node_environment(folder), "/")
        wait_for(lambda: len(usable_nodes()) == 2, 120)
        run_on_ray.run_on_ray(make_plan(load_sweep(folder / "sweep.yaml")), lambda _: None, partial(print, flush=True))
        ray.shutdown()
        end_session(node.pid or 0)
    cluster.shutdown()


def test_node_that_does_not_see_the_ledger_costs_its_own_lanes_and_scorers(tmp_path: Path) -> None:
    """As where a mount is lost while a run goes on, or a node joins without it."""
    (tmp_path / "ledger").mkdir()
    small_sweep(tmp_path, measures=[])
    code, printed = call(run_beside_a_node_without_the_ledger, tmp_path, out=tmp_path / "printed")
    assert code == 0, printed[-2000:]
    lost = [line for line in printed.splitlines() if " lost: " in line]
    assert {line.split()[0] for line in lost} == {"lane", "scorers"}, printed
    assert all("is not the ledger that the run writes" in line for line in lost), printed
    assert set(statuses(tmp_path).values()) == {Status.COMPLETE}
    assert len(statuses(tmp_path)) == 5


def run_on_spot_nodes(folder: Path) -> None:
    """Run the sweep in a folder on three nodes; the one that trains is told that it is taken away, and then is."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = {node.node_id: node for node in (cluster.add_node(num_cpus=1) for _ in range(3))}
    ray.init(address=cluster.address, log_to_driver=False)
    gcs, told = ray._raylet.GcsClient(address=cluster.gcs_address), list[str]()
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")

    def listen(event: RunEvent) -> None:
        what = event.event if isinstance(event, TrainingProgressed) else event
        told.append(f"{type(what).__name__} {getattr(what, 'step', '')}")
        if isinstance(what, StepDone) and what.step == 3:
            trains = trainer_node()
            assert gcs.drain_node(trains, reason, "the market", (time.time_ns() + 60 * 10**9) // 10**6)[0]
        if isinstance(what, Resumed):
            cluster.remove_node(nodes[drained[0]])

    drained: list[str] = []

    def trainer_node() -> str:
        actors = ray._private.state.actors().values()
        (node,) = {
            actor["Address"]["NodeID"]
            for actor in actors
            if actor["ActorClassName"] == "RayTrainWorker" and actor["State"] == "ALIVE"
        }
        drained.append(node)
        return str(node)

    run_on_ray.run_on_ray(make_plan(load_sweep(folder / "sweep.yaml")), listen, told.append)
    print("TOLD", json.dumps(told), flush=True)  # noqa: T201
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.long
def test_training_on_a_node_that_is_taken_away_goes_on_elsewhere_after_the_step_in_hand(tmp_path: Path) -> None:
    one_training(tmp_path, batch=1)
    code, printed = call(run_on_spot_nodes, tmp_path, out=tmp_path / "printed")
    assert code == 0, printed[-3000:]
    told = json.loads(next(line for line in printed.splitlines() if line.startswith("TOLD ")).removeprefix("TOLD "))
    (written,) = [line for line in told if line.startswith("CheckpointWritten")]
    (resumed,) = [line for line in told if line.startswith("Resumed")]
    assert written.split()[1] == resumed.split()[1], "nothing was lost"
    assert statuses(tmp_path) == {"full-10": Status.COMPLETE}


def run_impatiently(arguments: tuple[str, ...], out: Path, fault: Fault | None = None) -> None:
    """Run the command line in this process, where what waits for its place makes what is idle end after seconds."""
    allocation.PLACE_S = 5.0
    run_command(arguments, out, fault)


def run_twice(folder: Path) -> None:
    """Run the sweeps in two folders on one cluster of two CPUs at once, each by a process of its own."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    os.environ["RAY_ADDRESS"] = cluster.address
    runs = [
        start("run", folder / name / "sweep.yaml", out=folder / f"{name}.out", run=run_impatiently)
        for name in ("one", "other")
    ]
    codes = [end(run, 280) for run in runs]
    cluster.shutdown()
    os._exit(max(codes))


@pytest.mark.long
def test_two_runs_on_one_cluster_both_come_to_their_end(tmp_path: Path) -> None:
    """Each wants all CPUs: half to train and half to score."""
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        small_sweep(tmp_path / name, measures=[])
    code, printed = call(run_twice, tmp_path, out=tmp_path / "printed")
    told = [(tmp_path / f"{name}.out").read_text() for name in ("one", "other")]
    assert code == 0, (printed[-2000:], *(text[-2000:] for text in told))
    for name in ("one", "other"):
        assert set(statuses(tmp_path / name).values()) == {Status.COMPLETE}
        assert len(statuses(tmp_path / name)) == 5


def test_sweep_on_one_gpu_trains_then_scores_and_finishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lanes and scorers each hold the only GPU of the cluster: a GPU that Ray counts and torch does not have."""
    monkeypatch.setattr(run_on_ray, "make_demand", on_gpus(make_demand))
    monkeypatch.setattr(lanes, "ProcessGroupConfig", partial(ProcessGroupConfig, backend="gloo"))
    with forked_workers():
        ray.init(
            "local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False, configure_logging=False,
            runtime_env=dict(HOOK),
        )  # fmt: skip
        try:
            plan = make_plan(load_sweep(small_sweep(tmp_path, measures=[])))
            run_on_ray.run_on_ray(plan, lambda _: None, lambda _: None)
        finally:
            ray.shutdown()
    assert set(statuses(tmp_path).values()) == {Status.COMPLETE}
    assert len(statuses(tmp_path)) == 5


def run_with_disks(folder: Path, small: tuple[str, ...], environment: dict[str, str]) -> None:
    """Run the sweep in a folder on two nodes, each with a disk of its own; those named have next to no room."""
    print_to(folder / "printed")
    for name in small:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder / name)], check=True)
    os.environ |= environment | {"MASSIVE_SFT_CACHE": str(folder / "driver")}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = {
        name: cluster.add_node(num_cpus=1, env_vars={"MASSIVE_SFT_CACHE": str(folder / name)}).node_id
        for name in ("one", "other")
    }
    ray.init(address=cluster.address, log_to_driver=False)
    print("NODES", json.dumps(nodes), flush=True)  # noqa: T201
    plan = make_plan(load_sweep(folder / "sweep.yaml"), Ledger.states)
    try:
        run_on_ray.run_on_ray(plan, lambda _: None, partial(print, flush=True))
    except MachineUnfit as error:
        print("ENDS", error, flush=True)  # noqa: T201
    for record in plan.open_ledger(create=False).records():
        print("RECORD", record.status, record.error, record.missing, flush=True)  # noqa: T201
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.long
@pytest.mark.parametrize("small", [("one",), ("one", "other")])
@pytest.mark.parametrize("storage", ["root", "snapshots"])
def test_full_disk_of_a_node_costs_its_own_lanes_and_scorers(
    s3: S3Server, tmp_path: Path, storage: str, small: tuple[str, ...]
) -> None:
    """Where it is every node, trainings fail with the reason, or scoring ends the run with it."""
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    place = f"s3://{BUCKET}/a/study"
    root = place if storage == "root" else str(tmp_path / "ledger")
    path = small_sweep(tmp_path, storage={"root": root} | ({"snapshots": place} if storage == "snapshots" else {}))
    hidden = tuple(tmp_path / name for name in small)
    environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    code = end(start_hiding(hidden, run_with_disks, tmp_path, small, environment), 400)
    printed = (tmp_path / "printed").read_text()
    assert code == 0, printed[-3000:]
    lines = [line for line in printed.splitlines() if " lost: " in line or line.startswith(("ENDS", "RECORD FAILED"))]
    assert lines and all("No space left" in line or "no room" in line for line in lines), printed
    if len(small) == 1:
        assert {cell.status for cell in make_plan(load_sweep(path), Ledger.states).cells} == {Status.COMPLETE}, printed
    else:
        assert any(line.startswith(("ENDS", "RECORD FAILED")) for line in lines), printed


POISONED = """
import sys
import ray
from pathlib import Path
from typing import Any
from massive_sft.core.errors import MassiveSFTError
from massive_sft.planning.plan import make_plan
from massive_sft.scheduling import run_on_ray
from massive_sft.sweep.load import load_sweep

ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": sys.argv[2]}})
try:
    run_on_ray.run_on_ray(make_plan(load_sweep(Path(sys.argv[1]))), lambda _: None, print)
except MassiveSFTError as error:
    sys.exit(str(error))
finally:
    ray.shutdown()
"""
# In place of a library that all who compute import: it ends the processes whose title begins so, and is itself else.
POISON = """
import os, sys

if open("/proc/self/cmdline").read().startswith("ray::{victim}"):
    os._exit(7)
sys.path.remove(os.path.dirname(os.path.dirname(__file__)))
del sys.modules["peft"]
import peft
"""


def poisoned_run(folder: Path, victim: str) -> subprocess.CompletedProcess[str]:
    library = folder / "poison" / "peft"
    library.mkdir(parents=True)
    (library / "__init__.py").write_text(POISON.format(victim=victim))
    path = small_sweep(folder, evaluation={"base": False, "tasks": []}, measures=[])
    command = [sys.executable, "-c", POISONED, str(path), str(library.parent)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200)


@pytest.mark.long
def test_workers_that_die_while_they_import_fail_their_cells_with_the_reason(tmp_path: Path) -> None:
    done = poisoned_run(tmp_path, "RayTrainWorker")
    assert done.returncode == 0, done.stderr[-2000:]
    records = list(Ledger.open(tmp_path / "ledger", create=False).records())
    assert {record.status for record in records} == {Status.FAILED}
    assert len(records) == 4
    assert all("died 2 times before they could take an order" in str(record.error) for record in records)


@pytest.mark.long
def test_scorers_that_die_while_they_import_end_the_run_with_the_reason(tmp_path: Path) -> None:
    done = poisoned_run(tmp_path, "MapWorker")
    assert "the scorers cannot be started: their processes died 2 times" in done.stderr, done.stderr[-2000:]
    assert done.returncode == 1


THREADS = """
import pickle
import sys
import time
from pathlib import Path

import ray

from massive_sft.scheduling.lane_pool import LanePool
from massive_sft.scheduling.lanes import Lanes
from massive_sft.scheduling.nodes import Shape


class Order:
    def __init__(self, place):
        self.place = place

    def __reduce__(self):  # what a lane does with any order first
        return exec, (f"import torch; open({self.place!r}, 'x').write(str(torch.get_num_threads()))",)


folder, shapes = Path(sys.argv[1]), [Shape(1, cpus, 0.0) for cpus in (1.0, 2.0)]
ray.init("local", num_cpus=3, include_dashboard=False, log_to_driver=False)
pool = LanePool.remote(dict.fromkeys(shapes, 1))
lanes = Lanes(pool, print)
for shape in shapes:
    ray.get(pool.submit.remote(shape, str(shape), pickle.dumps(Order(str(folder / str(shape.cpus))))))
    lanes.start(shape, (ray.get_runtime_context().get_node_id(),))
while len([path for path in folder.iterdir() if path.read_text()]) < 2:
    time.sleep(0.1)
lanes.give_up()
ray.shutdown()
"""


@pytest.mark.long
def test_worker_of_a_lane_computes_with_as_many_threads_as_it_has_cpus(tmp_path: Path) -> None:
    """In a Ray whose workers are no forks, and that was told of no number: torch takes it when it is imported."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    subprocess.run([sys.executable, "-c", THREADS, str(tmp_path)], env=environment, check=True, timeout=200)
    threads = {path.name: int(path.read_text()) for path in tmp_path.iterdir()}
    assert threads == {"1.0": 1, "2.0": min(2, os.cpu_count() or 1)}


def test_memory_that_ran_out_is_told_in_a_clause_and_another_loss_as_ray_tells_it() -> None:
    memory = "8 worker(s) were killed due to the node running low on memory.\nMemory on the node (IP: 192.0.2.2, ID: b3) was "
    told = what_was_lost(f"{memory}22.81GB used / 23.54GB limit (0.969071) OOM kill reason: Memory usage 24055672832B")
    assert told.startswith("a machine ran out of memory (22.81GB of 23.54GB in use") and "OOM kill" not in told
    assert what_was_lost("the GCS\n is gone") == "the cluster was lost (the GCS is gone)"
