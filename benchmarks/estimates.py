"""How far estimates are from what then happens: one trajectory of each shape is run and measured, the rest predicted.

    python benchmarks/estimates.py [--folder FOLDER] [--samples N] [--limit N] [--cpu]

Runs the offline sweep (two small models, full tuning and LoRA, three datasets) in one process, in two parts, and
compares the plan's estimate after the first part with the second part as its records and the clock have it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ruamel.yaml import YAML

from massive_sft import tiny
from massive_sft.ledger.store import Ledger
from massive_sft.planning.plan import make_plan
from massive_sft.sweep.load import load_sweep

MEASURED = "data=facts"


def make_sweep(folder: Path, samples: int, limit: int) -> Path:
    """Write the offline world, and its sweep with so many samples a run and questions a benchmark."""
    path = tiny.build(folder).sweep
    yaml = YAML(typ="safe")
    file = yaml.load(path)
    file["mixtures"]["single"]["samples"] = samples
    for task in file["evaluation"]["tasks"]:
        task["limit"] = limit
    with path.open("w") as text:
        yaml.dump(file, text)
    return path


BY_CLOCK = "from massive_sft.cli.app import main; main()"
BY_CPU = f"import time; time.perf_counter = time.process_time; {BY_CLOCK}"


def command(code: str, *words: str) -> tuple[float, str]:
    """Run massive-sft; return the seconds it took, by the same measure as its own, and what it printed."""
    clock, cpu = time.perf_counter(), sum(os.times()[2:4])
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"massive-sft {' '.join(words)}: {done.stderr}{done.stdout}")
    return time.perf_counter() - clock if code == BY_CLOCK else sum(os.times()[2:4]) - cpu, done.stdout


def spent(sweep: Path, before: set[str]) -> dict[str, float]:
    """Return what records newer than ``before`` say: seconds of training and of evaluation, and the largest peak."""
    plan = make_plan(load_sweep(sweep))
    ledger = Ledger.open(plan.root, create=False)
    found = {"training": 0.0, "evaluation": 0.0}
    trainings: dict[str, float] = {}
    for record in ledger.records():
        if record.cell not in before:
            found["evaluation"] += sum(record.cost["seconds"].values())
            if record.trajectory:
                trainings[record.trajectory] = record.training["wall_seconds"]
    return found | {"training": sum(trainings.values())}


def peaks(sweep: Path) -> dict[str, list[tuple[str, int]]]:
    """Return the peaks of all trainings, by model and setting."""
    plan = make_plan(load_sweep(sweep))
    ledger = Ledger.open(plan.root, create=False)
    found: dict[str, list[tuple[str, int]]] = {}
    for run in plan.runs:
        record = ledger.read_record(run.cells[0].cell.id)
        recipe = run.trajectory.recipe
        kind = found.setdefault(f"{recipe.model_name} {recipe.setting_name}", [])
        kind.append((recipe.mixture.name, record.training["peak_bytes"]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--folder", type=Path, help="keep the world and the ledger there")
    parser.add_argument("--cpu", action="store_true", help="count CPU seconds: for a machine that is busy otherwise")
    parser.add_argument("--samples", type=int, default=1400)
    parser.add_argument("--limit", type=int, default=200)
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="estimates."))
    sweep = str(make_sweep(folder, arguments.samples, arguments.limit))
    code = BY_CPU if arguments.cpu else BY_CLOCK
    first, _ = command(code, "run", sweep, "--inline", "--where", MEASURED)
    before = {record.cell for record in Ledger.open(make_plan(load_sweep(Path(sweep))).root, create=False).records()}
    command(code, "check", sweep)  # which counts the tokens of all mixtures
    cost = json.loads(command(code, "plan", sweep, "--json")[1])["cost"]
    second, _ = command(code, "run", sweep, "--inline")
    real = spent(Path(sweep), before)
    for name in ("training", "evaluation"):
        said, took = cost[name]["value"], real[name]
        print(f"{name}: predicted {said:.1f} s, took {took:.1f} s ({said / took - 1:+.0%})")
    said, took = cost["training"]["value"] + cost["evaluation"]["value"], sum(real.values())
    print(f"together: predicted {said:.1f} s, took {took:.1f} s ({said / took - 1:+.0%})")
    print(f"the whole command took {second:.1f} s ({said / second - 1:+.0%}); the measured part {first:.1f} s")
    needed = {fit["what"]: fit["needed"] for fit in cost["memory"]}
    for kind, seen in peaks(Path(sweep)).items():
        told = ", ".join(f"{name} {peak / 1e6:.0f} ({needed[kind] / peak - 1:+.0%})" for name, peak in seen)
        print(f"peak of {kind}: predicted {needed[kind] / 1e6:.0f} MB; {told}")
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; everything is in {folder}")


if __name__ == "__main__":
    main()
