"""Sweeps whose LoRA trainings take their steps together (``resources.lora_at_once``), up to their records."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from adapter_sweep import adapter_sweep, assert_same_results, records
from commands import end, start_session

from massive_sft.cost.estimate import estimate
from massive_sft.cost.formatting import cost_lines
from massive_sft.ledger.record import Record
from massive_sft.planning.adapter_groups import grouped
from massive_sft.planning.plan import make_plan
from massive_sft.running.events import RunEvent, TrainingProgressed
from massive_sft.running.inline import run_inline
from massive_sft.sweep.load import load_sweep
from massive_sft.training.events import CheckpointWritten, Resumed, StepDone


def run(path: Path) -> list[RunEvent]:
    happened: list[RunEvent] = []
    run_inline(make_plan(load_sweep(path)), happened.append)
    return happened


def steps(happened: list[RunEvent]) -> list[tuple[str, int]]:
    """Who took which step, in the order in which they were taken."""
    told = [event for event in happened if isinstance(event, TrainingProgressed) and isinstance(event.event, StepDone)]
    return [(event.trajectory.recipe.setting_name, event.event.step) for event in told]  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Record]:
    folder = tmp_path_factory.mktemp("alone")
    run(adapter_sweep(folder, 1))
    return records(folder)


def test_adapters_at_once_have_the_records_that_each_has_alone(alone: dict[str, Record], tmp_path: Path) -> None:
    path = adapter_sweep(tmp_path, 2)
    (first, second) = grouped((runs := make_plan(load_sweep(path)).runs), {r.trajectory.id for r in runs})
    assert [run.trajectory for run in (first, *first.grouped_with, second)] == [run.trajectory for run in runs]
    cost = estimate(make_plan(load_sweep(path)))
    assert any("2 trainings take their steps in 1 group (lora_at_once)" in line for line in cost_lines(cost))
    taken = steps(run(path))
    assert taken[:12] == [(name, step) for step in range(1, 7) for name in ("one", "two")]
    assert taken[12:] == [("three", step) for step in range(1, 7)]
    assert_same_results(records(tmp_path), alone)
    assert records(tmp_path)["one-2"].training["layout"]["lora_at_once"] == 2
    assert run(path) == []


def test_run_that_is_killed_midway_goes_on_with_all_of_them(alone: dict[str, Record], tmp_path: Path) -> None:
    path = adapter_sweep(tmp_path, 3, storage={"root": str(tmp_path / "ledger"), "resume_every": 0})
    assert end(start_session(run_until_two_have_a_third_checkpoint, path)) == -signal.SIGKILL
    happened = run(path)
    resumed = [
        each.event for each in happened if isinstance(each, TrainingProgressed) and isinstance(each.event, Resumed)
    ]
    assert sorted(event.step for event in resumed) == [2, 3, 3]
    assert len(steps(happened)) == 4 + 3 + 3
    assert_same_results(records(tmp_path), alone)


def run_until_two_have_a_third_checkpoint(path: Path) -> None:
    written: list[int] = []

    def listen(event: RunEvent) -> None:
        if isinstance(event, TrainingProgressed) and isinstance(event.event, CheckpointWritten):
            written.append(event.event.step)
            if written.count(3) == 2:
                os.kill(os.getpid(), signal.SIGKILL)

    run_inline(make_plan(load_sweep(path)), listen)
