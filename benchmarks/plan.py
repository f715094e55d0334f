"""What planning many cells takes with their ledger: seconds, and file calls as strace counts them.

    python benchmarks/plan.py [CELLS]

Writes a sweep of ten cells a training, and a complete record for each cell, into a temporary folder (minutes for
20,000). Then runs ``massive-sft plan`` and ``massive-sft run``, which finds nothing to do, each in a process of its own.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from massive_sft import tiny
from massive_sft.ledger.record import Record, Status
from massive_sft.ledger.store import Ledger
from massive_sft.planning.plan import make_plan
from massive_sft.sweep.load import load_sweep

WHEN = "2026-01-31T12:00:00+00:00"


def write_sweep(folder: Path, cells: int) -> Path:
    """Write a sweep of so many trained cells, for which nothing is scored or measured."""
    world = tiny.build(folder / "world")
    block = {"name": "A", "model": "all", "mixture": "one", "setting": "lora", "schedule": "constant"}
    file = {
        "schema": 1,
        "name": "many",
        "models": {"llama": {"path": str(world.models["tiny-llama"])}},
        "datasets": {"facts": {"path": str(world.datasets["facts"]), "format": "alpaca"}},
        "mixtures": {"one": {"each": "facts", "samples": 96}},
        "settings": {"lora": {"method": "lora", "lr": 5e-3, "batch": 32, "max_length": 128, "lora": {"rank": 4}}},
        "blocks": [block | {"horizon": 10, "snapshots": "1..10", "override": {"seed": list(range(cells // 10))}}],
        "evaluation": {"tasks": []},
        "measures": [],
        "storage": {"root": str(folder / "ledger")},
    }
    path = folder / "many.yaml"
    path.write_text(json.dumps(file))
    return path


def write_records(path: Path) -> int:
    """Write a complete record for each cell of a sweep; return how many."""
    plan = make_plan(load_sweep(path))
    ledger = Ledger.open(plan.root)
    for item in plan.cells:
        trajectory = item.cell.recipe.id if item.cell.recipe else None
        names = item.cell.coordinates._asdict()
        own = {"cell": item.cell.id, "trajectory": trajectory, "coordinates": names, "status": Status.COMPLETE}
        ledger.write_record(Record(**own, attempt=1, provenance={}, created=WHEN, finished=WHEN))
    return len(plan.cells)


def timed(*arguments: object) -> tuple[float, float]:
    """Run the command line; return seconds by the clock and of the processor."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "massive_sft", *map(str, arguments)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - began, used


def count_calls(root: Path, *arguments: object) -> int:
    """Run the command line under strace; return its file calls below the storage root."""
    with tempfile.NamedTemporaryFile() as out:
        command = ["strace", "-f", "-qq", "-s", "512", "-e", "trace=%file", "-o", out.name]
        command += [sys.executable, "-m", "massive_sft", *map(str, arguments)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        with open(out.name) as lines:
            return sum(str(root) in line for line in lines)


def main(cells: int) -> None:
    with tempfile.TemporaryDirectory(prefix="plan-") as folder:
        path = write_sweep(Path(folder), cells)
        written = write_records(path)
        for verb in (("plan", path), ("run", path, "--inline")):
            wall, used = timed(*verb)
            print(f"{verb[0]} of {written:,} complete cells: {wall:.1f} s, {used:.1f} s of the processor", flush=True)
            calls = count_calls(Path(folder) / "ledger", *verb)
            print(f"{verb[0]}: {calls:,} file calls below the storage root, {calls / written:.2f} a cell", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)
