"""Phases are apart: a crash after training never trains again, and one in scoring loses the shard in hand."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from commands import Fault, command, kill
from disturbed import identities, outcome, records, sweep_at, tracked, trainings, undisturbed
from sample_records import COMMIT, made_record, note_report, plan_of, sweep_file

from massive_sft.ledger.store import Ledger
from massive_sft.tracking.run_fields import checksum

pytestmark = pytest.mark.timeout(600)

SHARDS = 3  # of the benchmark ``many``
# In the order in which a cell comes to them: what is about to be written when the process dies.
PHASES = {
    "scoring, second shard": r"cells/{cell}/responses/.*/many/.*00001",
    "aggregating": r"cache/scores/.*\.parquet",
    "measuring perplexity": r"perplexity\.json",
    "writing the record": r"records/../{cell}\.record-[-0-9]+\.json$",
    "indexing": r"ledger/index/[^.].*\.jsonl$",
    "mirroring": r"mlflow-artifacts/.*record\.json",
}


def test_crash_after_training_never_trains_again_and_loses_at_most_a_shard(tmp_path: Path) -> None:
    expected = outcome(undisturbed())
    (cell, trajectory) = next((r.cell, r.trajectory) for name, r in records(undisturbed()).items() if name == "full-1")
    sweep = sweep_at(tmp_path)
    trained: dict[Path, tuple[int, int]] = {}
    answered: dict[Path, tuple[int, int]] = {}
    for phase, pattern in PHASES.items():
        fault = Fault(pattern.format(cell=cell), kill)
        code, printed = command("run", sweep, "--inline", out=tmp_path / "out", fault=fault)
        assert code == -signal.SIGKILL, (phase, printed)
        now = identities(tmp_path, f"ledger/trajectories/{trajectory}/[st]*/**/*")
        assert now and now.items() >= trained.items(), phase
        shards = identities(tmp_path, f"ledger/cells/{cell}/responses/**/*.gz")
        assert shards.items() >= answered.items(), phase
        many = sum(path.parent.name == "many" for path in shards)
        assert many == (1 if phase == "scoring, second shard" else SHARDS), phase
        trained, answered = now, shards
    code, printed = command("run", sweep, "--inline", out=tmp_path / "out")
    assert code == 0, printed
    assert outcome(tmp_path) == expected
    assert f"{trajectory}/attempt-1" in trainings(tmp_path)
    assert len(trainings(tmp_path)) == 2
    assert identities(tmp_path, f"ledger/trajectories/{trajectory}/[st]*/**/*") == trained
    assert records(tmp_path)["full-1"].attempt == 1
    ledger = Ledger.open(tmp_path / "ledger", create=False)
    shown = tracked(f"sqlite:///{tmp_path}/ledger/mlflow.db", "small")
    assert shown == {record.cell: checksum(record) for record in ledger.records()}


def test_thousand_complete_cells_are_seen_to_be_complete_in_time() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        hub = {"revision": COMMIT, "format": "alpaca"}
        datasets = {f"set{number}": {**hub, "hub": f"someone/set{number}"} for number in range(25)}
        block = {"name": "A", "model": "all", "mixture": "one", "setting": ["full", "lora"]}
        block |= {"schedule": "constant", "horizon": 10, "snapshots": list(range(1, 11))}
        mixtures = {"one": {"each": list(datasets), "samples": 1000}}
        sweep = sweep_file(Path(folder), datasets=datasets, mixtures=mixtures, blocks=[block])
        plan = plan_of(sweep)
        ledger = Ledger.open(plan.root)
        for cell in plan.cells:
            ledger.write_record(made_record(cell, cell.cell.recipe.id if cell.cell.recipe else None))
        note_report(plan_of(sweep))
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-m", "massive_sft", "run", sweep], capture_output=True, text=True, check=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.stdout == "nothing to do: 1002 COMPLETE\n"
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        assert seconds < 3  # of the processor, whatever else the machine does
