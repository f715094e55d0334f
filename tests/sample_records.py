"""Records written by hand for a real plan, so that study and report are tested without training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pandas as pd
from ruamel.yaml import YAML

from massive_sft.core.files import write_bytes
from massive_sft.core.fingerprint import hash_file
from massive_sft.ledger.loss_curve import StepDone, to_line
from massive_sft.ledger.record import BenchmarkScores, Record, Score, Status
from massive_sft.ledger.store import Ledger
from massive_sft.planning.plan import CellPlan, Plan, make_plan
from massive_sft.planning.requirements import Requirement
from massive_sft.report.source import META, PAGE, report_folder, source_of
from massive_sft.sweep.load import load_sweep

COMMIT = "a" * 40
WHEN = "2026-01-31T12:00:00+00:00"
LOSSES = "training/attempt-1/losses.jsonl"
LAYOUT = {"workers": 1, "gpus": 0, "zero": 1, "micro_batch": "auto"}


def score(value: float | None, n: int = 100, higher: bool | None = True, half: float = 0.1) -> Score:
    """A score with a symmetric interval of ``half`` to each side."""
    if value is None:
        return Score(value=None, stderr=None, interval=None, method=None, n=n, higher_is_better=higher)
    return Score(
        value=value,
        stderr=half / 1.96,
        interval=(value - half, value + half),
        method="normal",
        n=n,
        higher_is_better=higher,
    )


def benchmark(
    name: str, scores: Mapping[str, Score], shots: int = 0, asked: str = "", groups: Any = None
) -> BenchmarkScores:
    """One benchmark of one task with the same name."""
    label = f"{name}-{shots}shot"
    asked = asked or f"{name}@{shots} 0123456789abcdef"
    return BenchmarkScores(benchmark=label, asked=asked, shots=shots, tasks={name: dict(scores)}, groups=groups or {})


def record(cell: str, scores: Mapping[str, BenchmarkScores], **changes: Any) -> Record:
    """A complete cell of model ``m``, full tuning on ``d``, unless ``changes`` says otherwise (coordinates included)."""
    coordinates: dict[str, Any] = {"model": "m", "data": "d", "setting": "full", "method": "full", "size": 100}
    coordinates |= {"schedule": "constant", "horizon": None, "epoch": 1, "seed": 0, "variant": ""}
    coordinates |= {key: changes.pop(key) for key in list(changes) if key in coordinates}
    if coordinates["method"] == "none":
        coordinates |= {"data": "none", "setting": "none", "size": 0, "schedule": "none", "epoch": 0, "seed": None}
    content: dict[str, Any] = {"cell": cell.ljust(16, "0"), "coordinates": coordinates, "status": Status.COMPLETE}
    content |= {"trajectory": None if coordinates["method"] == "none" else cell.ljust(16, "f")}
    content |= {"attempt": 1, "scores": dict(scores), "provenance": {}, "created": WHEN, "finished": WHEN}
    return Record(**(content | changes))


def sweep_file(folder: Path, **changes: Any) -> Path:
    """Write a sweep of two pinned models, two datasets, full tuning and LoRA, snapshots 1 and 2: 16 cells, 2 base rows."""
    hub = {"hub": "someone/thing", "revision": COMMIT}
    content = {
        "schema": 1,
        "name": "made",
        "models": {"small": hub, "large": {"hub": "someone/larger", "revision": COMMIT}},
        "datasets": {
            "first": {**hub, "format": "alpaca"},
            "second": {"hub": "someone/else", "revision": COMMIT, "format": "alpaca"},
        },
        "mixtures": {"one": {"each": ["first", "second"], "samples": 1000}},
        "settings": {
            "full": {"method": "full", "lr": 1e-5, "batch": 32},
            "lora": {"method": "lora", "lr": 1e-4, "batch": 32},
        },
        "blocks": [
            {"name": "A", "model": "all", "mixture": "one", "setting": ["full", "lora"]}
            | {"schedule": "constant", "horizon": 2, "snapshots": [1, 2]}
        ],
        "evaluation": {"tasks": [{"name": "quiz", "shots": 0}, {"name": "prose", "shots": 0}]},
        "measures": ["perplexity", "layer_change"],
        "storage": {"root": str(folder / "ledger")},
    } | changes
    path = folder / "sweep.yaml"
    with path.open("w") as text:
        YAML(typ="safe").dump(content, text)
    return path


def plan_of(path: Path) -> Plan:
    return make_plan(load_sweep(path))


def number_of(cell: CellPlan) -> float:
    """A number between 0 and 1 that depends on the cell alone."""
    return int(cell.cell.id[:6], 16) / 16**6


def answer(asked: Requirement, cell: CellPlan) -> BenchmarkScores:
    """Bits per byte for ``prose``, else an accuracy."""
    assert asked.task is not None
    name, value = str(asked.task.name), number_of(cell)
    made = {"bits_per_byte,none": score(1 + value, higher=False)} if name == "prose" else {"acc,none": score(value)}
    return benchmark(name, made, asked.shots, asked.id)


def made_record(cell: CellPlan, trajectory: str | None, **changes: Any) -> Record:
    """A complete record of a planned cell."""
    value = number_of(cell)
    scores = {
        f"{index:016x}": answer(asked, cell)
        for index, asked in enumerate(item for item in cell.requirements if item.task)
    }
    over = {"perplexity_micro": 2 + value, "perplexity_micro_interval": [1.9 + value, 2.1 + value], "tokens": 500}
    over |= {"perplexity_text_micro": 1.5 + value, "bits_per_byte_micro": 0.5 + value}
    content: dict[str, Any] = {
        "cell": cell.cell.id,
        "trajectory": trajectory,
        "coordinates": cell.cell.coordinates._asdict(),
        "status": Status.COMPLETE,
        "attempt": 1,
        "scores": scores,
        "provenance": {"git": {"commit": COMMIT, "dirty_sha256": None}, "host": "here", "argv": "massive-sft run"},
        "created": WHEN,
        "finished": WHEN,
    }
    if trajectory is not None:
        change = {"relative": value / 10, "relative_by_layer": {"0": value / 9, "1": value / 8}}
        content["measures"] = {"perplexity": {"schema": 3, "all": over, "response": over}, "layer_change": change}
        content["training"] = {"steps": 64, "tokens": 12800, "seconds": 30.0, "first_loss": 2.0, "last_loss": 1.0}
        content["training"] |= {"layout": LAYOUT}
        content["counts"] = {"total": {"samples": 1000, "available": 5000, "tokens": 6400, "truncated": 3}}
    return Record(**(content | changes))


def write_layers(path: Path) -> Path:
    """Write a table of two weights in two layers, as far as a report reads it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame({"layer": [0, 1], "base_norm": [1.0, 1.0], "rounding_floor": [0.0, 0.0]}).to_parquet(path)
    return path


def write_losses(path: Path) -> Path:
    """Write a loss curve of two epochs of 32 steps."""
    path.parent.mkdir(parents=True, exist_ok=True)
    steps = [StepDone(step, 1 + (step > 32), 2 - step / 64, 1e-5, 1.0, 900, 300, 0.1) for step in range(1, 65)]
    path.write_text("".join(map(to_line, steps)))
    return path


def write_records(plan: Plan, change: Callable[[Record], Record | None] = lambda record: record) -> Ledger:
    """Write a record for every cell of a plan, or what ``change`` makes of it (None: nothing), and loss curves."""
    ledger = Ledger.open(plan.root)
    runs = {cell.cell.id: run.trajectory.id for run in plan.runs for cell in run.cells}
    losses = {trajectory: write_losses(ledger.trajectory_dir(trajectory) / LOSSES) for trajectory in runs.values()}
    for cell in plan.cells:
        made = made_record(cell, runs.get(cell.cell.id))
        if made.trajectory is not None:
            files = [losses[made.trajectory], write_layers(ledger.cell_dir(made.cell) / "layers.parquet")]
            hashes = {path.relative_to(ledger.root).as_posix(): hash_file(path) for path in files}
            made = made.model_copy(update={"files": hashes})
        found = change(made)
        if found is not None:
            ledger.write_record(found)
    return ledger


def note_report(plan: Plan) -> None:
    """Have the sweep's report be there, as if made of what the plan has."""
    write_bytes(report_folder(plan) / PAGE, f'<meta name="{META}" content="{source_of(plan)}">'.encode())


def bonett_price(learnt: int, lost: int, questions: int) -> tuple[float, float]:
    """The 95 % interval of a gain in answers that are right or wrong: Bonett and Price, 2012."""
    first, second = (learnt + 1) / (questions + 2), (lost + 1) / (questions + 2)
    half = NormalDist().inv_cdf(0.975) * math.sqrt((first + second - (first - second) ** 2) / (questions + 2))
    return max(first - second - half, -1.0), min(first - second + half, 1.0)
