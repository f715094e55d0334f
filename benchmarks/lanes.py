"""Lanes beside one Ray Train group a trajectory, in one run: the same trajectories, steps, snapshots and records.

    python benchmarks/lanes.py [--trajectories N] [--evaluate]

Both sides are driven by Tune with reused driver actors and Train polling every 0.1 s, on two CPUs: the product as it
runs a sweep, against a Tune function that builds a ``TorchTrainer`` for each trial. The trajectories differ in their
seed only. ``--evaluate`` adds two benchmarks for each snapshot: the product scores them in its stream, the other side
in the trial after training. Each side starts with an empty ledger and a fresh Ray.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")

import ray
from ray import tune
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ruamel.yaml import YAML

from massive_sft import tiny
from massive_sft.ledger.store import Ledger
from massive_sft.planning.plan import CellPlan, Plan, RunPlan, make_plan
from massive_sft.running.cell import CellEvaluator, evaluate_cell
from massive_sft.running.inline import submit_inline
from massive_sft.running.recorder import RecordWriter
from massive_sft.running.trial import Order, make_record_writer, train_run
from massive_sft.scheduling.run_on_ray import run_on_ray
from massive_sft.sweep.load import load_sweep


def make_sweep(folder: Path, trajectories: int, evaluate: bool) -> Path:
    """Write a sweep of one small model and dataset with so many seeds; return its file."""
    world = tiny.build(folder / "world")
    tasks = [{"path": str(world.tasks[name]), "limit": 60} for name in ("facts_mc", "facts_bpb")] if evaluate else []
    file = {
        "schema": 1,
        "name": "lanes",
        "models": {"llama": {"path": str(world.models["tiny-llama"])}},
        "datasets": {"facts": {"path": str(world.datasets["facts"]), "format": "alpaca"}},
        "mixtures": {"one": {"each": "facts", "samples": 64}},
        "settings": {"lora": {"method": "lora", "lr": 5e-3, "batch": 32, "max_length": 128, "precision": "fp32"}},
        "blocks": [
            {"name": "A", "model": "all", "mixture": "one", "setting": "lora", "schedule": "constant", "horizon": 1}
            | {"snapshots": [1], "override": {"seed": list(range(trajectories))}}
        ],
        "evaluation": {"base": False, "protocol": {"dtype": "fp32"}, "tasks": tasks},
        "storage": {"root": str(folder / "ledger")},
    }
    path = folder / "sweep.yaml"
    with path.open("w") as text:
        YAML(typ="safe").dump(file, text)
    return path


def cold_worker(config: dict[str, Any]) -> None:
    """Train one order: the worker of a group that lives for one trajectory."""
    submit_inline(config["order"], lambda event: None)


def cold_trial(config: dict[str, Any], runs: dict[str, RunPlan], recorder: RecordWriter) -> None:
    """One Tune trial: a Train group for its trajectory, then its scores and record in the trial."""
    run = runs[config["trajectory"]]

    def submit(order: Order, report: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            TorchTrainer(
                cold_worker,
                train_loop_config={"order": order},
                scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
                run_config=RunConfig(storage_path=folder),
            ).fit()

    trained: list[CellPlan] = []
    train_run(run, recorder, submit, lambda event: None, trained.extend, retrain=False)
    for cell in trained:
        evaluate_cell(cell, run, CellEvaluator(recorder), lambda event: None)
    tune.report({"done": 1})


def run_cold(plan: Plan) -> None:
    """Run a plan with one Train group a trajectory."""
    driver = tune.with_parameters(
        cold_trial, runs={run.trajectory.id: run for run in plan.todo}, recorder=make_record_writer(plan)
    )
    with tempfile.TemporaryDirectory() as folder:
        tune.Tuner(
            tune.with_resources(driver, {"memory": float(1 << 20)}),
            param_space={"trajectory": tune.grid_search([run.trajectory.id for run in plan.todo])},
            tune_config=tune.TuneConfig(reuse_actors=True, max_concurrent_trials=2),
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        ).fit()


def measure(name: str, trajectories: int, evaluate: bool) -> tuple[float, float]:
    """Return (seconds in all, seconds a trajectory once warm: from the first end of a training to the last)."""
    with tempfile.TemporaryDirectory(prefix="massive-sft-bench-") as folder:
        plan = make_plan(load_sweep(make_sweep(Path(folder), trajectories, evaluate)))

        began = time.perf_counter()
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        if name == "lanes":
            run_on_ray(plan, lambda event: None, lambda text: None)
        else:
            run_cold(plan)
        ray.shutdown()
        total = time.perf_counter() - began
        written = [path.stat().st_mtime for path in Path(folder).rglob("training.json")]
        complete = sum(1 for _ in Ledger.open(plan.root, create=False).records())
        if complete != trajectories:
            sys.exit(f"{name}: {complete} of {trajectories} trajectories have a record")
        return total, (max(written) - min(written)) / (trajectories - 1)


def main() -> None:
    """Measure both sides and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trajectories", type=int, default=24)
    parser.add_argument("--evaluate", action="store_true")
    arguments = parser.parse_args()
    found = {name: measure(name, arguments.trajectories, arguments.evaluate) for name in ("lanes", "groups")}
    print(
        f"{arguments.trajectories} trajectories on {platform.machine()}, {os.cpu_count()} cores, Ray {ray.__version__}"
    )
    print(f"{'':28}{'lanes':>10}{'groups':>10}{'ratio':>8}")
    for row, label in enumerate(("seconds in all", "seconds a trajectory, warm")):
        lanes, groups = found["lanes"][row], found["groups"][row]
        print(f"{label:28}{lanes:10.2f}{groups:10.2f}{groups / lanes:8.1f}")


if __name__ == "__main__":
    main()
