"""What a run tells while it goes on: trainings and scorings apart, their speed and scores, the time left."""

from __future__ import annotations

import io
import json
import os
import re
import select
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import sample_records
from commands import end, start
from rich.console import Console
from small_sweep import small_sweep
from typer.testing import CliRunner

from massive_sft.cli.app import app
from massive_sft.cli.event_lines import headline_text, run_event_line
from massive_sft.cli.progress import RunProgress
from massive_sft.cli.status import status_view
from massive_sft.cost.duration import Quantity
from massive_sft.cost.time_left import GUESS_PRIOR_S, GUESS_S, PRIOR_S, TimeLeft
from massive_sft.ledger import scores_so_far
from massive_sft.ledger.lease import Lease
from massive_sft.ledger.record import Status
from massive_sft.ledger.scores_so_far import PartScores
from massive_sft.ledger.store import Ledger
from massive_sft.planning.outcome import with_work_in_hand
from massive_sft.planning.plan import Plan, make_plan
from massive_sft.running.events import (
    BenchmarkProgressed,
    BenchmarkScored,
    CellRecorded,
    ScoringStarted,
    TrainingEnded,
    TrainingProgressed,
    TrainingStarted,
)
from massive_sft.sweep.load import load_sweep
from massive_sft.training.events import SnapshotPublished, StepDone

SCORES = sample_records.benchmark("facts_mc", {"acc,none": sample_records.score(0.375)})


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Two trainings of two epochs and a base model: five cells."""
    return make_plan(load_sweep(small_sweep(tmp_path_factory.mktemp("sweep"))))


def step(number: int, loss: float = 1.5, seconds: float = 0.5) -> StepDone:
    return StepDone(number, 1, loss, 1e-3, 1.0, tokens=1000, trainable_tokens=500, seconds=seconds)


def rows(progress: RunProgress) -> dict[str, str]:
    """The drawn rows by their first word; none is longer than a terminal of 80 columns."""
    console = Console(file=io.StringIO(), width=80)
    console.print(progress._bar.get_renderable())
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    return {line.split()[0]: line for line in lines if line.strip()}


def test_trainings_and_scorings_are_told_apart_with_their_speed_and_last_score(plan: Plan) -> None:
    progress = RunProgress(plan, Console(file=io.StringIO(), force_terminal=True, width=200))
    full, _ = plan.todo
    assert re.search(r"≈ \d+:\d\d:\d\d left, trainings and scoring not measured yet", rows(progress)["time"])
    progress.listen(TrainingStarted(full.trajectory, 1))
    for number in (1, 2):
        progress.listen(TrainingProgressed(full.trajectory, step(number)))
    progress.listen(ScoringStarted(plan.base[0].cell))
    progress.listen(BenchmarkProgressed(plan.base[0].cell, PartScores(SCORES, 256, 1319)))
    assert re.search(r"0/5 +1 now, facts_mc-0shot acc 37\.5 % ±10\.0, 256 of 1,319", rows(progress)["scored"])
    progress.listen(BenchmarkScored(plan.base[0].cell, SCORES))
    shown = rows(progress)
    assert re.search(r"0/2 +1 now, loss 1\.500, 2,000 tokens/s", shown["trained"])
    assert re.search(r"0/5 +1 now, facts_mc-0shot acc 37\.5 %", shown["scored"])
    assert re.search(r"0:00:0\d, about \d+:\d\d:\d\d left", shown["time"])

    progress.listen(TrainingProgressed(full.trajectory, SnapshotPublished(1)))
    assert "0/2" in rows(progress)["trained"]
    progress.listen(TrainingProgressed(full.trajectory, SnapshotPublished(2)))
    progress.listen(TrainingEnded(full.trajectory))
    base = sample_records.record(plan.base[0].cell.id, {}, method="none")
    progress.listen(CellRecorded(plan.base[0].cell, base))
    shown = rows(progress)
    assert re.search(r"1/2 +0 now *$", shown["trained"])
    assert re.search(r"1/5 +0 now, 1 COMPLETE, facts_mc", shown["scored"])
    scored = [sample_records.benchmark(f"quiz-{n}", {"acc,none": sample_records.score(0.5)}) for n in range(6)]
    told = run_event_line(CellRecorded(plan.base[0].cell, base.model_copy(update={"scores": dict(enumerate(scored))})))
    four = ", ".join(f"quiz-{n}-0shot acc 50.0 %" for n in range(4))
    assert told.plain.endswith(f" llama (base): {four}, and 2 more")


def test_status_tells_what_is_scored_so_far_while_a_cell_is_in_work(plan: Plan) -> None:
    ledger, base = Ledger(plan.storage), plan.base[0]
    scores_so_far.write(ledger.cell(base.cell.id), PartScores(SCORES, 256, 1319))
    for status, told in ((Status.RUNNING, True), (Status.WAITING, False)):
        console = Console(file=io.StringIO(), width=200)
        console.print(status_view(replace(plan, base=(replace(base, recorded=status),)), ledger))
        shown = console.file.getvalue()  # type: ignore[attr-defined]
        assert ("so far facts_mc-0shot acc 37.5 % ±10.0, 256 of 1,319" in shown) is told
    console.print(status_view(replace(plan, runs=()), ledger))
    assert console.file.getvalue().count("training run") == shown.count("training run") > 0  # type: ignore[attr-defined]
    scores_so_far.remove(ledger.cell(base.cell.id))
    assert scores_so_far.read(ledger.cell(base.cell.id)) is None


def test_status_tells_which_waiting_cells_are_trained(plan: Plan, tmp_path: Path) -> None:
    run, console = plan.todo[0], Console(file=io.StringIO(), width=200)
    ledger = Ledger.open(tmp_path)
    ledger.trajectory(run.trajectory.id).put("snapshots/epoch-1/published", b"")
    console.print(status_view(plan, ledger))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    trained = [cell.cell.id for cell in run.cells if cell.cell.epoch == 1]
    assert [line.split()[0] for line in lines if "trained, not scored yet" in line] == trained


def test_status_tells_what_is_done_with_a_running_cell(plan: Plan, tmp_path: Path) -> None:
    run, console = plan.todo[0], Console(file=io.StringIO(), width=200)
    ledger = Ledger.open(tmp_path)
    ledger.trajectory(run.trajectory.id).put("snapshots/epoch-1/published", b"")
    first, second = sorted(run.cells, key=lambda cell: cell.cell.epoch)
    lease = Lease.acquire(ledger.lease_of(ledger.cell_dir(first.cell.id)), "here")
    assert lease is not None

    def told(status: Status = Status.RUNNING) -> list[str]:
        recorded = tuple(replace(cell, recorded=status) for cell in (first, second))
        shown_plan = replace(plan, base=(), runs=(replace(run, cells=recorded),))
        console.print(status_view(with_work_in_hand(shown_plan, ledger), ledger))
        shown = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
        return [line.partition("epoch")[2].split(maxsplit=1)[1].strip() for line in shown if " epoch " in line][-2:]

    assert told() == ["RUNNING  is scored now", "RUNNING  its training starts"]
    assert told(Status.FAILED) == ["RUNNING  is scored now", "FAILED"], "one that has a record, and is made again"
    lease.release()
    assert told() == ["RUNNING  trained, not scored yet", "RUNNING  its training starts"]
    assert told(Status.FAILED) == ["FAILED  trained, not scored yet", "FAILED"]


def test_status_selects_by_the_status_that_it_shows(tmp_path: Path) -> None:
    path = small_sweep(tmp_path)
    plan = make_plan(load_sweep(path))
    ledger, (first, other) = plan.open_ledger(), plan.runs[0].cells
    for cell in (first, other):
        trajectory = plan.runs[0].trajectory.id
        record = sample_records.record(cell.cell.id, {}, status=Status.FAILED, error="why", trajectory=trajectory)
        ledger.write_record(record)
    lease = Lease.acquire(ledger.lease_of(ledger.cell_dir(first.cell.id)), "here")
    assert lease is not None

    def shown(where: str) -> list[tuple[str, str]]:
        done = CliRunner().invoke(app, ["status", str(path), "--where", where, "--json"])
        return [(cell["cell"], cell["status"]) for cell in json.loads(done.stdout)]

    with lease:
        assert shown("status=RUNNING") == [(first.cell.id, "RUNNING")]
        assert shown("status=FAILED") == [(other.cell.id, "FAILED")]
        assert len(shown("status!=RUNNING")) == len(plan.cells) - 1
    assert shown("status=RUNNING") == []


@pytest.mark.parametrize("status", [Status.FAILED, Status.DIVERGED])
def test_training_that_failed_is_no_longer_shown_as_training(plan: Plan, status: Status) -> None:
    progress = RunProgress(plan, Console(file=io.StringIO(), force_terminal=True, width=200))
    run = plan.todo[0]
    progress.listen(TrainingStarted(run.trajectory, 1))
    cell = run.cells[0].cell
    failed = sample_records.record(cell.id, {}, status=status, error="why", trajectory=run.trajectory.id)
    progress.listen(CellRecorded(cell, failed))
    progress.listen(TrainingEnded(run.trajectory))
    assert re.search(r"1/2 +0 now", rows(progress)["trained"])


def test_warning_of_the_checks_stands_on_a_line_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    full = {"method": "full", "lr": 1e-3, "max_length": 64, "truncation": "left", "precision": "fp32", "batch": 8}
    block = {"name": "A", "model": "all", "mixture": "one", "setting": "full", "schedule": "constant"}
    changes = {"settings": {"full": full}, "blocks": [block | {"horizon": 1, "snapshots": [1]}], "measures": []}
    path = small_sweep(tmp_path, evaluation={"base": False, "tasks": []}, **changes)
    master, slave = os.openpty()
    process = start("run", path, "--inline", out=Path(os.ttyname(slave)))
    printed = b""
    while select.select([master], [], [], 0.1)[0] or process.is_alive():
        printed += os.read(master, 4096) if select.select([master], [], [], 0)[0] else b""
    os.close(slave)
    os.close(master)
    assert end(process) == 0
    printed = re.sub(rb"(\x1b\[[\d;]*m)*\r\n  (\x1b\[[\d;]*m)*", b" ", printed)  # a sentence goes on indented
    # The line begins after what takes the status line away, whatever colour follows.
    found = re.search(rb"(.{12})(?:\x1b\[[\d;]*m)*warning: [^\n]*cuts text off", printed, re.S)
    assert found and re.search(rb"(?:\r|\n|\x1b\[\d*[A-Z])$", found[1]), printed


def test_score_without_a_value_is_not_told() -> None:
    assert headline_text(SCORES) == "facts_mc-0shot acc 37.5 %"
    assert headline_text(sample_records.benchmark("empty", {"acc,none": sample_records.score(None)})) == ""


def test_time_left_of_a_plan_counts_every_part(plan: Plan) -> None:
    left = TimeLeft.of(plan)
    whole = left.seconds(0.0)
    assert whole > 0
    for run in plan.todo:
        left.trained(run.trajectory.id)
    trained = left.seconds(0.0)
    for cell in plan.cells:
        left.recorded(cell.cell.id, 0.0)
    assert whole > trained > left.seconds(0.0) == 0.0
    left.add(plan)  # what is known already
    assert left.seconds(0.0) == 0.0


def sure(**seconds: float) -> dict[str, Quantity]:
    """Estimates that rest on measurements."""
    return {part: Quantity(value, True) for part, value in seconds.items()}


def test_time_left_that_is_a_guess_says_so_until_its_kind_is_seen_which_then_counts_at_once() -> None:
    guess = Quantity(300.0, False)
    left = TimeLeft({"a": guess, "b": guess}, sure(c=100.0) | {"d": guess})
    assert (left.shown(40.0), left.guessed) == (1000.0, ("trainings", "scoring"))
    left.stepped("a", 1, 10, 3.0, 43.0)  # ten times as fast as was thought
    trainings = 570.0 * (GUESS_PRIOR_S + 3.0) / (GUESS_PRIOR_S + 30.0)
    assert left.shown(43.0) == left.seconds(43.0) == pytest.approx(trainings + 400.0)
    assert left.guessed == ("scoring",)
    left.scoring("c", 43.0)
    left.recorded("c", 53.0)
    assert left.shown(53.0) == left.seconds(53.0) and left.guessed == ()
    assert TimeLeft(sure(a=1.0), {}).guessed == TimeLeft({}, {}).guessed == ()


def test_time_left_is_the_estimate_at_first_and_then_what_was_seen_of_trainings_and_cells_apart() -> None:
    left = TimeLeft(sure(a=1000.0, b=1000.0), sure(c=2000.0, d=2000.0))
    assert left.seconds(50.0) == 6000.0
    left.scoring("c", 100.0)
    left.answered("c", "facts", 0.5, 120.0)  # of all that is asked of it
    left.recorded("c", 140.0)  # fifty times as fast as was thought; trainings may take what they were thought to take
    cells = 2000.0 * (PRIOR_S + 40.0) / (PRIOR_S + 2000.0)
    assert left.seconds(140.0) == pytest.approx(2000.0 + cells)
    for step in range(1, 11):
        left.stepped("a", step, 10, 200.0, 140.0 + 200.0 * step)  # twice as slow
    trainings = 1000.0 * (PRIOR_S + 2000.0) / (PRIOR_S + 1000.0)
    assert left.seconds(2140.0) == pytest.approx(trainings + cells)
    left.scoring("d", 2140.0)  # a cell that takes long is no reason to think that everything does
    assert left.seconds(4000.0) <= trainings + cells


def test_time_left_of_what_goes_on_from_a_checkpoint_and_of_what_failed_teaches_no_speed() -> None:
    left = TimeLeft(sure(a=1000.0, b=1000.0), sure(c=50.0, d=50.0))
    left.stepped("a", 91, 100, 10.0, 10.0)
    assert left.seconds(10.0) == pytest.approx(90.0 + 1000.0 + 100.0)
    left.scoring("c", 10.0)
    left.recorded("c", 10.0, went_well=False)
    assert left.seconds(10.0) == pytest.approx(90.0 + 1000.0 + 50.0)


def test_time_left_of_a_cell_that_was_partly_answered_before_teaches_the_speed_of_the_rest_alone() -> None:
    left = TimeLeft({}, sure(**dict.fromkeys("abcdef", 1000.0)))
    left.scoring("a", 0.0)
    left.answered("a", "facts", 0.91, 10.0, found=0.90)  # a hundredth in 10 s, as was thought
    assert left.seconds(10.0) == pytest.approx(5090.0)
    left.recorded("a", 100.0)
    assert left.seconds(100.0) == pytest.approx(5000.0)
    left.scoring("b", 100.0)
    left.answered("b", "facts", 1.0, 300.0, found=None)  # nobody knows how much of it was left
    left.recorded("b", 300.0)
    assert left.seconds(300.0) == pytest.approx(4000.0)


def test_time_left_that_is_shown_passes_with_the_clock_and_never_jumps() -> None:
    left = TimeLeft({}, sure(a=1000.0, b=1000.0))
    shown = [left.shown(0.0)]
    left.scoring("a", 0.0)
    left.recorded("a", 10.0)
    left.scoring("b", 10.0)
    times = [10.0 + 0.5 * tick for tick in range(240)]
    shown += [left.shown(now) for now in times]
    assert shown[0] == 2000.0
    steps = [before - after for before, after in pairwise(shown[1:])]
    assert max(map(abs, steps)) < 0.05 * shown[0]
    assert abs(shown[-1] - left.seconds(times[-1])) < 20.0
    left.recorded("b", 131.0)
    assert left.shown(131.0) == 0.0


def test_time_left_of_unknown_parts_is_a_number() -> None:
    assert TimeLeft({"a": None}, sure(b=100.0, c=300.0)).seconds(0.0) == 600.0
    assert TimeLeft({"a": None}, {"b": None}).seconds(0.0) == 2 * GUESS_S
    left = TimeLeft({}, {"b": None})
    left.recorded("not of this run", 0.0)
    left.recorded("b", 0.0)
    assert left.seconds(10.0) == 0.0
