"""Runs beside each other on one root: nothing is trained twice, and all of them end with everything complete."""

from __future__ import annotations

import os
import signal
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from commands import Fault, end, run_with_own_tables, start, stop, until
from disturbed import STARTED, outcome, records, sweep_at, tasks_of, tracked, trainings, undisturbed

from massive_sft.ledger.record import Status
from massive_sft.ledger.store import Ledger
from massive_sft.tracking.run_fields import checksum

pytestmark = pytest.mark.timeout(600)

FULL_UNTIL_SCORED = {"keep_snapshots": {"full": "none", "lora": "all"}}


def stands_still(process: BaseProcess) -> bool:
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def waits_for_a_lock(process: BaseProcess) -> bool:
    return any(
        "-> FLOCK" in line and f" {process.pid} " in line for line in Path("/proc/locks").read_text().split("\n")
    )


def shown(folder: Path, sweep: str) -> dict[str, str]:
    return tracked(f"sqlite:///{folder}/ledger/mlflow.db", sweep)


def checksums(folder: Path) -> dict[str, str]:
    found = Ledger.open(folder / "ledger", create=False).records()
    return {record.cell: checksum(record) for record in found}


def test_two_runs_of_one_sweep_share_the_work_and_both_end_complete(tmp_path: Path) -> None:
    sweep = sweep_at(tmp_path)
    runs = [start("run", sweep, "--inline", out=tmp_path / name) for name in ("first", "second")]
    codes = [end(run) for run in runs]
    printed = [(tmp_path / name).read_text() for name in ("first", "second")]
    assert codes == [0, 0], printed
    assert sum(len(STARTED.findall(text)) for text in printed) == 2
    assert all("3 COMPLETE" in text for text in printed)
    assert trainings(tmp_path) == trainings(undisturbed())
    assert outcome(tmp_path) == outcome(undisturbed())
    assert shown(tmp_path, "small") == checksums(tmp_path)


def test_run_goes_on_beside_and_after_one_that_dies_while_it_makes_the_mlflow_store(tmp_path: Path) -> None:
    """MLflow makes its tables one by one: another run must neither take half of them for a foreign database nor stay."""
    sweep = sweep_at(tmp_path)
    halfway = Fault(r"db_migrations/versions/", stop, reading=True)
    first = start("run", sweep, "--inline", out=tmp_path / "first", fault=halfway, run=run_with_own_tables)
    until(lambda: stands_still(first), first)
    assert not list(tmp_path.glob("ledger/mlflow.db"))
    assert list(tmp_path.glob("ledger/mlflow.db.partial/mlflow.db"))
    second = start("run", sweep, "--inline", out=tmp_path / "second")
    until(lambda: waits_for_a_lock(second), second)
    first.kill()
    assert (end(first), end(second)) == (-signal.SIGKILL, 0), (tmp_path / "second").read_text()
    assert not list(tmp_path.glob("ledger/mlflow.db.partial"))
    assert shown(tmp_path, "small") == checksums(tmp_path)


def test_two_sweeps_share_a_training_whose_snapshot_stays_until_both_have_scored_it(tmp_path: Path) -> None:
    """The one that trains asks less of the cells, and would remove the weights once it has scored them."""
    storage = {"root": str(tmp_path / "ledger")} | FULL_UNTIL_SCORED
    less = sweep_at(tmp_path, name="less", storage=storage)
    more = sweep_at(tmp_path, name="more", storage=storage, evaluation=tasks_of("arith_mc"))
    first = start("run", less, "--inline", out=tmp_path / "first", fault=Fault(r"\.epoch-1\.partial", stop))
    until(lambda: stands_still(first), first)
    second = start("run", more, "--inline", out=tmp_path / "second")
    until(lambda: list(tmp_path.glob("ledger/sweeps/more/runs/*/wants.json")), second)
    os.kill(first.pid or 0, signal.SIGCONT)
    assert (end(first), end(second)) == (0, 0), (tmp_path / "second").read_text()
    assert trainings(tmp_path) == trainings(undisturbed())
    found = records(tmp_path)
    assert {record.status for record in found.values()} == {Status.COMPLETE}
    assert {len(record.scores) for record in found.values()} == {4}
    assert not list(tmp_path.glob("ledger/trajectories/*/snapshots/*/model.safetensors"))
    assert shown(tmp_path, "more") == checksums(tmp_path)
    assert shown(tmp_path, "less").keys() == checksums(tmp_path).keys()


def test_run_takes_over_what_another_held_when_it_died(tmp_path: Path) -> None:
    sweep = sweep_at(tmp_path)
    first = start("run", sweep, "--inline", out=tmp_path / "first", fault=Fault(r"\.epoch-1\.partial", stop))
    until(lambda: stands_still(first), first)
    second = start("run", sweep, "--inline", out=tmp_path / "second")
    until(lambda: "waits for 1 cell that" in (tmp_path / "second").read_text(), second)
    assert second.is_alive()
    first.kill()
    assert (end(first), end(second)) == (-signal.SIGKILL, 0), (tmp_path / "second").read_text()
    assert len(trainings(tmp_path)) == 2
    assert outcome(tmp_path) == outcome(undisturbed())
    assert shown(tmp_path, "small") == checksums(tmp_path)
