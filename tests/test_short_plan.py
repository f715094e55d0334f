"""A run without Ray, by itself, where Ray's start would take longer than what is left."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from calling import call
from small_sweep import small_sweep

from massive_sft.ledger.lease import Lease
from massive_sft.ledger.record import Status
from massive_sft.ledger.store import Ledger
from massive_sft.planning.plan import Plan, make_plan
from massive_sft.planning.selection import parse_where, select_cells
from massive_sft.running.check import check
from massive_sft.running.short_plan import is_short_plan
from massive_sft.sweep.load import load_sweep

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a sweep of one base row and two trainings, whose sizes are known."""
    folder = tmp_path_factory.mktemp("checked")
    assert check(plan_of(small_sweep(folder))) == []
    return folder


def plan_of(path: Path, where: str | None = None) -> Plan:
    return select_cells(make_plan(load_sweep(path)), parse_where(where))


def test_one_training_of_a_minute_is_short(checked: Path) -> None:
    assert is_short_plan(plan_of(checked / "sweep.yaml", "method=lora"))
    assert is_short_plan(plan_of(checked / "sweep.yaml", "method=none"))


def test_two_trainings_gain_from_being_side_by_side(checked: Path) -> None:
    assert not is_short_plan(plan_of(checked / "sweep.yaml"))


def test_long_training_is_no_short_plan(checked: Path) -> None:
    block = {"name": "A", "model": "all", "mixture": "one", "setting": "lora", "schedule": "constant"}
    path = small_sweep(checked, blocks=[block | {"horizon": 5000, "snapshots": [1, 5000]}])
    try:
        assert not is_short_plan(plan_of(path, "method=lora"))
    finally:
        small_sweep(checked)


def test_what_takes_nobody_knows_how_long_is_no_short_plan(tmp_path: Path) -> None:
    assert not is_short_plan(plan_of(small_sweep(tmp_path), "method=lora"))


def test_training_of_several_workers_is_no_short_plan(checked: Path) -> None:
    path = small_sweep(checked, resources=[{"when": {"setting": "lora"}, "workers": 2}])
    try:
        assert not is_short_plan(plan_of(path, "method=lora"))
    finally:
        small_sweep(checked)


def test_what_a_process_died_at_is_no_short_plan(checked: Path, tmp_path: Path) -> None:
    """Where it takes the process with it again, the run on Ray tells so, and this process would be gone."""
    shutil.copytree(checked / "ledger", tmp_path / "ledger")
    path = small_sweep(tmp_path)
    plan = plan_of(path, "method=lora")
    assert is_short_plan(plan)
    ledger = Ledger.open(plan.root)
    for home in (ledger.trajectory_dir(plan.todo[0].trajectory.id), ledger.cell_dir(plan.todo[0].cells[0].cell.id)):
        code = (
            "import os, sys; from pathlib import Path\n"
            "from massive_sft.ledger.lease import Lease; from massive_sft.ledger.store import Ledger\n"
            "assert Lease.acquire(Ledger.open(Path(sys.argv[1])).lease_of(Path(sys.argv[2])), 'dead'); os._exit(9)"
        )
        assert subprocess.run([sys.executable, "-c", code, plan.root, home]).returncode == 9
        assert not is_short_plan(plan)
        lease = Lease.acquire(ledger.lease_of(home), "here")
        assert lease is not None
        lease.release()
        assert is_short_plan(plan)


def test_run_of_what_is_short_says_that_it_starts_no_ray(
    checked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(checked / "ledger", tmp_path / "ledger")
    path = small_sweep(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.init", lambda *_, **__: pytest.fail("Ray was started"))
    code, printed = call("run", path, "--where", "method=lora")
    assert code == 0, printed
    assert "done here, without the start of Ray" in printed
    assert "Warning" not in printed
    assert {record.status for record in Ledger.open(tmp_path / "ledger", create=False).records()} == {Status.COMPLETE}


def test_named_cluster_and_ray_by_option_are_taken(
    checked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(checked / "ledger", tmp_path / "ledger")
    path = small_sweep(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    code, printed = call("run", path, "--where", "method=lora")
    assert (code, "names no cluster that answers" in printed) == (2, True), printed
    monkeypatch.delenv("RAY_ADDRESS")

    class Started(Exception):
        pass

    def start(**_: object) -> None:
        raise Started

    monkeypatch.setattr("ray.init", start)
    code, printed = call("run", path, "--where", "method=lora", "--ray")
    assert (code, "does not start on this machine (Started)" in printed) == (2, True), printed
