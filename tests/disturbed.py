"""A sweep that ran to its end undisturbed, and what any disturbed run of it must come to, bit by bit."""

from __future__ import annotations

import functools
import json
import re
import shutil
from pathlib import Path
from typing import Any

from commands import command
from mlflow import MlflowClient
from mlflow.entities import ViewType
from ruamel.yaml import YAML
from shared import made_once
from small_sweep import small_sweep

from massive_sft.core.fingerprint import hash_file
from massive_sft.ledger.record import Record
from massive_sft.ledger.store import Ledger

QUESTIONS, DISTINCT = 1100, 50  # of two short answers each: three shards, and soon answered
BLOCK = {"name": "A", "model": "all", "mixture": "one", "setting": ["full", "lora"]}
BLOCK |= {"schedule": "constant", "horizon": 1, "snapshots": [1]}
TRAINING = ("steps", "tokens", "trainable_tokens", "first_loss", "last_loss", "micro_batch", "layout")
STARTED = re.compile(r"^training .* epoch \d+$", re.M)  # a line for each training that a run begins
KEEP = {"keep_snapshots": {"full": "all", "lora": "all"}}
MANY = """\
task: many
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: answer
target_delimiter: ""
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1.0}}
"""


@functools.cache
def _base() -> dict[str, Any]:
    """Build the offline world once; return a sweep's file over it: full tuning and LoRA for an epoch, three cells."""

    def build(folder: Path) -> None:
        small_sweep(folder, blocks=[BLOCK])
        _many(folder / "world" / "tasks")

    folder = made_once("world-of-many", build)
    content: dict[str, Any] = YAML(typ="safe").load((folder / "sweep.yaml").read_text())
    content["evaluation"]["tasks"].append({"path": str(folder / "world" / "tasks" / "many.yaml")})
    return content


def _many(tasks: Path) -> None:
    rows = [
        {"question": f"{n % DISTINCT} is", "choices": [" even", " odd"], "answer": n % 2, "number": n}
        for n in range(QUESTIONS)
    ]
    (tasks / "data" / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tasks / "many.yaml").write_text(MANY.format(data=tasks / "data" / "many.jsonl"))


def sweep_at(folder: Path, **changes: Any) -> Path:
    """Write the sweep's file into a folder, its ledger beside it; ``changes`` replace top-level keys."""
    storage = {"root": str(folder / "ledger")} | KEEP
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{changes.get('name', 'small')}.yaml"
    with path.open("w") as text:
        YAML(typ="safe").dump(_base() | {"storage": storage} | changes, text)
    return path


def tasks_of(*names: str) -> dict[str, Any]:
    """Return the sweep's ``evaluation`` with further benchmarks of the offline world."""
    evaluation: dict[str, Any] = _base()["evaluation"]
    folder = Path(evaluation["tasks"][0]["path"]).parent
    more = [{"path": str(folder / f"{name}.yaml"), "limit": 12} for name in names]
    return evaluation | {"tasks": [*evaluation["tasks"], *more]}


def undisturbed() -> Path:
    """Return the folder of the sweep after one run to its end."""

    def run(folder: Path) -> None:
        code, printed = command("run", sweep_at(folder), "--inline", out=folder / "out")
        assert code == 0, printed

    return made_once("undisturbed", run)


def copied(folder: Path) -> Path:
    """Copy the finished ledger, but for its tracker, into a folder; return the sweep's file there."""
    shutil.copytree(undisturbed() / "ledger", folder / "ledger", ignore=shutil.ignore_patterns("mlflow*"))
    return sweep_at(folder)


def records(folder: Path) -> dict[str, Record]:
    """Return the records of a folder's ledger, each verified, by setting and epoch (``full-1``)."""
    ledger = Ledger.open(folder / "ledger", create=False)
    found = {f"{r.coordinates['setting']}-{r.coordinates['epoch']}": r for r in ledger.records()}
    assert not ledger.corrupt
    return found


def record_path(ledger: Path, cell: str) -> Path:
    """Return the file of a cell's newest record."""
    return max((ledger / "records").glob(f"*/{cell}.record-*.json"))


def outcome(folder: Path) -> dict[str, Any]:
    """Return all of a ledger that does not depend on when and where it ran: scores, measures, counts, weights."""
    facts: dict[str, Any] = {}
    for name, record in records(folder).items():
        training = {key: record.training.get(key) for key in TRAINING}
        facts[name] = (record.status, record.scores, record.measures, record.counts, training, record.missing)
    for path in sorted((folder / "ledger" / "trajectories").glob("*/snapshots/*/*.safetensors")):
        facts[str(path.relative_to(folder))] = hash_file(path)
    return facts


def trainings(folder: Path) -> list[str]:
    """Return the finished trainings of a folder's ledger, ``<trajectory>/attempt-<n>``."""
    found = (folder / "ledger" / "trajectories").glob("*/training/attempt-*")
    return sorted(f"{path.parents[1].name}/{path.name}" for path in found)


def identities(folder: Path, pattern: str) -> dict[Path, tuple[int, int]]:
    """Return inode and modification time of the files below a folder that fit a pattern: the same ones, untouched."""
    stats = {path: path.stat() for path in sorted(folder.glob(pattern)) if path.is_file()}
    return {path: (stat.st_ino, stat.st_mtime_ns) for path, stat in stats.items()}


def tracked(uri: str, sweep: str) -> dict[str, str]:
    """Return the record's checksum on each cell's run of a sweep; two runs of one cell, or two parents, fail."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(sweep)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], run_view_type=ViewType.ACTIVE_ONLY)
    children = [run for run in runs if "massive_sft.cell" in run.data.tags]
    assert len(children) == len(runs) - 1
    found = {run.data.tags["massive_sft.cell"]: run.data.tags.get("massive_sft.record", "") for run in children}
    assert len(found) == len(children)
    return found
