"""What kills whoever does it, and what never starts: a run gives it up with its reason, and goes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import deadly
import pytest
import ray
from commands import forked_workers
from small_sweep import one_lora

from massive_sft.ledger.record import Record, Status
from massive_sft.ledger.store import Ledger
from massive_sft.planning.plan import make_plan
from massive_sft.running.events import CellRecorded, RunEvent
from massive_sft.scheduling import lanes, scorers
from massive_sft.scheduling.run_on_ray import run_on_ray
from massive_sft.scheduling.scoring_actor import ScorersFailed
from massive_sft.sweep.load import load_sweep

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]


@contextmanager
def deadly_ray(hook: str = "", **variables: str) -> Iterator[None]:
    """A local Ray whose processes call a hook of ``deadly`` when they start, if one is named."""
    environment = {"worker_process_setup_hook": f"deadly.{hook}", "env_vars": variables} if hook else {}
    with forked_workers():
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=environment)
        try:
            yield
        finally:
            ray.shutdown()


def records(folder: Path) -> dict[str, Record]:
    return {record.cell: record for record in Ledger.open(folder / "ledger", create=False).records()}


def test_cell_that_kills_its_scorers_fails_and_the_others_are_scored(tmp_path: Path) -> None:
    plan, happened, said = make_plan(load_sweep(one_lora(tmp_path))), list[RunEvent](), list[str]()
    fatal = next(cell.cell.id for cell in plan.cells if cell.cell.epoch == 1)
    with deadly_ray("scorers", **{deadly.CELL: fatal}):
        run_on_ray(plan, happened.append, said.append)
    found = records(tmp_path)
    assert {cell: record.status for cell, record in found.items()} == {
        cell.cell.id: Status.FAILED if cell.cell.id == fatal else Status.COMPLETE for cell in plan.cells
    }
    assert "3 scorers died while they had it" in str(found[fatal].error)
    assert sum("are lost" in line for line in said) == 3, said
    assert sum(isinstance(event, CellRecorded) for event in happened) == len(found)


@pytest.mark.parametrize(
    ("name", "reason"), [("SIGKILL", "its processes cannot be started"), ("SIGSTOP", "its processes did not come up")]
)
def test_workers_that_cannot_be_started_fail_their_cells_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, reason: str
) -> None:
    """They never say that they are up. Where Ray itself waits for their processes, it does so for ever."""
    monkeypatch.setattr(lanes, "UP_S", 6.0)
    plan = make_plan(load_sweep(one_lora(tmp_path, evaluation={"base": False, "tasks": []})))
    with deadly_ray("workers", **{deadly.SIGNAL: name}):
        run_on_ray(plan, lambda _: None, lambda _: None)
    found = records(tmp_path)
    assert len(found) == 2
    for record in found.values():
        assert record.status is Status.FAILED
        assert reason in str(record.error), record.error


@pytest.mark.long
def test_scorers_that_do_not_come_up_end_the_run_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long before the watchdog would, which lanes that train keep waiting."""
    monkeypatch.setattr(scorers, "UP_S", 6.0)
    plan, said = make_plan(load_sweep(one_lora(tmp_path))), list[str]()
    with (
        deadly_ray("workers", **{deadly.SIGNAL: "SIGSTOP", deadly.TITLE: "ray::MapWorker"}),
        pytest.raises(ScorersFailed, match="cannot be started: their processes did not come up for 6 s"),
    ):
        run_on_ray(plan, lambda _: None, said.append)
    assert any("are lost: their processes did not come up" in line for line in said), said
