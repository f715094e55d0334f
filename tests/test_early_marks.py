"""Early answers beside full ones: what each sweep takes for done, and the mark wherever a score is shown."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console
from sample_records import plan_of, sweep_file, write_records

from massive_sft.cli.best import best_view
from massive_sft.cli.card import TrainedPrompt, render_card
from massive_sft.cli.cell_lookup import find_cell
from massive_sft.cli.diff import diff_view
from massive_sft.cli.plan import plan_view
from massive_sft.cli.score_table import score_table
from massive_sft.cli.show import record_view
from massive_sft.core.errors import InvalidInput
from massive_sft.ledger.lease import this_process
from massive_sft.ledger.record import Early, Record, Status, dump_record
from massive_sft.ledger.run_requirements import is_still_required, publish_requirements
from massive_sft.ledger.runs import register_run
from massive_sft.planning.plan import Plan
from massive_sft.report.report_data import read_report_data
from massive_sft.report.write import write_report
from massive_sft.study.frames import to_json_rows
from massive_sft.study.results import results_of
from massive_sft.suites.metrics import EARLY, EARLY_NOTE
from massive_sft.tracking.run_fields import describe_record

TASKS = [{"name": "quiz", "shots": 0}]


def plan(folder: Path, **evaluation: object) -> Plan:
    storage = {"root": str(folder / "ledger")}
    path = folder / str(len(evaluation))
    path.mkdir(exist_ok=True)
    return plan_of(sweep_file(path, evaluation={"tasks": TASKS, **evaluation}, storage=storage, measures=[]))


def as_early(record: Record) -> Record:
    """Make the scores of trained cells early ones, under the protocol that ``made_record`` gave the base model's."""
    if record.trajectory is None:
        return record
    ((protocol, scores),) = record.scores.items()
    early = Early(protocol=protocol, questions=25, of=100, look=3, until=8.0, half_width=7.25)
    return record.model_copy(update={"scores": {"e" * 16: scores.model_copy(update={"early": early})}})


def text_of(*parts: object) -> str:
    console = Console(width=240)
    with console.capture() as text:
        console.print(*parts)
    return text.get()


def test_a_sweep_that_asks_for_all_questions_takes_no_early_answer_and_is_taken_by_one_that_does_not(
    tmp_path: Path,
) -> None:
    early = plan(tmp_path, until=8)
    assert "at most 94% of the questions of 16 scores left" in text_of(plan_view(early))
    ledger = write_records(early, as_early)
    assert plan(tmp_path, until=8).statuses == {Status.COMPLETE: 18}
    full = plan(tmp_path)
    assert full.statuses == {Status.COMPLETE: 2, Status.PARTIAL: 16}
    trained = next(cell for cell in full.cells if cell.cell.recipe)
    assert [asked.id for asked in early.cells[0].requirements] == [f"{full.cells[0].requirements[0].id} ±8"]
    assert early.base[0].requirements == full.base[0].requirements
    write_records(full)
    assert plan(tmp_path, until=8).statuses == plan(tmp_path).statuses == {Status.COMPLETE: 18}
    with register_run(ledger.sweeps, "other", this_process()) as run:
        publish_requirements(run, {trained.cell.id: [f"{trained.requirements[0].id} ±8"]})
        assert is_still_required(ledger.sweeps, trained.cell.id, [])
        assert not is_still_required(ledger.sweeps, trained.cell.id, [trained.requirements[0].id])


def test_early_scores_are_marked_wherever_they_are_shown(tmp_path: Path) -> None:
    write_records(plan(tmp_path, until=8), as_early)
    made = plan(tmp_path, until=8)
    results = results_of(made)
    page = write_report(made, results, tmp_path / "report").read_text()
    assert page.count(EARLY_NOTE) >= 2 and f" {EARLY}" in page and "within ±8 points" in page
    table = pd.read_csv(tmp_path / "report" / "table.csv")
    assert set(table.loc[table["data_name"] != "pretrain", "early"]) == {"quiz-0shot"}
    assert table.loc[table["data_name"] == "pretrain", "early"].isna().all()
    assert list(read_report_data(made, results).columns) == ["quiz-0shot"]
    assert EARLY_NOTE in text_of(score_table(results, set(results.records), 200))
    best = text_of(best_view(to_json_rows(results.best()), len(results.cells)))
    assert EARLY_NOTE in best and f" {EARLY}" in best
    record = next(record for record in results.records.values() if record.trajectory)
    told = "25 of 100 questions, within ±7.2 points of the full score"
    assert f"{EARLY} quiz-0shot: {told}" in text_of(record_view(record, {}, {}, (), {}))
    base = next(
        item
        for item in results.records.values()
        if not item.trajectory and item.coordinates["model"] == record.coordinates["model"]
    )
    match = find_cell(made, results.ledger, record.cell)
    other = next(item for item in results.records.values() if item.trajectory and item.cell != record.cell)
    assert EARLY_NOTE in text_of(diff_view(match, find_cell(made, results.ledger, other.cell)))
    card = render_card(match, made.sweep.file.models["small"], False, {}, TrainedPrompt(None, None), "folder")
    assert f"\n{EARLY} quiz-0shot: {told}\n" in card
    run = describe_record(record, {}, None, "here", base)
    assert run.tags["massive_sft.early"] == f"quiz-0shot: {told}"
    assert {point.key for point in run.points} >= {"quiz/acc", "gain/quiz/acc"}
    assert describe_record(base, {}, None, "here").tags["massive_sft.early"] == "none"


def test_full_scores_say_nothing_of_early_ones(tmp_path: Path) -> None:
    write_records(plan(tmp_path))
    made = plan(tmp_path)
    results = results_of(made)
    page = write_report(made, results, tmp_path / "report").read_text()
    assert EARLY not in page and "early" not in pd.read_csv(tmp_path / "report" / "table.csv").columns
    assert all(b'"early"' not in dump_record(record) for record in results.records.values())


def test_early_answers_without_a_base_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="until needs base: true"):
        plan(tmp_path, until=2, base=False)
