"""Two sweeps on one root: what one asks of a shared cell changes nothing in what the other says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console
from sample_records import plan_of, sweep_file, write_records

from massive_sft.cli.cell_lookup import find_cell
from massive_sft.cli.diff import diff_json
from massive_sft.cli.logs import logs_json
from massive_sft.cli.retry import select_failed
from massive_sft.cli.show import record_json, show, waiting_json
from massive_sft.cli.status import status_json, status_view
from massive_sft.ledger.record import Record, Status
from massive_sft.ledger.store import Ledger
from massive_sft.planning.changes import find_changes, save_last_plan
from massive_sft.planning.plan import Plan
from massive_sft.planning.selection import parse_where
from massive_sft.report.report_data import read_report_data
from massive_sft.report.write import write_report
from massive_sft.study.results import results_of

QUIZ, BROKEN = {"name": "quiz", "shots": 0}, {"name": "broken", "shots": 0}
WHY = "UndefinedError: 'quest' is undefined"


@pytest.fixture
def sound(tmp_path: Path) -> Plan:
    """A sweep that asks for quiz alone, all of it complete."""
    (tmp_path / "sound").mkdir()
    plan = plan_of(file_of(tmp_path, "sound", QUIZ))
    save_last_plan(plan, write_records(plan))
    return plan_of(plan.sweep.path)


@pytest.fixture
def broken(sound: Plan, tmp_path: Path) -> Plan:
    """Another sweep over the same cells that asks for a broken benchmark too, after its run."""
    (tmp_path / "broken").mkdir()
    plan = plan_of(file_of(tmp_path, "broken", QUIZ, BROKEN))
    write_records(plan, partial)
    return plan_of(plan.sweep.path)


def file_of(folder: Path, name: str, *tasks: dict[str, Any]) -> Path:
    storage = {"root": str(folder / "ledger")}
    return sweep_file(folder / name, name=name, evaluation={"tasks": list(tasks)}, storage=storage)


def partial(record: Record) -> Record:
    scores = {key: item for key, item in record.scores.items() if item.benchmark == "quiz-0shot"}
    return record.model_copy(update={"scores": scores, "status": Status.PARTIAL, "missing": {"broken-0shot": WHY}})


def test_status_takes_a_line_a_cell_in_a_terminal_of_80_columns(sound: Plan) -> None:
    console = Console(width=80)
    with console.capture() as text:
        console.print(status_view(sound, Ledger(sound.storage)))
    lines = [line for line in text.get().splitlines() if line[:16] in {item.cell.id for item in sound.cells}]
    assert len(lines) == 18 and all("epoch" in line or "(base)" in line for line in lines)


def shown(plan: Plan) -> str:
    console = Console(width=220)
    with console.capture() as text:
        console.print(status_view(plan, Ledger(plan.storage)))
    return text.get()


def test_broken_benchmark_of_one_sweep_leaves_the_other_complete(sound: Plan, broken: Plan) -> None:
    before = read_report_data(sound, results_of(sound))  # with the records of the broken sweep's run
    again = plan_of(sound.sweep.path)
    assert again.statuses == {Status.COMPLETE: 18} and not again.todo
    assert {item["status"] for item in status_json(again, Ledger(again.storage))} == {"COMPLETE"}
    assert "18 cells: 18 COMPLETE; 0 to do" in shown(again) and WHY not in shown(again)
    assert not find_changes(again) and not select_failed(again, parse_where(None)).cells
    assert {str(status) for status in before.statuses.values()} == {"COMPLETE"}
    assert not before.findings and not before.scores["missing"].notna().any()
    assert set(before.cells["status"]) == {"COMPLETE"}


def test_reason_stands_on_the_line_of_the_sweep_that_asked(broken: Plan) -> None:
    assert broken.statuses == {Status.PARTIAL: 18}
    lines = [line for line in shown(broken).splitlines() if "PARTIAL" in line and "epoch" in line]
    assert len(lines) == 16 and all(f"broken-0shot: {WHY}" in line for line in lines)
    (finding,) = [item for item in read_report_data(broken, results_of(broken)).findings if WHY in item.text]
    assert finding.kind == "PARTIAL" and len(finding.cells) == 18


def test_reason_outlives_a_later_run_of_the_other_sweep(sound: Plan, broken: Plan) -> None:
    write_records(sound)  # as a run that made them again under what this sweep asks
    again = plan_of(broken.sweep.path)
    assert again.statuses == {Status.PARTIAL: 18}
    assert shown(again).count(WHY) == 18
    assert plan_of(sound.sweep.path).statuses == {Status.COMPLETE: 18}


def test_cells_that_another_sweep_finished_are_not_complete_before_they_have_what_this_one_asks(
    sound: Plan, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    plan = plan_of(file_of(tmp_path, "other", QUIZ, {"name": "prose", "shots": 0}))
    assert plan.statuses == {Status.PARTIAL: 18}
    assert "18 cells: 18 PARTIAL; 18 to do" in shown(plan) and shown(plan).count("prose-0shot: not done yet") == 2
    assert shown(plan).count("prose-0shot: its snapshot was removed") == 16


def test_show_sets_scores_apart_that_its_sweep_does_not_ask_for(
    sound: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other").mkdir()
    cell = sound.cells[0].cell.id
    show(cell, sound.sweep.path)
    assert "does not ask for" not in capsys.readouterr().out
    show(cell, file_of(tmp_path, "other", {"name": "prose", "shots": 0}))
    text = capsys.readouterr().out
    _, _, apart = text.partition("scores that this sweep does not ask for\n")
    assert "quiz-0shot" in apart and "missing prose-0shot: not done yet" in text


def test_provenance_is_of_the_run_that_made_what_the_sweep_asks_for(sound: Plan, tmp_path: Path) -> None:
    """The other sweep adds a benchmark to each cell with another library: a fact of its own report alone."""
    (tmp_path / "other").mkdir()
    later = {"libraries": {"torch": "99.0"}}
    asks_more = file_of(tmp_path, "other", QUIZ, {"name": "prose", "shots": 0})
    write_records(plan_of(asks_more), lambda record: record.model_copy(update={"provenance": later}))
    ours, theirs = plan_of(sound.sweep.path), plan_of(asks_more)
    cell, ledger = ours.cells[0].cell.id, Ledger.open(ours.root)
    for plan, has_later in ((ours, False), (theirs, True)):
        reported = [record.provenance == later for record in results_of(plan).records.values()]
        assert reported == [has_later] * 18
        match = find_cell(plan, ledger, cell)
        assert match.asked_record is not None and match.record is not None
        assert (match.asked_record.provenance == later, match.record.provenance == later) == (has_later, True)
        assert match.asked_record.scores == match.record.scores


def test_failure_under_one_sweep_leaves_what_the_other_has(sound: Plan, tmp_path: Path) -> None:
    cell = sound.cells[0]
    ledger = Ledger.open(sound.root)
    whole = ledger.read_record(cell.cell.id)
    assert whole is not None
    ledger.write_record(whole.model_copy(update={"status": Status.FAILED, "error": "OSError: full\nmore"}))
    assert plan_of(sound.sweep.path).statuses == {Status.COMPLETE: 18}
    match = find_cell(plan_of(sound.sweep.path), ledger, cell.cell.id)
    assert match.asked_record is not None and match.asked_record.error is None
    assert (match.status, logs_json(match)["error"]) == (Status.COMPLETE, None)
    asks_more = plan_of(file_of(tmp_path, "sound", QUIZ, BROKEN))
    failed = [line for line in shown(asks_more).splitlines() if "FAILED" in line and cell.cell.id in line]
    assert len(failed) == 1 and "OSError: full" in failed[0]
    quiz_alone = plan_of(file_of(tmp_path, "sound", QUIZ))
    data = read_report_data(quiz_alone, results_of(quiz_alone))
    assert data.statuses[cell.cell.id] is Status.COMPLETE and not data.findings


def test_what_is_printed_and_written_for_programs_says_mixture_as_the_sweep_file_does(
    sound: Plan, tmp_path: Path
) -> None:
    ledger, cell = Ledger.open(sound.root), sound.cells[0]
    match = find_cell(sound, ledger, cell.cell.id)
    record = ledger.read_record(cell.cell.id)
    assert record is not None
    shown = [status_json(sound, ledger)[0], *diff_json(match, match)["cells"], record_json(record)["coordinates"]]
    shown += [waiting_json(match)["coordinates"]]
    assert all(names["mixture"] == cell.cell.coordinates.data and "data" not in names for names in shown)
    write_report(sound, results_of(sound), tmp_path / "report")
    columns = pd.read_parquet(tmp_path / "report" / "scores.parquet").columns
    assert "mixture" in columns and "data" not in columns
